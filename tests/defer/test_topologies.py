"""Real agent processes in every shape of network: relays, devices behind NAT, coded links, lost and restarted agents."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import models
import partitioner
from benchmarks.ports import free_ports
from defer.client import Client
from defer.dispatcher.bringup import Order
from defer.dispatcher.daemon import Daemon
from defer.documents.cluster import Cluster
from defer.documents.plan import Plan
from defer.errors import AgentUnreachable
from defer.local_agents import local_agents, stop
from defer.planning import make_plan, parse_placement

pytestmark = pytest.mark.integration

MODEL = "tiny_residual"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save(MODEL, tmp_path_factory.mktemp("model") / f"{MODEL}.onnx")


def cluster_file(tmp_path: Path, text: str) -> Cluster:
    path = tmp_path / "cluster.toml"
    path.write_text(text)
    return Cluster.load(path)


def by_hand(model: Path, cluster: Cluster, placement: str) -> Plan:
    chain = partitioner.analyze(model)
    return make_plan(chain, cluster, placement=parse_placement(placement, cluster, len(chain.blocks)))


@contextmanager
def served(cluster: Cluster, model: Path, plan: Plan, tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(cluster, tmp_path / "state") as daemon:
        daemon.connect(10.0)
        daemon.deployments.bring_up(Order(MODEL, model, plan), lambda _what, _fraction: None)
        yield daemon


def assert_equals_whole_model(model: Path, address: str, *, requests: int = 5) -> None:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    with Client(address) as client:
        for seed in range(requests):
            inputs = models.example_inputs(MODEL, seed=seed)
            ours = client.infer(inputs, timeout=20)
            for output, expected in zip(session.get_outputs(), session.run(None, inputs), strict=True):
                np.testing.assert_allclose(ours[output.name], expected, rtol=1e-4, atol=1e-5)


def test_relays_forward_where_there_is_no_direct_link(model: Path, tmp_path: Path) -> None:
    with local_agents(["a", "b", "r"], tmp_path) as agents:
        addresses = {agent.name: agent.address for agent in agents}
        cluster = cluster_file(
            tmp_path,
            f"""
            [dispatcher]
            listen = "127.0.0.1:0"
            [network]
            mesh = false
            [[device]]
            name = "a"
            address = "{addresses["a"]}"
            [[device]]
            name = "b"
            address = "{addresses["b"]}"
            [[device]]
            name = "r"
            address = "{addresses["r"]}"
            computes = false
            [[link]]
            between = ["dispatcher", "r"]
            [[link]]
            between = ["r", "a"]
            [[link]]
            between = ["r", "b"]
            """,
        )
        plan = by_hand(model, cluster, "a=0:5,b=5:")
        assert [transfer.path for transfer in plan.transfers] == [
            ("dispatcher", "r", "a"),
            ("a", "r", "b"),
            ("b", "r", "dispatcher"),
        ]
        with served(cluster, model, plan, tmp_path) as daemon:
            assert_equals_whole_model(model, str(daemon.address))


def test_device_behind_nat_dials_out(model: Path, tmp_path: Path) -> None:
    """The middle stage can only dial: it fetches from the one before and hands over to the one after."""
    base = free_ports(3)
    command = [sys.executable, "-m", "node_agent", "--name", "nat", "--listen", "127.0.0.1:0"]
    command += ["--dial", f"tcp://127.0.0.1:{base}", "--store", str(tmp_path / "nat"), "--threads", "1"]
    nat = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        with local_agents(["a", "b"], tmp_path) as agents:
            a, b = agents
            cluster = cluster_file(
                tmp_path,
                f"""
                [dispatcher]
                listen = "127.0.0.1:{base}"
                [[device]]
                name = "a"
                address = "{a.address}"
                [[device]]
                name = "nat"
                dials = true
                [[device]]
                name = "b"
                address = "{b.address}"
                """,
            )
            for number, placement in enumerate(("a=0:4,nat=4:8,b=8:", "nat=0:4,a=4:", "a=0:4,nat=4:")):
                plan = by_hand(model, cluster, placement)
                with served(cluster, model, plan, tmp_path / str(number)) as daemon:
                    assert_equals_whole_model(model, str(daemon.address))
    finally:
        stop([nat])


@pytest.mark.parametrize("codec", ["raw", "lz4"])
def test_codec_between_stages(model: Path, tmp_path: Path, codec: str) -> None:
    with local_agents(["a", "b"], tmp_path) as agents:
        a, b = agents
        cluster = cluster_file(
            tmp_path,
            f"""
            [dispatcher]
            listen = "127.0.0.1:0"
            [network]
            codec = "{codec}"
            [[device]]
            name = "a"
            address = "{a.address}"
            [[device]]
            name = "b"
            address = "{b.address}"
            """,
        )
        plan = by_hand(model, cluster, "a=0:5,b=5:")
        assert plan.transfers[1].codec == codec
        with served(cluster, model, plan, tmp_path) as daemon:
            assert_equals_whole_model(model, str(daemon.address))


def test_a_lost_agent_is_done_without_and_a_restarted_one_is_loaded_again(
    model: Path, tmp_path: Path
) -> None:
    base = free_ports(3)
    command = [sys.executable, "-m", "node_agent", "--name", "b", "--listen", f"127.0.0.1:{base}"]
    command += ["--store", str(tmp_path / "b"), "--threads", "1"]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)

    running = [start()]
    try:
        with local_agents(["a"], tmp_path) as (a,):
            cluster = cluster_file(
                tmp_path,
                f"""
                [dispatcher]
                listen = "127.0.0.1:0"
                [[device]]
                name = "a"
                address = "{a.address}"
                [[device]]
                name = "b"
                address = "127.0.0.1:{base}"
                """,
            )
            plan = by_hand(model, cluster, "a=0:5,b=5:")
            with served(cluster, model, plan, tmp_path) as daemon, Client(str(daemon.address)) as client:
                inputs = models.example_inputs(MODEL)
                before = client.infer(inputs, timeout=20)
                running[0].send_signal(signal.SIGKILL)
                running[0].wait()
                for devices in ({"a"}, {"a", "b"}):
                    _until_it_runs_on(devices, daemon)
                    after = client.infer(inputs, timeout=30)
                    np.testing.assert_allclose(after["logits"], before["logits"], rtol=1e-4, atol=1e-5)
                    if devices == {"a"}:
                        running.append(start())
    finally:
        stop(running)


def _until_it_runs_on(devices: set[str], daemon: Daemon) -> None:
    deadline = time.monotonic() + 60
    while True:
        served = [daemon.deployments.served.get(info.epoch) for info in daemon.verbs.models().models]
        plans = [each.deployment.plan for each in served if each is not None]
        if [{stage.device for stage in plan.stages} for plan in plans] == [devices]:
            return
        assert time.monotonic() < deadline, plans
        time.sleep(0.05)


def test_unreachable_agent_is_named(tmp_path: Path) -> None:
    cluster = cluster_file(
        tmp_path,
        f"""
        [dispatcher]
        listen = "127.0.0.1:0"
        [[device]]
        name = "ghost"
        address = "127.0.0.1:{free_ports(3)}"
        """,
    )
    with (
        Daemon(cluster, tmp_path / "state") as daemon,
        pytest.raises(AgentUnreachable, match="ghost") as error,
    ):
        daemon.connect(0.5)
    assert "defer agent --name ghost" in error.value.hint


def test_something_else_on_the_port_is_not_an_agent(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        cluster = cluster_file(
            tmp_path,
            f"""
            [dispatcher]
            listen = "127.0.0.1:0"
            [[device]]
            name = "web"
            address = "127.0.0.1:{port}"
            """,
        )
        with Daemon(cluster, tmp_path / "state") as daemon, pytest.raises(AgentUnreachable, match="web"):
            daemon.connect(0.5)
