"""Which plans stand by for a loss, what of memory they may take, and what is told of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import msgspec
import pytest

import models
from defer.dispatcher.coverage import Prepared, coverage
from defer.dispatcher.mending import Serving
from defer.dispatcher.planner_process import Answers
from defer.dispatcher.questions import Foresee, Foreseen, Topic
from defer.dispatcher.standing import Candidate, Mode, choose, obstacle, shape_of
from defer.documents.cluster import loads_cluster
from defer.documents.plan import Plan
from defer.planning import make_plan, parse_placement
from defer.staying import staying
from node_agent.messages import FileRef, HopSpec, Load, PeerRef
from partitioner import analyze
from tests.defer.plan_fixtures import a_chain, a_plan

PEER = PeerRef("p", "tcp://127.0.0.1:1")
MIB = 1 << 20


def load(*files: tuple[str, int]) -> Load:
    """Of partitions, each named by a letter, with its MiB."""
    hops = [HopSpec(at, PEER, PEER, FileRef(name * 64, size * MIB)) for at, (name, size) in enumerate(files)]
    return Load(0, 1, "m", tuple(hops))


def candidate(lost: str, shape: object = None, **loads: Load) -> Candidate:
    return Candidate(frozenset(lost), shape or lost, loads)


HELD: Mapping[str, list[Load]] = {"x": [load(("a", 40))], "y": [load(("b", 10)), load(("b", 10), ("c", 5))]}


@pytest.mark.parametrize(
    ("mode", "wanted", "memory", "why"),
    [
        ("auto", load(("d", 35)), 100, ""),
        (
            "auto",
            load(("d", 36)),
            100,
            "x would hold 76 MiB, 36 MiB of it for this; it has 100 MiB, of which 25%",
        ),
        ("loaded", load(("d", 60)), 100, ""),
        ("loaded", load(("d", 61)), 100, "x would hold 101 MiB"),
        ("auto", load(("d", 1)), 0, "x does not say how much memory it has"),
        ("loaded", load(("d", 1000)), 0, ""),
        # What is held already takes nothing more, whatever is left.
        ("auto", load(("a", 40)), 41, ""),
        ("auto", load(("a", 40)), 0, ""),
    ],
)
def test_memory_is_counted_as_an_agent_counts_a_load(mode: Mode, wanted: Load, memory: int, why: str) -> None:
    told = obstacle(mode, candidate("y", x=wanted), HELD, {"x": memory * MIB})
    assert told.startswith(why)
    assert bool(told) == bool(why)


def test_of_what_holds_a_partition_twice_once_counts() -> None:
    assert obstacle("loaded", candidate("x", y=load(("d", 5))), HELD, {"y": 20 * MIB}) == ""
    assert obstacle("loaded", candidate("x", y=load(("d", 6))), HELD, {"y": 20 * MIB}) != ""


def test_what_is_wanted_and_stands_is_kept_the_rest_is_dropped_and_what_takes_least_is_loaded_first() -> None:
    wanted = [
        candidate("p", "kept", x=load(("a", 40))),
        candidate("q", "large", x=load(("d", 30))),
        candidate("r", "small", x=load(("a", 40), ("e", 2))),
        candidate("s", "small", x=load(("a", 40), ("e", 2))),
    ]
    found = choose(wanted, {7: "kept", 8: "old", 9: "kept"}, HELD)
    assert found.drop == (8, 9)
    assert [each.lost for each in found.load] == [{"r"}, {"q"}]
    assert choose([], {}, HELD).load == ()


CLUSTER = """
[network]
bandwidth = "1 Gbit/s"
delay = "0.1 ms"
""" + "".join(
    f'[[device]]\nname = "{name}"\naddress = "127.0.0.1:77{at}0"\n' for at, name in enumerate("abcd")
)


def test_only_what_was_on_the_lost_device_moves_where_that_is_nearly_as_good() -> None:
    chain, cluster = a_chain(), loads_cluster(CLUSTER)
    running = make_plan(chain, cluster, placement=parse_placement("a=0:1,b=1:2,c=2:", cluster, 3))
    left = msgspec.structs.replace(
        cluster, devices=tuple(each for each in cluster.devices if each.name != "b")
    )
    best = make_plan(chain, left)
    found = staying(best, running, chain, left, None, {"b"}, nearly=9.0)
    assert [(stage.device, stage.start, stage.stop) for stage in found.stages] == [
        ("a", 0, 1),
        ("d", 1, 2),
        ("c", 2, 3),
    ]
    assert not found.by_hand
    # One device alone is best here, and what is much worse is not taken for it.
    assert staying(best, running, chain, left, None, {"b"}, nearly=0.0) is best
    assert staying(best, running, chain, left, None, {"a", "b"}, nearly=9.0) is best


def test_the_other_process_is_asked_for_a_plan_that_moves_little(tmp_path: object) -> None:
    path = models.save("tiny_residual", f"{tmp_path}/m.onnx")
    chain, cluster = analyze(path), loads_cluster(CLUSTER)
    half, count = len(chain.blocks) // 2, len(chain.blocks)
    running = make_plan(chain, cluster, placement=parse_placement(f"a=0:{half},b={half}:", cluster, count))
    question = Foresee(
        topic=Topic(model=str(path), shapes={}, blocks=count, calibration="", parts=f"{tmp_path}/parts"),
        cluster=cluster,
        profile=None,
        objective="latency",
        without=(("b",),),
        staying=running,
    )
    (found,) = cast(tuple[Foreseen, ...], Answers().answer(question))
    assert found.plan is not None
    assert "b" not in {stage.device for stage in found.plan.stages}
    assert len(found.parts) == len(found.plan.stages)


def test_plans_that_load_and_run_the_same_have_one_shape_whatever_is_predicted() -> None:
    plan = a_plan()
    assert shape_of(plan) == shape_of(msgspec.structs.replace(plan, latency_s=7.0, notes=("new",)))
    assert shape_of(plan) != shape_of(msgspec.structs.replace(plan, order=(1, 0)))
    assert hash(shape_of(plan)) is not None


def of(*devices: str) -> Plan:
    """A plan with a stage on each of the devices."""
    cluster, chain = loads_cluster(CLUSTER), a_chain()
    ends = [*range(len(devices)), 3]
    text = ",".join(f"{name}={a}:{b}" for name, a, b in zip(devices, ends, ends[1:], strict=False))
    return make_plan(chain, cluster, placement=parse_placement(text, cluster, 3))


def test_for_each_device_it_is_told_what_is_prepared() -> None:
    known = Prepared(
        mode="auto",
        serving=[Serving(1, True, of("a", "b", "c")), Serving(2, False, of("d"))],
        missing=frozenset(),
        standing={5: of("a", "c", "d"), 6: of("a", "d")},
        foreseen={
            frozenset("a"): Foreseen(of("d"), ()),
            frozenset("b"): Foreseen(of("d"), ()),
        },
        reasons={frozenset("a"): "d has no room"},
    )
    a, b, c = coverage("m", known)
    assert (a.lost, a.by, a.devices, a.epoch, a.reason) == ("a", "files", ("d",), 0, "d has no room")
    assert (b.lost, b.by, b.reason) == ("b", "loaded", "")
    assert b.epoch == min((5, 6), key=lambda epoch: known.standing[epoch].value)
    assert (c.lost, c.by, c.epoch) == ("c", "loaded", 6)


def test_what_is_not_prepared_is_told_too() -> None:
    def by(**more: object) -> list[str]:
        usual = Prepared("auto", [Serving(1, True, of("a"))], frozenset(), {}, {}, {})
        changed = {name: getattr(usual, name) for name in Prepared.__slots__} | more
        return [info.by for info in coverage("m", Prepared(**changed))]  # type: ignore[arg-type]

    assert by() == ["planning"]
    assert by(mode="none") == ["planning"]
    assert by(mode="none", foreseen={frozenset("a"): Foreseen(of("b"), ())}) == ["none"]
    assert by(foreseen={frozenset("a"): Foreseen(None, (), "no-route", "no room")}) == ["impossible"]
    assert by(serving=[Serving(1, True, of("a")), Serving(2, True, of("b"))]) == ["replica", "replica"]
    assert by(serving=[Serving(1, False, of("a"))]) == []
