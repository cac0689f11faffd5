"""Agents that the cluster file does not name: refused, or part of the cluster from then on."""

from __future__ import annotations

import time
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
from defer.dispatcher.joining import expecting, with_joined
from defer.documents.cluster import Cluster, loads_cluster
from defer.errors import InvalidCluster, UnknownDevice
from defer.local_agents import local_agents
from defer.planning import make_plan, parse_placement
from node_agent.messages import EngineInfo, Offer

MODEL = "tiny_residual"

FILE = """
[dispatcher]
listen = "127.0.0.1:{port}"
join = {join}
[network]
bandwidth = "1 Gbit/s"
delay = "0.1 ms"
[[device]]
name = "old"
address = "{address}"
"""


def offer(address: str = "") -> Offer:
    return Offer((EngineInfo("e"),), 1, 1.0, 1, "f", 7701, 7702, address=address)


def a_cluster(more: str = "") -> Cluster:
    return loads_cluster(FILE.format(port=7600, join="true", address="127.0.0.1:7700") + more)


def pairs(cluster: Cluster) -> set[tuple[str, str]]:
    return {(link.source, link.target) for link in cluster.directed_links()}


def test_one_that_says_no_address_dials() -> None:
    joined = with_joined(a_cluster(), "new", offer())
    assert joined.device("new").dials
    assert ("new", "old") in pairs(joined)
    again = with_joined(joined, "new", offer("127.0.0.1:7710"), {"new"})
    assert again.device("new").address == "127.0.0.1:7710"
    assert again.names.count("new") == 1


def test_two_that_dial_do_not_reach_each_other() -> None:
    joined = with_joined(with_joined(a_cluster(), "n1", offer()), "n2", offer())
    assert ("n1", "n2") not in pairs(joined)
    assert ("n1", "old") in pairs(joined)


def test_where_links_are_declared_it_is_joined_to_the_dispatcher() -> None:
    declared = loads_cluster(
        FILE.format(port=7600, join="true", address="127.0.0.1:7700").replace(
            "[network]", "[network]\nmesh = false"
        )
        + '[[link]]\nbetween = ["old", "dispatcher"]\n'
    )
    joined = with_joined(declared, "new", offer())
    assert {pair for pair in pairs(joined) if "new" in pair} == {("new", "dispatcher"), ("dispatcher", "new")}
    assert pairs(with_joined(joined, "new", offer(), {"new"})) == pairs(joined)


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("old", ""),
        ("dispatcher", ""),
        ("no name", ""),
        ("new", "nonsense"),
        ("new", "127.0.0.1:7701"),
        ("new", "0.0.0.0:7710"),
    ],
)
def test_what_cannot_be_a_device_does_not_join(name: str, address: str) -> None:
    with pytest.raises(InvalidCluster):
        with_joined(a_cluster(), name, offer(address))


def test_devices_of_kept_plans_are_expected() -> None:
    joined = with_joined(a_cluster(), "new", offer())
    chain = partitioner.analyze(models.build(MODEL))
    half, whole = len(chain.blocks) // 2, len(chain.blocks)
    plan = make_plan(chain, joined, placement=parse_placement(f"old=0:{half},new={half}:", joined, whole))
    cluster, names = expecting(a_cluster(), [plan])
    assert names == {"new"}
    assert cluster.device("new").dials


def joined_events(daemon: Daemon, count: int) -> list[str]:
    deadline = time.monotonic() + 20
    while True:
        found = [event.device for event in daemon.log.since(0) if event.kind == "device-joined"]
        if len(found) >= count:
            return found
        assert time.monotonic() < deadline, [event.text for event in daemon.log.since(0)]
        time.sleep(0.02)


@pytest.mark.integration
def test_agents_that_register_serve_the_next_plan_and_a_restarted_dispatcher(tmp_path: Path) -> None:
    model = models.save(MODEL, tmp_path / f"{MODEL}.onnx")
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    inputs = models.example_inputs(MODEL, seed=1)
    expected = session.run(None, inputs)

    def right(address: str) -> None:
        with Client(address) as client:
            for output, value in zip(session.get_outputs(), expected, strict=True):
                np.testing.assert_allclose(
                    client.infer(inputs, timeout=30)[output.name], value, rtol=1e-3, atol=1e-5
                )

    port, reached = free_ports(3), free_ports(3)
    dial = ["--dial", f"tcp://127.0.0.1:{port}"]
    arguments = {
        "dials": dial,
        "reached": [*dial, "--listen", f"127.0.0.1:{reached}", "--advertise", "127.0.0.1"],
    }
    with local_agents(["old", "dials", "reached"], tmp_path, arguments=arguments) as agents:
        described = loads_cluster(FILE.format(port=port, join="true", address=agents[0].address))
        with Daemon(described, tmp_path / "state") as daemon:
            daemon.connect(10.0)
            assert sorted(joined_events(daemon, 2)) == ["dials", "reached"]
            assert set(daemon.cluster.names) == {"old", "dials", "reached", "dispatcher"}
            assert {device.name for device in daemon.verbs.status().devices} == {"old", "dials", "reached"}
            chain = partitioner.analyze(model)
            third = len(chain.blocks) // 3
            placement = f"dials=0:{third},reached={third}:{2 * third},old={2 * third}:"
            plan = make_plan(
                chain, daemon.cluster, placement=parse_placement(placement, daemon.cluster, len(chain.blocks))
            )
            daemon.deployments.bring_up(Order(MODEL, model, plan), lambda _what, _fraction: None)
            right(str(daemon.address))
        with Daemon(described, tmp_path / "state") as daemon:
            daemon.connect(10.0)
            joined_events(daemon, 2)
            deadline = time.monotonic() + 60
            while [info.state for info in daemon.verbs.models().models] != ["ready"]:
                assert time.monotonic() < deadline, daemon.verbs.models()
                time.sleep(0.02)
            right(str(daemon.address))


@pytest.mark.integration
def test_where_joining_is_not_allowed_an_agent_is_told_of_and_not_used(tmp_path: Path) -> None:
    port = free_ports(3)
    arguments = {"new": ["--dial", f"tcp://127.0.0.1:{port}"]}
    with local_agents(["old", "new"], tmp_path, arguments=arguments) as agents:
        described = loads_cluster(FILE.format(port=port, join="false", address=agents[0].address))
        with Daemon(described, tmp_path / "state") as daemon:
            daemon.connect(10.0)
            deadline = time.monotonic() + 20
            while not [event for event in daemon.log.since(0) if event.kind == "device-unknown"]:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert "new" not in daemon.cluster.names
            with pytest.raises(UnknownDevice):
                daemon.cluster.device("new")
