"""From plan to hops: numbering, relays, who dials whom."""

from __future__ import annotations

import msgspec
import pytest

from defer.documents.plan import Plan, PlanStage, PlanTransfer
from defer.errors import NoRoute
from defer.hops import DISPATCHER, Part, Place, lay_out
from node_agent.messages import FileRef, PeerRef, TensorSpec

HOME = Place(DISPATCHER, "tcp://home:1", "tcp://home:2")


def part(name: str) -> Part:
    spec = TensorSpec(f"{name}.in", "float32", ("batch", 4))
    out = TensorSpec(f"{name}.out", "float32", ("batch", 4))
    bound = TensorSpec(f"{name}.in", "float32", (1, 4))
    return Part(FileRef(name * 64, 10, ".onnx"), (FileRef("f" * 64, 99),), (spec,), (out,), (bound,))


def place(name: str, *, dials: bool = False) -> Place:
    return Place(name, "" if dials else f"tcp://{name}:1", "" if dials else f"tcp://{name}:2", dials)


def plan(paths: list[tuple[str, ...]], devices: list[str]) -> Plan:
    stages = tuple(
        PlanStage(device=d, start=i, stop=i + 1, ops=(i, i + 1), weight_bytes=1, flops=1, seconds=1.0)
        for i, d in enumerate(devices)
    )
    transfers = tuple(
        PlanTransfer(
            boundary=i, path=p, codec="lz4" if i else "raw", nbytes=1, seconds=0.0, tensors=(f"t{i}",)
        )
        for i, p in enumerate(paths)
    )
    return Plan(
        model="m",
        digest="0",
        positions=tuple(range(len(devices) + 1)),
        objective="latency",
        latency_s=1.0,
        period_s=1.0,
        bound=1.0,
        optimal=True,
        stages=stages,
        transfers=transfers,
    )


def test_two_stages_in_a_row() -> None:
    layout = lay_out(
        plan([("home", "a"), ("a", "b"), ("b", "home")], ["a", "b"]),
        [part("a"), part("b")],
        {"a": place("a"), "b": place("b")},
        HOME,
    )
    [a], [b] = layout.hops["a"], layout.hops["b"]
    assert (a.hop, b.hop, layout.count) == (0, 1, 2)
    assert a.previous == PeerRef(DISPATCHER, "")
    assert a.next == PeerRef("b", "tcp://b:1")
    assert b.previous == PeerRef("a", "")
    assert b.next == PeerRef(DISPATCHER, "tcp://home:1")
    assert (a.send, a.codec) == (("t1",), "lz4")
    assert b.send == ("t2",)
    assert layout.first == PeerRef("a", "tcp://a:1")
    assert layout.last == PeerRef("b", "")


def test_relay_gets_a_hop_without_a_partition() -> None:
    layout = lay_out(
        plan([("home", "r", "a"), ("a", "r", "home")], ["a"]),
        [part("a")],
        {"a": place("a"), "r": place("r")},
        HOME,
    )
    assert [spec.hop for spec in layout.hops["r"]] == [0, 2]
    assert [spec.graph for spec in layout.hops["r"]] == [None, None]
    assert [spec.hop for spec in layout.hops["a"]] == [1]
    assert layout.hops["r"][1].next == PeerRef(DISPATCHER, "tcp://home:1")


def test_device_behind_nat_dials_both_neighbours() -> None:
    layout = lay_out(
        plan([("home", "n"), ("n", "b"), ("b", "home")], ["n", "b"]),
        [part("a"), part("b")],
        {"n": place("n", dials=True), "b": place("b")},
        HOME,
    )
    [n], [b] = layout.hops["n"], layout.hops["b"]
    assert n.previous == PeerRef(DISPATCHER, "tcp://home:2")
    assert n.next == PeerRef("b", "tcp://b:1")
    assert b.previous == PeerRef("n", "")
    assert layout.first == PeerRef("n", "")


def test_two_that_can_only_dial_are_refused() -> None:
    with pytest.raises(NoRoute, match="both can only dial"):
        lay_out(
            plan([("home", "n"), ("n", "k"), ("k", "home")], ["n", "k"]),
            [part("a"), part("b")],
            {"n": place("n", dials=True), "k": place("k", dials=True)},
            HOME,
        )


def test_device_of_the_dispatcher_may_run_the_first_stage() -> None:
    layout = lay_out(
        plan([("a",), ("a",)], ["a"]),
        [part("a")],
        {"a": place("a")},
        HOME,
    )
    [a] = layout.hops["a"]
    assert (a.hop, layout.count) == (0, 1)
    assert a.next.name == DISPATCHER


@pytest.mark.parametrize(
    ("nbytes", "transfer_s", "stage_s", "credit"),
    [
        (1, 0.0, 1.0, 32),  # small items may wait in numbers
        (8 << 20, 0.0, 1.0, 3),  # one is run, one waits, one arrives
        (8 << 20, 1.0, 0.5, 7),  # an item comes and its credit goes back while the stage runs four times
        (1 << 20, 0.0, 1.0, 4),
        (8 << 20, 100.0, 1.0, 32),
        (8 << 20, 1.0, 0.0, 32),
    ],
)
def test_credit_covers_the_round_trip_and_no_more(
    nbytes: int, transfer_s: float, stage_s: float, credit: int
) -> None:
    one = plan([("home", "a"), ("a", "home")], ["a"])
    arriving = msgspec.structs.replace(one.transfers[0], nbytes=nbytes, seconds=transfer_s)
    stage = msgspec.structs.replace(one.stages[0], seconds=stage_s)
    changed = msgspec.structs.replace(one, transfers=(arriving, one.transfers[1]), stages=(stage,))
    [hop] = lay_out(changed, [part("a")], {"a": place("a")}, HOME).hops["a"]
    assert hop.credit == credit
