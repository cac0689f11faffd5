"""What is believed to have drifted, how rarely plans change, and what planning makes of a belief."""

from __future__ import annotations

import random
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defer.deployer import Deployment
from defer.dispatcher.drift import BANDS, LEAST, MOST, STALE, Drift, Drifted, Subject, floored
from defer.dispatcher.drifted import (
    Counted,
    PlannedLink,
    blocks_of,
    bytes_between,
    drifted,
    link_ratios,
    path_pairs,
    planned_links,
    planned_run,
    run_between,
    run_ratio,
)
from defer.dispatcher.gauging import typical
from defer.dispatcher.restraint import DOUBLINGS, MEMORY, Demand, Restraint
from defer.dispatcher.widening import compatible, merged
from defer.documents.cluster import Cluster
from defer.documents.profile import LinkProfile
from defer.hops import Layout
from defer.planning import make_plan
from node_agent.messages import PeerRef, TensorSpec
from tests.defer.plan_fixtures import a_chain, a_cluster, a_device, a_profile

A = Subject("device", "a")
LASTING = 10.0


def fed(drift: Drift, ratios: list[float], start: float = 0.0, every: float = 1.0) -> list[Drifted]:
    found = [drift.note(A, ratio, start + every * number) for number, ratio in enumerate(ratios)]
    return [each for each in found if each is not None]


def test_what_lasts_is_believed_and_what_goes_is_forgotten() -> None:
    drift = Drift(LASTING)
    assert fed(drift, [1.0] * 12) == []
    (slower,) = fed(drift, [3.0] * 20, 12.0)
    assert (slower.subject, slower.before, slower.now) == (A, 1.0, 3.0)
    assert "a takes 3 × what was planned" in str(slower)
    assert drift.factors == {A: 3.0}
    (back,) = fed(drift, [1.1] * 20, 32.0)
    assert (back.before, back.now) == (3.0, 1.0)
    assert drift.factors == {}


def test_nothing_is_believed_before_it_has_lasted() -> None:
    drift = Drift(LASTING)
    assert fed(drift, [5.0] * 10) == []
    assert fed(drift, [5.0], 10.0) != []


def test_few_samples_are_none_and_old_ones_do_not_count() -> None:
    drift = Drift(LASTING)
    assert fed(drift, [5.0] * (LEAST - 1), every=LASTING) == []
    assert fed(drift, [5.0] * 3, 2 * STALE * LASTING, LASTING) == []
    # Seldom measured, it takes as many samples as ever, and longer.
    seldom = Drift(LASTING)
    assert len(fed(seldom, [5.0] * LEAST, every=2 * LASTING)) == 1


def test_what_is_no_ratio_is_passed_over() -> None:
    drift = Drift(LASTING)
    assert fed(drift, [0.0, -1.0, float("nan"), float("inf")] * 20) == []


@given(
    st.lists(st.floats(1 / BANDS["device"], BANDS["device"]), min_size=60, max_size=60),
    st.lists(st.booleans(), min_size=60, max_size=60),
    st.floats(1.0, 1000.0),
)
def test_neither_noise_nor_spikes_are_drift(noise: list[float], spikes: list[bool], height: float) -> None:
    """Whatever happens within the band, and whatever happens in every third measurement."""
    drift = Drift(LASTING)
    ratios = [
        each * height if spike and number % 3 == 0 else each
        for number, (each, spike) in enumerate(zip(noise, spikes, strict=True))
    ]
    assert fed(drift, ratios) == []


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.floats(0.0, 0.3), st.floats(0.3, 8.0))
def test_beliefs_settle_under_noise(seed: int, sigma: float, middle: float) -> None:
    """Two of three samples within a third of the middle, the others anywhere: believed once, perhaps corrected."""
    draw = random.Random(seed)
    drift = Drift(LASTING)
    changes = fed(drift, [middle * draw.lognormvariate(0.0, sigma) for _ in range(500)])
    assert len(changes) <= 5


@given(st.lists(st.floats(0.0, 1e4), max_size=300), st.integers(1, 100))
def test_changes_become_rare_however_often_one_asks(gaps: list[float], pause: int) -> None:
    """A question that is always new, asked at any times: what is changed is bounded by time alone."""
    restraint, now, changes = Restraint(float(pause)), 0.0, []
    for number, gap in enumerate(gaps):
        now += gap
        if restraint.asks(number, now, again=True):
            changes.append(now)
            restraint.changed(now)
    for count in range(2, DOUBLINGS + 3):
        for first, last in zip(changes, changes[count - 1 :], strict=False):
            if last - first < MEMORY * pause:
                # The k-th change after another waits 2^(k-1) pauses, so k of them take 2^k - 1 at least.
                assert last - first >= (2 ** (count - 1) - 1) * pause * (1 - 1e-9)


def test_the_same_question_is_asked_again_after_a_pause_where_that_may_help() -> None:
    restraint = Restraint(60.0)
    restraint.settled("as planned", 0.0)
    assert not restraint.asks("as planned", 1e6, again=False)
    assert restraint.asks("slow", 1e6, again=True)
    assert not restraint.asks("slow", 1e6 + 59, again=True)
    assert restraint.asks("slow", 1e6 + 60, again=True)
    restraint.failed(1e6 + 61)
    assert not restraint.asks("slower", 1e6 + 62, again=True)
    assert restraint.asks("slower", 1e6 + 121, again=True)


def test_demand_is_what_was_asked_for_before_something_became_slow() -> None:
    demand = Demand(60.0)
    assert demand.rate == 0.0
    for second in range(30):
        demand.note(10 * second, float(second))
    assert demand.rate == pytest.approx(10.0)
    for second in range(30, 60):
        demand.note(290, float(second))
    assert 4.0 < demand.rate < 6.0
    for second in range(60, 600):
        demand.note(290 + 20 * (second - 60), float(second))
    assert demand.rate == pytest.approx(20.0)


def test_runs_between_looks() -> None:
    before = Counted(10, 10, 1.0, 1000, 500)
    assert run_between(before, Counted(14, 14, 1.8, 1400, 700)) == pytest.approx(0.2)
    assert bytes_between(before, Counted(14, 14, 1.8, 1400, 700)) == 100
    assert run_between(before, before) is None
    assert run_between(before, Counted(14, 11, 1.8, 1400, 700)) is None  # a batch
    assert run_between(before, Counted(2, 2, 0.2, 20, 10)) == pytest.approx(0.1)  # loaded again


def test_under_a_quota_a_run_counts_for_what_it_takes_of_it_or_more_if_it_lasted() -> None:
    before = Counted(10, 10, 1.0, 0, 0, 0.3, 0.2)
    short, long = Counted(14, 14, 1.08, 0, 0, 0.33, 0.2), Counted(14, 14, 1.8, 0, 0, 0.33, 0.2)
    assert run_between(before, short) == pytest.approx(0.03 / 0.2 / 4)
    assert run_between(before, long) == pytest.approx(0.2)
    assert run_between(before, replace(short, loads=1)) is None  # beside a load
    less = Counted(14, 14, 1.08, 0, 0, 0.33, 0.1)  # of the quota, since the last look
    assert run_between(before, less) == pytest.approx(0.03 / 0.1 / 4)
    assert run_between(None, Counted(14, 14, 1.08, 0, 0, 0.33, 0.0)) == pytest.approx(1.08 / 14)


def test_requests_of_another_size_say_nothing_of_a_device() -> None:
    def made(batch: int | str) -> Deployment:
        plan = make_plan(a_chain(), a_cluster(), a_profile())
        inputs = (TensorSpec("x", "float32", (batch, 8)),)
        bound = (TensorSpec("x", "float32", (1, 8)),)
        return Deployment(
            "m", 1, plan, Layout({}, 0, PeerRef("a"), PeerRef("b")), inputs, inputs, bound, 0, {}
        )

    before = Counted(10, 10, 1.0, 320, 500)
    same, larger = Counted(14, 14, 1.8, 320 + 4 * 32, 700), Counted(14, 14, 1.8, 320 + 16 * 32, 700)
    assert typical(made("N"), (before, same))
    assert not typical(made("N"), (before, larger))
    assert not typical(made("N"), None)
    assert typical(made(1), (before, larger))


def test_what_a_stage_was_planned_to_take() -> None:
    profile = a_profile()
    device = msgspec.structs.replace(a_device((0.01, 0.02, 0.03)), cut_seconds=(0.0, 0.002, 0.004, 0.0))
    assert planned_run(device, 1, 3) == pytest.approx(0.051)
    assert planned_run(a_device((0.01, 0.02, 0.03)), 0, 3) == pytest.approx(0.06)
    assert blocks_of((3, 9), profile) == (1, 3)
    assert blocks_of((4, 9), profile) is None


def test_short_runs_differ_without_meaning_it() -> None:
    assert run_ratio(0.4e-3, 0.05e-3) == 1.0
    assert run_ratio(0.1, 0.05) == pytest.approx(2.0)
    assert run_ratio(0.1, 0.05e-3) == pytest.approx(2000.0)


def declared(cluster: Cluster, source: str, target: str) -> tuple[float | None, float | None]:
    (link,) = [each for each in cluster.directed_links() if (each.source, each.target) == (source, target)]
    return link.bandwidth, link.delay


def test_planning_follows_what_is_believed() -> None:
    cluster, profile, chain = a_cluster(), a_profile(), a_chain()
    assert drifted(cluster, profile, {}) == (cluster, profile)
    alone = make_plan(chain, cluster, profile)
    assert [stage.device for stage in alone.stages] == ["jetson", "nano"]
    factors = {
        Subject("device", "jetson"): 10.0,
        Subject("bandwidth", "desk", "nano"): 2.0,
        Subject("delay", "jetson", "nano"): 3.0,
    }
    slowed, measured = drifted(cluster, profile, factors)
    assert measured.devices["jetson"].block_seconds == pytest.approx((0.1, 0.2, 0.3))
    assert measured.devices["nano"] == profile.devices["nano"]
    assert declared(slowed, "desk", "nano") == pytest.approx((12.5e6 / 2, 0.001))
    assert declared(slowed, "jetson", "nano") == pytest.approx((12.5e6, 0.010))
    assert declared(slowed, "nano", "jetson") == pytest.approx((12.5e6, 0.002))
    assert [stage.device for stage in make_plan(chain, slowed, measured).stages] == ["nano"]


def test_links_as_planned_and_as_probed() -> None:
    links = planned_links(a_cluster(), a_profile())
    assert links["jetson", "nano"] == PlannedLink("jetson", "nano", 12.5e6, 0.002, True)
    assert not links["desk", "nano"].declared  # the other direction was measured
    ends = Subject("bandwidth", "jetson", "nano")

    def ratio(link: PlannedLink, bandwidth: float, traffic: float = 0.0) -> float:
        return dict(link_ratios(link, bandwidth, link.delay, traffic))[
            Subject("bandwidth", link.source, link.target)
        ]

    assert dict(link_ratios(links["jetson", "nano"], 2.5e6, 0.002)) == {
        ends: pytest.approx(5.0),
        Subject("delay", "jetson", "nano"): 1.0,
    }
    assert ratio(links["jetson", "nano"], 100e6) == 1.0  # what is declared is a bound
    assert ratio(links["desk", "nano"], 100e6) == pytest.approx(0.125)
    assert ratio(links["desk", "nano"], 6.25e6, traffic=6.25e6) == 1.0  # the rest of it is in use
    assert ratio(links["desk", "nano"], 2e6, traffic=4.25e6) == pytest.approx(2.0)
    fast = PlannedLink("a", "b", 1e9, 1e-4, False)
    assert ratio(fast, 300e6) == 1.0  # a small probe cannot tell
    assert ratio(PlannedLink("a", "b", 12.5e6, 1e-4, False, 2 / 12.5e6), 12.5e6 / 3) == pytest.approx(1.0)


def test_differences_below_the_floor_hardly_count() -> None:
    assert floored(0.0004, 0.0002, 0.0002) == pytest.approx(1.5)
    assert floored(0.04, 0.02, 0.0002) == pytest.approx(2.0, rel=0.02)


def test_the_links_of_a_plan() -> None:
    plan = make_plan(a_chain(), a_cluster(), a_profile())
    assert path_pairs(plan) == [("desk", "jetson"), ("jetson", "nano"), ("nano", "desk")]


def test_few_samples_are_kept() -> None:
    drift = Drift(LASTING)
    fed(drift, [1.0] * 10_000)
    assert len(drift._samples[A]) <= MOST


def test_profiles_of_the_same_blocks_become_one() -> None:
    first, second = a_profile(a=a_device((1.0, 2.0, 3.0))), a_profile(b=a_device((3.0, 2.0, 1.0)))
    faster = LinkProfile.of("desk", "jetson", 99e6, 0.001)
    second = msgspec.structs.replace(
        second, links=(faster,), codecs={"lz4": (0.5, 3.0, 1.0, 1.0), "zfp": (2.0,) * 4}
    )
    both = merged(first, second)
    assert {name: device.block_seconds[0] for name, device in both.devices.items()} == {"a": 1.0, "b": 3.0}
    assert {(link.source, link.target): link for link in both.links}["desk", "jetson"] == faster
    assert len(both.links) == len(first.links)
    assert both.codecs == {"lz4": (0.5, 2.0, 1.0, 1.0), "zfp": (2.0,) * 4}
    assert compatible(first, first)
    assert compatible(first, merged(first, msgspec.structs.replace(second, links=())))
    assert not compatible(first, both)  # a link has another speed
    assert not compatible(first, a_profile(a=a_device((1.0, 2.0, 4.0))))
