"""Lossy codecs between real agents: within the budget, named to clients, and sampled while serving."""

from __future__ import annotations

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
from defer.accuracy import Budget, deviation
from defer.client import Client
from defer.dispatcher.bringup import Order
from defer.dispatcher.daemon import Daemon
from defer.documents.cluster import Cluster, loads_cluster
from defer.documents.plan import Plan, PlanShare
from defer.local_agents import local_agents
from defer.planning import make_plan, parse_placement
from node_agent.codecs import is_lossless

pytestmark = pytest.mark.integration

MODEL = "tiny_residual"
Arrays = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save(MODEL, tmp_path_factory.mktemp("model") / f"{MODEL}.onnx")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Two agents behind links that the file says are slow, so that planning wants small tensors."""
    with local_agents(["a", "b"], tmp_path) as agents:
        # What is measured would say that they are fast.
        lines = [
            '[dispatcher]\nlisten = "127.0.0.1:0"\nreplan = "never"\n[network]\nbandwidth = "100 kbit/s"\ndelay = "1 ms"'
        ]
        lines += [f'[[device]]\nname = "{agent.name}"\naddress = "{agent.address}"' for agent in agents]
        yield loads_cluster("\n".join(lines))


@pytest.fixture
def daemon(cluster: Cluster, tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(cluster, tmp_path / "state") as running:
        running.connect(20)
        yield running


def exact_outputs(model: Path, inputs: Arrays) -> Arrays:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def quiet(_what: str, _fraction: float) -> None:
    pass


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_deployment_with_a_budget_keeps_it_on_real_agents(
    daemon: Daemon, model: Path, tmp_path: Path
) -> None:
    calibration = tmp_path / "calibration.npz"
    requests = [models.example_inputs(MODEL, seed=seed) for seed in range(100, 104)]
    stacked: dict[str, Any] = {name: np.stack([each[name] for each in requests]) for name in requests[0]}
    np.savez(calibration, **stacked)
    order = Order(
        MODEL,
        model,
        objective="throughput",
        blocks=6,
        budget=Budget("relative", 0.1),
        calibration=calibration,
    )
    steps: list[str] = []
    plan = daemon.deployments.bring_up(order, lambda what, _: steps.append(what)).deployment.plan
    # Told by the process that plans, while it does.
    assert (
        "checking the plan's codecs end to end"
        in steps[steps.index("planning") : steps.index("cutting the model")]
    )
    assert plan.accuracy is not None
    assert 0 < plan.accuracy.error <= 0.1
    assert (plan.accuracy.requests, plan.accuracy.calibration) == (4, "calibration.npz")
    lossy = [transfer.codec for transfer in plan.transfers if not is_lossless(transfer.codec)]
    assert lossy
    with Client(str(daemon.address)) as client:
        (info,) = client.models()
        assert info.codec == plan.transfers[0].codec
        # The very requests that were calibrated on: the pipeline does what the check foretold.
        worst = max(deviation("relative", exact_outputs(model, x), client.infer(x)) for x in requests)
    assert worst == pytest.approx(plan.accuracy.error, rel=0.1)
    with Client(str(daemon.address), codec="raw") as client:
        assert client.infer(requests[0]).keys() == exact_outputs(model, requests[0]).keys()


def wait_for_comparison(client: Client, count: int) -> None:
    until(lambda: client.status().deployments[0].compared >= count)


def two_stages(model: Path, cluster: Cluster, codec: str) -> Plan:
    """One lossy transfer, whatever would be fastest."""
    chain = partitioner.analyze(model)
    half, errors = len(chain.blocks) // 2, {codec: [0.0] * len(chain.boundaries)}
    placement = parse_placement(f"a=0:{half},b={half}:", cluster, len(chain.blocks))
    return make_plan(chain, cluster, placement=placement, codec=codec, errors=errors)


def test_samples_are_compared_with_the_lossless_pipeline(
    daemon: Daemon, model: Path, cluster: Cluster
) -> None:
    plan = two_stages(model, cluster, "int4")
    assert [transfer.codec for transfer in plan.transfers] == ["raw", "int4", "raw"]
    daemon.deployments.bring_up(Order(MODEL, model, plan=plan, sample=0.5, standby="none"), quiet)
    requests = [models.example_inputs(MODEL, seed=seed) for seed in range(8)]
    with Client(str(daemon.address)) as client:
        off = []
        for number, inputs in enumerate(requests):
            off.append(deviation("relative", exact_outputs(model, inputs), client.infer(inputs)))
            if number % 2 == 0:  # the canary was answered before the first request
                wait_for_comparison(client, number // 2 + 1)
        (info,) = client.status().deployments
    assert info.compared == 4
    assert info.worst_error == pytest.approx(max(off[::2]), rel=1e-3)
    assert info.mean_error == pytest.approx(float(np.mean(off[::2])), rel=1e-3)
    assert info.answered == 9
    assert len(daemon.deployments.served) == 2
    daemon.deployments.take_down(MODEL, 5)
    until(lambda: not daemon.deployments.served and not daemon.deployments.sampler.tallies)


def test_every_route_of_a_plan_with_replicas_is_compared_with_its_own_reference(
    daemon: Daemon, model: Path, cluster: Cluster
) -> None:
    chain = partitioner.analyze(model)
    half, errors = len(chain.blocks) // 2, {"int4": [0.0] * len(chain.boundaries)}
    legs = [
        make_plan(
            chain,
            cluster,
            placement=parse_placement(f"{first}=0:{half},{last}={half}:", cluster, len(chain.blocks)),
            codec="int4",
            errors=errors,
        )
        for first, last in (("a", "b"), ("b", "a"))
    ]
    shares = tuple(PlanShare(fraction=0.5, stages=leg.stages, transfers=leg.transfers) for leg in legs)
    plan = msgspec.structs.replace(legs[0], shares=shares)
    daemon.deployments.bring_up(Order(MODEL, model, plan=plan, sample=1.0, standby="none"), quiet)
    with Client(str(daemon.address)) as client:

        def two_are_compared() -> bool:
            # While one is compared, others pass.
            list(client.map([models.example_inputs(MODEL, seed=seed) for seed in range(12)], window=6))
            return sum(each.compared for each in client.status().deployments) >= 2

        until(two_are_compared)
        assert len(client.status().deployments) == 2
    assert len(daemon.deployments.served) == 4
    daemon.deployments.take_down(MODEL, 5)
    until(lambda: not daemon.deployments.served and not daemon.deployments.sampler.tallies)


def test_a_plan_without_lossy_codecs_needs_no_reference(
    daemon: Daemon, model: Path, cluster: Cluster
) -> None:
    daemon.deployments.bring_up(
        Order(MODEL, model, plan=two_stages(model, cluster, "lz4"), sample=1.0, standby="none"), quiet
    )
    assert len(daemon.deployments.served) == 1
    assert not daemon.deployments.sampler.tallies
