"""Re-planning: kept when nothing or too little is gained, changed when it pays or when the plan cannot run any more."""

from typing import Any

import msgspec
import pytest

from defer import errors
from defer.documents import Cluster, CostProfile
from defer.planning import make_plan, parse_placement
from defer.replanning import Prospect, replan
from defer.wishes import Limits, Rules
from tests.defer.plan_fixtures import CLUSTER_TOML, a_chain, a_cluster, a_device, a_profile


def without(name: str) -> Cluster:
    cluster = a_cluster()
    return msgspec.structs.replace(
        cluster, devices=tuple(device for device in cluster.devices if device.name != name), links=()
    )


def test_an_unchanged_cluster_keeps_its_plan() -> None:
    plan = make_plan(a_chain(), a_cluster(), a_profile())
    found = replan(plan, a_chain(), a_cluster(), a_profile())
    assert not found.change
    assert "kept" in found.reason
    assert found.plan.stages == plan.stages
    assert (found.moved_bytes, found.gain) == (0, 0.0)


def test_a_lost_device_changes_the_plan() -> None:
    plan = make_plan(a_chain(), a_cluster(), a_profile())
    assert "nano" in plan.devices
    found = replan(plan, a_chain(), without("nano"), a_profile())
    assert found.change
    assert "can no longer run" in found.reason
    assert [stage.device for stage in found.plan.stages] == ["jetson"]
    # Jetson holds blocks 0 and 1; block 2 with its weights is sent over the dispatcher's 100 Mbit/s.
    assert found.moved_bytes == 1_010_000
    assert found.load_s == pytest.approx(1_010_000 / 12.5e6)


def slower_jetson() -> CostProfile:
    return a_profile(jetson=a_device((0.5, 0.5, 0.5)), nano=a_device((0.040, 0.080, 0.005)))


def test_a_gain_that_does_not_pay_within_the_horizon_keeps_the_plan() -> None:
    plan = make_plan(a_chain(), a_cluster(), a_profile())
    slow = Prospect(horizon=10, rate=1, load_bandwidth=1e5)
    kept = replan(plan, a_chain(), a_cluster(), slower_jetson(), prospect=slow)
    assert not kept.change
    assert kept.price == kept.load_s > kept.gain > 0
    assert [stage.device for stage in kept.plan.stages] == ["jetson", "nano"]
    assert kept.plan.latency_s > plan.latency_s  # as it is predicted now
    changed = replan(
        plan, a_chain(), a_cluster(), slower_jetson(), prospect=Prospect(horizon=3600, load_bandwidth=1e5)
    )
    assert changed.change
    assert [stage.device for stage in changed.plan.stages] == ["nano"]
    assert changed.gain > changed.price == changed.load_s


def priced(**prices: float) -> Cluster:
    """Money per second of each device."""
    cluster = a_cluster()
    devices = tuple(msgspec.structs.replace(d, price=prices.get(d.name, 0.0)) for d in cluster.devices)
    return msgspec.structs.replace(cluster, devices=devices)


def test_money_is_weighed_against_what_the_loading_devices_cost() -> None:
    plan = make_plan(a_chain(), a_cluster(), a_profile(), rules=Rules(excluded=("nano",)))
    dear = priced(jetson=36.0, nano=0.36)
    prospect = Prospect(horizon=100, rate=1, load_bandwidth=1e5)
    changed = replan(plan, a_chain(), dear, a_profile(), objective="cost", prospect=prospect)
    assert changed.change
    assert [stage.device for stage in changed.plan.stages] == ["nano"]
    assert changed.price == pytest.approx(changed.load_s * dear.device("nano").price_per_s)
    assert changed.gain > changed.price
    few = Prospect(horizon=10, rate=1e-3, load_bandwidth=1e3)
    kept = replan(plan, a_chain(), dear, a_profile(), objective="cost", prospect=few)
    assert not kept.change
    assert "of money" in kept.reason


def test_a_small_gain_is_not_worth_a_change() -> None:
    plan = make_plan(a_chain(), a_cluster(), slower_jetson())
    nearly = a_profile(jetson=a_device((0.039, 0.079, 0.0049)), nano=a_device((0.040, 0.080, 0.005)))
    found = replan(plan, a_chain(), a_cluster(), nearly, prospect=Prospect(horizon=1e9))
    assert not found.change
    assert "less than 5.0%" in found.reason


def test_a_bound_that_the_running_plan_breaks_changes_it() -> None:
    plan = make_plan(a_chain(), a_cluster(), a_profile(), rules=Rules(excluded=("jetson",)))
    found = replan(plan, a_chain(), a_cluster(), a_profile(), limits=Limits(latency=0.15))
    assert found.change
    assert found.plan.latency_s <= 0.15


def test_finer_chains_know_the_running_plans_cuts() -> None:
    coarse = a_chain(flops=(3_000_000_000, 3_000_000_000), nbytes=(1_000_000, 250_000, 4_000), ops=(0, 5, 9))
    plan = make_plan(coarse, a_cluster())
    found = replan(plan, a_chain(), a_cluster())
    assert not found.change
    odd = a_chain(flops=(3_000_000_000, 3_000_000_000), nbytes=(1_000_000, 250_000, 4_000), ops=(0, 4, 9))
    cut = make_plan(odd, a_cluster(), placement=parse_placement("jetson=0:1,nano=1:", a_cluster(), 2))
    with pytest.raises(errors.InvalidDocument, match="cuts at op 4"):
        replan(cut, a_chain(), a_cluster())


def equal_devices() -> tuple[Cluster, CostProfile]:
    """Three of a kind, and a middle block that takes nearly all the time."""
    cluster = a_cluster(CLUSTER_TOML + '\n[[device]]\nname = "third"\naddress = "127.0.0.1:7630"\n')
    return cluster, a_profile(**{name: a_device((0.001, 0.4, 0.001)) for name in ("jetson", "nano", "third")})


def test_replicas_are_weighed_as_a_whole() -> None:
    cluster, profile = equal_devices()
    asked: dict[str, Any] = {"objective": "throughput", "codec": "raw"}
    single = make_plan(a_chain(), cluster, profile, **asked)
    mixed = make_plan(a_chain(), cluster, profile, **asked, rules=Rules(replicas=True))
    found = replan(single, a_chain(), cluster, profile, **asked, rules=Rules(replicas=True))
    assert found.change
    assert found.plan == mixed
    kept = replan(mixed, a_chain(), cluster, profile, **asked)
    assert not kept.change
    assert kept.plan.shares == mixed.shares
    assert kept.plan.period_s == pytest.approx(mixed.period_s)
    # What the replicas hold is held, whatever route it belongs to.
    slower = a_profile(**{name: a_device((0.001, 4.0, 0.001)) for name in ("jetson", "nano", "third")})
    again = replan(mixed, a_chain(), cluster, slower, **asked, rules=Rules(replicas=True))
    assert not again.change


def test_a_lost_replica_changes_the_plan() -> None:
    cluster, profile = equal_devices()
    asked: dict[str, Any] = {"objective": "throughput", "codec": "raw", "rules": Rules(replicas=True)}
    mixed = make_plan(a_chain(), cluster, profile, **asked)
    left = tuple(device for device in cluster.devices if device.name != "third")
    found = replan(mixed, a_chain(), msgspec.structs.replace(cluster, devices=left), profile, **asked)
    assert found.change
    assert "third" in found.reason
    assert "third" not in {name for _, leg in found.plan.legs for name in leg.devices}


def test_a_plan_with_a_codec_of_its_own_is_priced_with_it() -> None:
    plan = make_plan(a_chain(), a_cluster(), a_profile())
    lossy = tuple(msgspec.structs.replace(each, codec="float16") for each in plan.transfers)
    running = msgspec.structs.replace(plan, transfers=(plan.transfers[0], lossy[1], plan.transfers[2]))
    found = replan(running, a_chain(), a_cluster(), a_profile())
    assert found.change
    assert "'float16' was not measured" in found.reason
    static = make_plan(a_chain(), a_cluster(), codec="lz4")
    assert not replan(static, a_chain(), a_cluster(), codec="lz4").change


def test_the_plan_to_weigh_against_may_be_made_already() -> None:
    plan = make_plan(a_chain(), a_cluster(), slower_jetson())
    best = make_plan(a_chain(), a_cluster(), a_profile())
    found = replan(plan, a_chain(), a_cluster(), a_profile(), best=best)
    assert found.change
    assert found.plan is best


def test_what_cannot_be_weighed_is_refused() -> None:
    plan = make_plan(a_chain(), a_cluster())
    with pytest.raises(errors.UsageError, match="order of the ops"):
        replan(msgspec.structs.replace(plan, order=tuple(range(9))), a_chain(), a_cluster())
    other = msgspec.structs.replace(plan, digest="cd" * 32)
    with pytest.raises(errors.InvalidDocument, match="another model"):
        replan(other, a_chain(), a_cluster())
    with pytest.raises(errors.NoRoute):
        replan(plan, a_chain(), a_cluster(), limits=Limits(latency=1e-6))
