"""What an operator asks afterwards: change the plan or not, and what limits it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router import (
    Change,
    Cluster,
    CodecCost,
    Device,
    InvalidProblem,
    Link,
    NoRoute,
    Objective,
    Pins,
    Problem,
    RouterError,
    Share,
    advise,
    predict,
    solve,
    weigh,
)


def problem(slow: float = 0.1, memory: int | None = None) -> Problem:
    names = ["server", "a", "b"]
    links = [Link(u, v, 1e6, 0.001) for u in names for v in names if u != v]
    devices = [Device("server", computes=False), Device("a", memory), Device("b", memory)]
    return Problem(
        Cluster(devices, links),
        "server",
        "server",
        {"a": [0.1, 0.1], "b": [slow, slow]},
        [1000, 1000, 1000],
        block_memory=[1000, 1000],
    )


def test_a_change_waits_for_a_gain_that_pays() -> None:
    goal = Objective("throughput")
    running = Share(1.0, solve(problem(), goal).route)
    faster = replace(problem(), block_seconds={"a": [0.1, 0.1], "b": [0.01, 0.02]})

    def decide(changed: Problem, need: dict[str, float], horizon: float) -> Change:
        before, after = predict(changed, [running], goal).value, solve(changed, goal).value
        return weigh(changed.cluster, goal, before, after, need, load_bandwidth=100.0, horizon=horizon)

    short = decide(faster, {"b": 1000.0}, 1.0)
    assert not short.change
    assert "loading takes" in short.reason
    long = decide(faster, {"b": 1000.0}, 1000.0)
    assert long.change
    assert long.load_seconds == 10.0
    assert long.moved_bytes == 1000.0
    assert long.gain == pytest.approx(1000 * (1 - 0.03 / 0.1))
    barely = replace(problem(), block_seconds={"a": [0.1, 0.098], "b": [0.1, 0.098]})
    kept = decide(barely, {}, 1e9)
    assert not kept.change
    assert "less than" in kept.reason
    with pytest.raises(InvalidProblem):
        weigh(barely.cluster, goal, 1.0, 1.0, {}, load_bandwidth=0.0, horizon=1.0)


def test_gains_and_prices_are_told_in_units_that_fit() -> None:
    def told(objective: str, before: float, bandwidth: float) -> str:
        goal = Objective(objective)
        need = {"b": 1000.0}
        change = weigh(
            problem().cluster,
            goal,
            before,
            before / 2,
            need,
            load_bandwidth=bandwidth,
            horizon=10.0,
            rate=0.1,
        )
        return change.reason

    assert "50.0%, and 7.86 ms over 1 request" in told("latency", 0.015728, 1e9)
    assert "expected to take 1 µs" in told("latency", 0.015728, 1e9)
    assert "gains 500 µs over 1 request, loading takes 1 s" in told("latency", 0.001, 1e3)
    assert "and 5 s in 10 s, where loading was expected to take 999 ns" in told("throughput", 0.1, 1.001e9)


def test_loading_is_charged_once_whatever_times_are_weighed() -> None:
    both = Objective("weighted", {"latency": 1.0, "period": 1.0})
    found = weigh(problem().cluster, both, 2.0, 1.0, {"b": 500.0}, load_bandwidth=100.0, horizon=60.0)
    assert found.price == pytest.approx(5.0)


def test_a_plan_whose_device_is_gone_cannot_be_predicted() -> None:
    running = Share(1.0, solve(problem(), "throughput").route)
    lost = problem()
    left = [d for d in lost.cluster.devices if d.name != "b"]
    links = [k for k in lost.cluster.links if "b" not in (k.source, k.target)]
    after = replace(lost, cluster=Cluster(left, links), block_seconds={"a": [0.1, 0.1]})
    with pytest.raises(RouterError):
        predict(after, [running], Objective("throughput"))


def test_a_mix_is_predicted_as_a_whole() -> None:
    found = solve(problem(), "throughput")
    other = replace(problem(), pins=Pins(blocks={0: "b", 1: "a"}))
    shares = [Share(0.5, found.route), Share(0.5, solve(other, "throughput").route)]
    mixed = predict(problem(), shares, Objective("throughput"))
    assert mixed.shares == tuple(shares)
    assert mixed.period == pytest.approx(0.1)
    with pytest.raises(NoRoute, match="period"):
        predict(problem(), shares, Objective("throughput", max_period=0.05))


def test_advice_names_bottleneck_limit_and_gain() -> None:
    tight = problem(slow=1.0, memory=1500)
    found = solve(tight, "throughput")
    advice = advise(tight, found, "throughput")
    assert advice.bottleneck == "device b"
    assert advice.binding == ("device memory",)
    best = advice.what_ifs[0]
    assert best.change == "one more device like a"
    assert best.value == pytest.approx(0.1)
    assert best.gain == pytest.approx(0.9)


def test_advice_on_links_codecs_and_bounds() -> None:
    thin = problem()
    links = [
        replace(k, bandwidth=1e3) if (k.source, k.target) == ("a", "b") else k for k in thin.cluster.links
    ]
    thin = replace(thin, cluster=replace(thin.cluster, links=links), block_memory=(), max_stages=2)
    thin = replace(
        thin, block_seconds={"a": [0.1, 9.0], "b": [9.0, 0.1]}, codecs=[CodecCost("raw"), CodecCost("z", 1.5)]
    )
    found = solve(thin, Objective("latency", max_period=0.9))
    advice = advise(thin, found, Objective("latency", max_period=0.9))
    changes = {each.change: each.gain for each in advice.what_ifs}
    assert changes["codec raw everywhere"] < 0 or "codec raw everywhere" not in changes
    assert changes["codec z everywhere"] == pytest.approx(0.0)
    assert advice.binding == ()


@pytest.mark.parametrize(("rate", "change"), [(0.4, True), (0.8, False), (2.0, False)])
def test_what_carries_less_than_comes_does_not_take_the_place_of_more(rate: float, change: bool) -> None:
    cluster = Cluster([Device("a")], [])
    goal, periods = Objective("latency"), (1.0, 2.0)
    found = weigh(cluster, goal, 5.0, 1.0, {}, load_bandwidth=1.0, horizon=9.0, rate=rate, periods=periods)
    assert found.change is change
    assert (
        change or found.reason == f"kept: a new plan carries 0.5 requests/s of {rate:.4g}, the running one 1"
    )
