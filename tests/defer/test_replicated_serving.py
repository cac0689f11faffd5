"""A stage on two of three real agents: equal results, both work, and the loss of one of them loses no request."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest

import models
import partitioner
from defer.client import Client
from defer.dispatcher.bringup import Order
from defer.dispatcher.daemon import Daemon
from defer.documents.cluster import Cluster, loads_cluster
from defer.documents.plan import Plan, PlanShare
from defer.local_agents import LocalAgent, local_agents
from defer.planning import make_plan, parse_placement
from defer.wishes import Rules

pytestmark = pytest.mark.integration

MODEL = "tiny_residual"


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[tuple[LocalAgent, ...]]:
    with local_agents(["a", "b", "c"], tmp_path) as running:
        yield running


@pytest.fixture
def cluster(agents: tuple[LocalAgent, ...]) -> Cluster:
    lines = ['[dispatcher]\nlisten = "127.0.0.1:0"']
    lines += [f'[[device]]\nname = "{agent.name}"\naddress = "{agent.address}"' for agent in agents]
    return loads_cluster("\n".join(lines))


def replicated(model: Path, cluster: Cluster) -> Plan:
    """The first half on a; the second on b for two thirds of the requests, and on c for the rest."""
    chain = partitioner.analyze(model)
    half = len(chain.blocks) // 2
    legs = [
        make_plan(
            chain,
            cluster,
            placement=parse_placement(f"a=0:{half},{last}={half}:", cluster, len(chain.blocks)),
            objective="throughput",
        )
        for last in ("b", "c")
    ]
    shares = tuple(
        PlanShare(fraction=part, stages=leg.stages, transfers=leg.transfers)
        for part, leg in zip((2 / 3, 1 / 3), legs, strict=True)
    )
    return msgspec.structs.replace(legs[0], shares=shares)


def working(client: Client) -> set[str]:
    """Devices of the routes that take requests."""
    return {
        stage.device for each in client.status().deployments if each.state == "ready" for stage in each.stages
    }


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_replicas_share_the_requests_and_stand_in_for_one_another(
    agents: tuple[LocalAgent, ...], cluster: Cluster, tmp_path: Path
) -> None:
    model = models.save(MODEL, tmp_path / f"{MODEL}.onnx")
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    requests = [models.example_inputs(MODEL, seed=seed) for seed in range(60)]
    expected = [dict(zip(names, session.run(None, each), strict=True)) for each in requests]

    def check(outputs: list[Any], times: int = 1) -> None:
        assert len(outputs) == len(expected) * times
        for found, wanted in zip(outputs, expected * times, strict=True):
            for name, array in wanted.items():
                np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5)

    with Daemon(cluster, tmp_path / "state") as daemon:
        daemon.connect(20)
        plan = replicated(model, cluster)
        outcome = daemon.deployments.bring_up(
            Order(MODEL, model, plan=plan, standby="none"), lambda _what, _fraction: None
        )
        assert outcome.deployment.plan == plan
        with Client(str(daemon.address), timeout=30) as client:
            check(list(client.map(requests, window=12)))
            (info,) = client.models()
            assert info.state == "ready"
            status = client.status()
            by_device = {
                stage.device: stage.items for each in status.deployments for stage in each.stages[1:]
            }
            # Of 60 requests and a canary through each; slower machines deal a little off the plan's parts.
            assert by_device["b"] >= 20
            assert by_device["c"] >= 10
            assert [each.failed for each in status.deployments] == [0, 0]

            # A frozen replica is noticed by its silence; what filled the shared stage for it is dropped there.
            process = agents[1].process
            results = client.map(requests * 5, window=200)
            first = [next(results)]
            process.send_signal(signal.SIGSTOP)
            try:
                check(first + list(results), times=5)
                assert client.models()[0].state == "ready"
            finally:
                process.send_signal(signal.SIGCONT)
            until(lambda: working(client) == {"a", "b", "c"})

            results = client.map(requests, window=12)
            first = [next(results)]
            process.kill()
            check(first + list(results))
            check(list(client.map(requests, window=12)))
            assert working(client) == {"a", "c"}


def test_a_planned_mix_is_served_and_replaced_without_a_gap(cluster: Cluster, tmp_path: Path) -> None:
    model = models.save(MODEL, tmp_path / f"{MODEL}.onnx")
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    (name,) = [output.name for output in session.get_outputs()]
    requests = [models.example_inputs(MODEL, seed=seed) for seed in range(200)]
    expected = [session.run(None, each)[0] for each in requests]
    chain = partitioner.analyze(model)
    mix = make_plan(chain, cluster, objective="throughput", rules=Rules(replicas=True))
    single = make_plan(chain, cluster, objective="throughput")
    assert len(mix.shares) > 1
    with Daemon(cluster, tmp_path / "state") as daemon:
        daemon.connect(20)
        daemon.deployments.bring_up(
            Order(MODEL, model, plan=mix, standby="none"), lambda _what, _fraction: None
        )
        with Client(str(daemon.address), timeout=30) as client:
            results = client.map(requests, window=16)
            found = [next(results) for _ in range(40)]
            assert len([each for each in client.status().deployments if each.state == "ready"]) == len(
                mix.shares
            )
            daemon.deployments.bring_up(
                Order(MODEL, model, plan=single, standby="none"), lambda _what, _fraction: None
            )
            found += list(results)
            for each, wanted in zip(found, expected, strict=True):
                np.testing.assert_allclose(each[name], wanted, rtol=1e-4, atol=1e-5)
            until(lambda: len(client.status().deployments) == 1)
            assert client.status().deployments[0].failed == 0


def test_a_dispatcher_that_restarts_without_a_replica_serves_on_the_others(
    agents: tuple[LocalAgent, ...], cluster: Cluster, tmp_path: Path
) -> None:
    model = models.save(MODEL, tmp_path / f"{MODEL}.onnx")
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    (name,) = [output.name for output in session.get_outputs()]
    inputs = models.example_inputs(MODEL)
    (expected,) = session.run(None, inputs)
    plan = replicated(model, cluster)
    with Daemon(cluster, tmp_path / "state") as daemon:
        daemon.connect(20)
        order = Order(MODEL, model, plan=plan, standby="none")
        daemon.deployments.bring_up(order, lambda _what, _fraction: None)
    process = agents[1].process
    for _ in range(2):  # the second time from what the first one left
        process.send_signal(signal.SIGSTOP)
        try:
            with Daemon(cluster, tmp_path / "state") as daemon:
                daemon.connect(20)
                (back,) = daemon.back()
                assert back.told() == f"model {MODEL} is ready on a → c, without b"
                with Client(str(daemon.address), timeout=30) as client:
                    np.testing.assert_allclose(client.infer(inputs)[name], expected, rtol=1e-4, atol=1e-5)
                    assert working(client) == {"a", "c"}
        finally:
            process.send_signal(signal.SIGCONT)
    with Daemon(cluster, tmp_path / "state") as daemon:
        process.send_signal(signal.SIGSTOP)
        try:
            daemon.connect(20)
        finally:
            process.send_signal(signal.SIGCONT)
        with Client(str(daemon.address), timeout=30) as client:
            until(lambda: working(client) == {"a", "b", "c"})
            np.testing.assert_allclose(client.infer(inputs)[name], expected, rtol=1e-4, atol=1e-5)
    with Daemon(cluster, tmp_path / "state") as daemon:
        daemon.connect(20)
        assert [back.told() for back in daemon.back()] == [f"model {MODEL} is ready as before"]
