"""What cannot be planned says why; what an operator places is checked."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from router import (
    Buffers,
    Cluster,
    CodecCost,
    Device,
    InvalidProblem,
    Link,
    NoRoute,
    Objective,
    Pins,
    Problem,
    Stage,
    evaluate,
    place,
    solve,
)


def mesh(devices: list[Device], **link: float) -> Cluster:
    names = [d.name for d in devices]
    options = {"bandwidth": 1e6, "delay": 0.001, **link}
    return Cluster(devices, [Link(a, b, **options) for a in names for b in names if a != b])


def base(**changes: object) -> Problem:
    problem = Problem(
        cluster=mesh([Device("server", computes=False), Device("a", memory=600), Device("b", memory=600)]),
        source="server",
        sink="server",
        block_seconds={"a": [0.01, 0.01], "b": [0.02, 0.01]},
        block_memory=[500, 500],
        boundary_bytes=[1000, 2000, 100],
    )
    return replace(problem, **changes)


def test_hand_computed_plan() -> None:
    best = solve(base(), "throughput")
    assert [(s.device, s.start, s.stop) for s in best.route.stages] == [("a", 0, 1), ("b", 1, 2)]
    assert best.period == 0.01
    assert best.latency == pytest.approx(0.02 + 0.003 + 3100 / 1e6)


def test_weak_device_is_left_out() -> None:
    slow = base(block_memory=[10, 10], block_seconds={"a": [0.01, 0.01], "b": [5.0, 5.0]})
    for name in ("latency", "throughput"):
        assert {s.device for s in solve(slow, name).route.stages} == {"a"}


def test_relay_without_compute_is_used() -> None:
    devices = [Device("in", computes=False), Device("relay", computes=False), Device("box")]
    links = [
        Link("in", "relay", 1e6),
        Link("relay", "box", 2e6, 0.5),
        Link("box", "relay", 1e6),
        Link("relay", "in", 1e6),
    ]
    problem = Problem(Cluster(devices, links), "in", "in", {"box": [1.0]}, [1_000_000, 0])
    best = solve(problem)
    assert best.route.transfers[0].path == ("in", "relay", "box")
    assert best.latency == pytest.approx(1 + 0.5 + 0.5 + 1)
    assert best.optimal


def test_half_duplex_is_one_medium_of_two_links() -> None:
    devices = [Device("server", computes=False), Device("a")]
    both = [Link("server", "a", 100.0, medium="radio"), Link("a", "server", 100.0, medium="radio")]
    problem = Problem(Cluster(devices, both), "server", "server", {"a": [0.1]}, [100, 100])
    assert solve(problem, "throughput").period == pytest.approx(2.0)
    full = replace(problem, cluster=Cluster(devices, [replace(link, medium=None) for link in both]))
    assert solve(full, "throughput").period == pytest.approx(1.0)


def test_codec_is_chosen_per_link() -> None:
    names = ["server", "a", "b"]
    codec = CodecCost(
        "lz4", ratio=4.0, encode={n: [0.01] * 3 for n in names}, decode={n: [0.01] * 3 for n in names}
    )
    cluster = Cluster(
        [Device("server", computes=False), Device("a", memory=600), Device("b", memory=600)],
        [Link("server", "a", 1e9), Link("a", "b", 1e4), Link("b", "server", 1e9)],
    )
    best = solve(base(cluster=cluster, boundary_bytes=[1000, 1000, 100], codecs=[CodecCost("raw"), codec]))
    assert [t.codec for t in best.route.transfers] == ["raw", "lz4", "raw"]


def test_error_budget_forbids_the_lossy_codec() -> None:
    lossy = CodecCost("u8", ratio=4.0, error=0.1)
    problem = base(codecs=[CodecCost("raw"), lossy])
    assert all(t.codec == "u8" for t in solve(problem).route.transfers)
    budget = solve(problem, Objective("latency", max_error=0.2))
    assert sorted(t.codec for t in budget.route.transfers) == ["raw", "u8", "u8"]
    assert budget.route.transfers[2].codec == "raw"  # the smallest tensor gains least
    assert budget.optimal


@pytest.mark.parametrize("name", ["latency", "throughput"])
def test_a_bound_of_nothing_is_kept_by_what_costs_nothing(name: str) -> None:
    lossy = CodecCost("u8", ratio=4.0, error=0.1)
    problem = base(codecs=[CodecCost("raw"), lossy], boundary_bytes=[100_000, 200_000, 100])
    found = solve(problem, Objective(name, max_error=0.0))
    assert found.error == 0.0
    assert found.optimal
    assert found.value == solve(replace(problem, codecs=[CodecCost("raw")]), name).value


@pytest.mark.parametrize(
    ("changes", "limit", "words"),
    [
        ({"block_memory": [700, 1]}, "memory", "block 0 needs 700 B"),
        ({"block_memory": [300, 500], "max_stages": 1}, "stages", "at most 1 stage fits"),
        ({"block_memory": [500, 500], "pins": Pins(blocks={0: "a", 1: "a"})}, "memory", "with these pins"),
        ({"pins": Pins(forbidden=[(0, "a"), (0, "b")])}, "pins", "no device for block 0"),
        (
            {"block_seconds": {"a": [1.0, math.inf], "b": [1.0, math.inf]}},
            "block",
            "no device can run block 1",
        ),
        ({"pins": Pins(banned=["a", "b"])}, "pins", "'a', 'b' could run it"),
        (
            {"cluster": Cluster([Device("server"), Device("a"), Device("b")], [])},
            "reachability",
            "cannot be reached",
        ),
        ({"block_memory": [600, 600], "stage_memory": 1}, "memory", "601 B"),
    ],
)
def test_no_route_names_the_limit(changes: dict[str, object], limit: str, words: str) -> None:
    with pytest.raises(NoRoute) as caught:
        solve(base(**changes), "throughput")
    assert caught.value.limit == limit
    assert words in str(caught.value)
    assert caught.value.code == "no-route"


@pytest.mark.parametrize("name", ["latency", "period", "cost", "energy", "error"])
def test_bounds_that_cannot_be_kept(name: str) -> None:
    problem = base(
        cluster=mesh(
            [
                Device("server", computes=False),
                Device("a", 600, power=1, price=1),
                Device("b", 600, power=1, price=1),
            ]
        ),
        codecs=[CodecCost("u8", error=1.0)],
    )
    with pytest.raises(NoRoute) as caught:
        solve(problem, Objective("latency", **{f"max_{name}": 1e-6}))
    assert caught.value.limit == name


def test_total_memory_is_named() -> None:
    problem = base(block_memory=[500, 500], block_seconds={"a": [1.0, 1.0]})
    with pytest.raises(NoRoute, match="600 B together") as caught:
        solve(problem)
    assert caught.value.limit == "memory"


def test_place_checks_and_predicts() -> None:
    placed = place(base(), [Stage("b", 0, 1), Stage("a", 1, 2)])
    assert placed.latency > solve(base()).latency
    assert placed.optimal  # the best of the routes with this placement
    with pytest.raises(NoRoute, match="1000 B on device 'a', which has 600 B"):
        place(
            base(),
            solve(base(cluster=mesh([Device("server", computes=False), Device("a"), Device("b")]))).route,
        )
    with pytest.raises(InvalidProblem, match="must start at 0"):
        place(base(), [Stage("a", 1, 2)])
    with pytest.raises(InvalidProblem, match="'c' is not in the cluster"):
        place(base(), [Stage("c", 0, 2)])


def test_memory_counts_activations_and_buffers() -> None:
    problem = base(
        block_memory=[10, 20],
        block_activation=[5, 7],
        stage_memory=3,
        buffers=Buffers(receive=2, send=2, input=1, output=1),
    )
    roomy = replace(problem, cluster=mesh([Device("server", computes=False), Device("a"), Device("b")]))
    split = place(roomy, [Stage("a", 0, 1), Stage("b", 1, 2)]).route
    assert evaluate(roomy, split).memory == {
        "a": 10 + 5 + 3 + 1 * 1000 + 3 * 2000,
        "b": 20 + 7 + 3 + 3 * 2000 + 3 * 100,
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"boundary_bytes": [1.0]},
        {"boundary_bytes": [1.0, -1.0, 1.0]},
        {"block_memory": [1]},
        {"source": "nobody"},
        {"block_seconds": {"a": [1.0]}},
        {"block_seconds": {"nobody": [1.0, 1.0]}},
        {"block_seconds": {"a": [math.nan, 1.0]}},
        {"codecs": []},
        {"codecs": [CodecCost("x", ratio=0.0)]},
        {"max_stages": 0},
        {"pins": Pins(blocks={7: "a"})},
        {"pins": Pins(banned=["server"])},
    ],
)
def test_contradictions_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidProblem):
        solve(base(**changes))


def test_cluster_refuses_contradictions() -> None:
    for devices, links in (
        ([Device("a"), Device("a")], []),
        ([Device("a")], [Link("a", "b", 1.0)]),
        ([Device("a"), Device("b")], [Link("a", "b", 0.0)]),
        ([Device("a"), Device("b")], [Link("a", "b", 1.0), Link("a", "b", 2.0)]),
        ([Device("a"), Device("b")], [Link("a", "b", 1.0, -1.0)]),
    ):
        with pytest.raises(InvalidProblem):
            Cluster(devices, links)


def test_giving_up_is_not_called_impossible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.solver.beam", lambda *_args, **_more: None)
    with pytest.raises(NoRoute, match="none is proved impossible") as caught:
        solve(base(stages_per_device=None), "throughput", labels=0)
    assert caught.value.limit == "effort"


def _many(blocks: int) -> Problem:
    """Eight equal devices, every two joined: more ways through them than a search can look at."""
    names = [f"box{number}" for number in range(8)]
    return Problem(
        cluster=mesh([Device("server", computes=False), *map(Device, names)]),
        source="server",
        sink="server",
        block_seconds={name: [0.01] * blocks for name in names},
        block_memory=[1] * blocks,
        boundary_bytes=[300_000] * (blocks + 1),
    )


def test_a_placement_on_many_devices_is_completed_and_proved() -> None:
    stages = [Stage(f"box{number}", number, number + 1) for number in range(6)]
    found = place(_many(6), stages, "throughput")
    assert found.optimal
    assert list(found.route.stages) == stages


def test_a_search_that_gives_up_still_has_the_fastest_route() -> None:
    stages = [Stage("box0", 0, 2), Stage("box1", 2, 4), Stage("box0", 4, 6)]
    found = place(replace(_many(6), stages_per_device=None), stages, "throughput", labels=10)
    assert list(found.route.stages) == stages
    assert found.bound <= found.value


def test_an_error_bound_with_many_codecs_on_many_devices_ends_with_a_plan() -> None:
    problem = _many(5)
    names = [device.name for device in problem.cluster.devices]
    codecs = [CodecCost("raw")]
    for number in range(1, 13):
        seconds = {name: [0.001 / number] * 6 for name in names}
        codecs.append(CodecCost(f"c{number}", 1.0 + number / 4, seconds, seconds, error=number / 10))
    found = solve(replace(problem, codecs=codecs), Objective("throughput", max_error=0.55), labels=200)
    assert found.error <= 0.55
    assert found.bound <= found.value
