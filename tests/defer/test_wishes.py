"""Objectives, bounds, weights and rules: what is asked for is kept, and what cannot be is one clear sentence."""

import math
from typing import Any

import msgspec
import pytest

from defer import errors, units
from defer.documents import Plan, decode, encode
from defer.documents.plan import PlanShare
from defer.planning import make_plan
from defer.wishes import Limits, Rules, Tie, parse_bound, parse_tie, parse_weights
from tests.defer.plan_fixtures import CLUSTER_TOML, a_chain, a_cluster, a_device, a_plan, a_profile

PRICED = CLUSTER_TOML.replace(
    'memory = "4 GiB"', 'memory = "4 GiB"\nprice = 3.6\npower = "30 W"\nidle_power = "10 W"'
).replace('memory = "2 GiB"', 'memory = "2 GiB"\nprice = 0.36\npower = "4 W"\nidle_power = "3 W"')
"""Jetson: 1e-3 per busy second and 20 W; nano: 1e-4 and 1 W. Nano is slower and cheaper."""


def slow_nano() -> object:
    return a_profile(jetson=a_device((0.01, 0.02, 0.03)), nano=a_device((0.04, 0.08, 0.12)))


def devices(plan: Plan) -> list[str]:
    return [stage.device for stage in plan.stages]


def test_cost_and_energy_by_hand() -> None:
    """All on nano: 0.2405 busy seconds at 1e-4 and 1 W; on jetson: 0.0605 at 1e-3 and 20 W."""
    cluster, profile = a_cluster(PRICED), slow_nano()
    for objective in ("cost", "energy"):
        plan = make_plan(a_chain(), cluster, profile, objective=objective, codec="raw")
        assert devices(plan) == ["nano"]
        assert plan.cost == pytest.approx(0.2405e-4)
        assert plan.energy_j == pytest.approx(0.2405)
        assert plan.value == (plan.cost if objective == "cost" else plan.energy_j) == plan.bound
        assert plan.optimal
    fast = make_plan(a_chain(), cluster, profile, codec="raw")
    assert devices(fast) == ["jetson"]
    assert (fast.cost, fast.energy_j) == (pytest.approx(0.0605e-3), pytest.approx(1.21))
    assert fast.alternatives["nano"].cost == pytest.approx(0.2405e-4)


def test_least_cost_under_a_latency_bound_takes_the_fast_device() -> None:
    cluster, profile = a_cluster(PRICED), slow_nano()
    plan = make_plan(a_chain(), cluster, profile, objective="cost", limits=Limits(latency=0.2))
    assert plan.latency_s <= 0.2
    assert "jetson" in devices(plan)
    assert plan.limits == {"latency": 0.2}
    with pytest.raises(errors.NoRoute, match=r"no plan keeps the latency bound of 10 ms"):
        make_plan(a_chain(), cluster, profile, objective="cost", limits=Limits(latency=0.01))


def test_weights_are_a_knob_between_delay_and_cost() -> None:
    cluster, profile = a_cluster(PRICED), slow_nano()

    def weighted(cost: float) -> Plan:
        limits = Limits(weights={"latency": 1.0, "cost": cost})
        return make_plan(a_chain(), cluster, profile, objective="weighted", limits=limits)

    quick, cheap = weighted(0.0), weighted(1e6)
    assert devices(quick) == ["jetson"]
    assert devices(cheap) == ["nano"]
    assert cheap.value == pytest.approx(cheap.latency_s + 1e6 * cheap.cost)
    assert cheap.weights == {"latency": 1.0, "cost": 1e6}


def test_pinned_and_forbidden_blocks_and_excluded_devices() -> None:
    chain, cluster, profile = a_chain(), a_cluster(), a_profile()
    assert devices(make_plan(chain, cluster, profile)) == ["jetson", "nano"]
    pinned = make_plan(chain, cluster, profile, rules=Rules(pinned=(Tie(2, 3, "jetson"),)))
    assert devices(pinned) == ["jetson"]
    forbidden = make_plan(chain, cluster, profile, rules=Rules(forbidden=(Tie(0, None, "jetson"),)))
    assert devices(forbidden) == ["nano"]
    excluded = make_plan(chain, cluster, profile, rules=Rules(excluded=("jetson",)))
    assert "jetson" not in excluded.devices
    with pytest.raises(errors.NoRoute):
        make_plan(chain, cluster, profile, rules=Rules(excluded=("jetson", "nano")))


@pytest.mark.parametrize(
    ("rules", "error", "what"),
    [
        (Rules(pinned=(Tie(0, 9, "nano"),)), errors.UsageError, "no blocks 0:9 in a chain of 3"),
        (Rules(pinned=(Tie(0, 1, "desk"),)), errors.UnknownDevice, "computes nothing"),
        (Rules(forbidden=(Tie(0, 1, "pi"),)), errors.UnknownDevice, "no device 'pi'"),
        (
            Rules(pinned=(Tie(0, 2, "nano"), Tie(1, 2, "jetson"))),
            errors.UsageError,
            "pinned to 'nano' and to 'jetson'",
        ),
        (Rules(excluded=("desk",)), errors.UsageError, "every request starts"),
        (Rules(replicas=True), errors.UsageError, "only raise the throughput"),
    ],
)
def test_rules_that_cannot_be(rules: Rules, error: type[errors.DeferError], what: str) -> None:
    with pytest.raises(error, match=what) as caught:
        make_plan(a_chain(), a_cluster(), rules=rules)
    assert caught.value.hint


def test_a_weighted_objective_needs_weights_and_no_other_takes_them() -> None:
    with pytest.raises(errors.UsageError, match="needs weights"):
        make_plan(a_chain(), a_cluster(), objective="weighted")
    with pytest.raises(errors.UsageError, match="needs weights"):
        make_plan(a_chain(), a_cluster(), limits=Limits(weights={"cost": 1.0}))


def test_replicas_keep_ties_and_bounds_and_are_explained() -> None:
    text = CLUSTER_TOML + '\n[[device]]\nname = "third"\naddress = "127.0.0.1:7630"\n'
    equal = {name: a_device((0.001, 0.4, 0.001)) for name in ("jetson", "nano", "third")}
    cluster, profile = a_cluster(text), a_profile(**equal)
    asked: dict[str, Any] = {"objective": "throughput", "codec": "raw"}
    free = make_plan(a_chain(), cluster, profile, **asked, rules=Rules(replicas=True), advice=True)
    assert free.advice is not None
    assert free.advice.what_ifs[0].gain > 0
    assert free.advice.binding == ()
    rules = Rules(replicas=True, forbidden=(Tie(0, None, "third"),))
    tied = make_plan(a_chain(), cluster, profile, **asked, rules=rules, advice=True)
    assert all(stage.device != "third" for _, leg in tied.legs for stage in leg.stages)
    assert tied.period_s > free.period_s
    assert tied.advice is not None
    assert tied.advice.binding == ("pins",)
    latency = 1.001 * make_plan(a_chain(), cluster, profile, codec="raw").latency_s
    fast = make_plan(
        a_chain(), cluster, profile, **asked, rules=Rules(replicas=True), limits=Limits(latency=latency)
    )
    assert fast.latency_s <= latency
    assert fast.period_s >= free.period_s


def test_replicas_lower_the_period_and_the_plan_carries_every_route() -> None:
    """Two blocks cannot be divided over three equal devices better than one each, and two for the heavy one."""
    text = CLUSTER_TOML + '\n[[device]]\nname = "third"\naddress = "127.0.0.1:7630"\n'
    equal = {name: a_device((0.001, 0.4, 0.001)) for name in ("jetson", "nano", "third")}
    cluster, profile = a_cluster(text), a_profile(**equal)
    single = make_plan(a_chain(), cluster, profile, objective="throughput", codec="raw")
    plan = make_plan(
        a_chain(), cluster, profile, objective="throughput", codec="raw", rules=Rules(replicas=True)
    )
    assert single.shares == ()
    assert len(plan.shares) >= 2
    assert math.isclose(sum(share.fraction for share in plan.shares), 1.0)
    assert plan.period_s < 0.6 * single.period_s
    assert plan.value == plan.period_s
    # Every device is busy for at most the period, in the mean over the routes.
    assert max(load.busy_s for load in plan.device_loads) <= plan.period_s * (1 + 1e-9)
    assert decode(Plan, encode(plan), "plan.json") == plan
    broken = msgspec.structs.replace(plan, shares=plan.shares[:1])
    with pytest.raises(errors.InvalidDocument, match="add up to 1"):
        broken.problems()


def test_half_duplex_makes_both_ways_share_the_period() -> None:
    """1 MB in and 1 MB out of jetson: 80 ms each way; together they keep one medium busy for 160 ms."""
    link = '\n[[link]]\nbetween = ["desk", "jetson"]\nbandwidth = "100 Mbit/s"\ndelay = "0 ms"\n'
    chain = a_chain(nbytes=(1_000_000, 500_000, 250_000, 1_000_000))
    rules = Rules(excluded=("nano",))
    full = make_plan(chain, a_cluster(CLUSTER_TOML + link), objective="throughput", rules=rules)
    half = make_plan(
        chain, a_cluster(CLUSTER_TOML + link + "half_duplex = true\n"), objective="throughput", rules=rules
    )
    assert full.period_s == pytest.approx(0.080)
    assert half.period_s == pytest.approx(0.160)
    assert half.bottleneck == "medium desk <-> jetson"


def test_encryption_takes_both_ends_their_time() -> None:
    link = '\n[[link]]\nbetween = ["desk", "jetson"]\nbandwidth = "100 Mbit/s"\ndelay = "0 ms"\n'
    rules = Rules(excluded=("nano",))
    text = CLUSTER_TOML.replace("computes = false", 'computes = false\nencryption = "100 MB/s"')
    text = text.replace('memory = "4 GiB"', 'memory = "4 GiB"\nencryption = "50 MB/s"')
    plain = make_plan(a_chain(), a_cluster(text + link), rules=rules)
    coded = make_plan(a_chain(), a_cluster(text + link + "encrypted = true\n"), rules=rules)
    assert coded.latency_s - plain.latency_s == pytest.approx(1_004_000 * (1 / 100e6 + 1 / 50e6))
    assert not any("encryption" in note for note in coded.notes)
    unsaid = make_plan(a_chain(), a_cluster(CLUSTER_TOML + link + "encrypted = true\n"), rules=rules)
    assert any("encryption is assumed to take no time on desk, jetson" in note for note in unsaid.notes)


def test_loads_say_what_every_device_and_link_has_to_do() -> None:
    plan = make_plan(a_chain(), a_cluster(), a_profile())
    loads = {load.name: load for load in plan.device_loads}
    assert list(loads) == ["jetson", "nano", "desk"]
    assert loads["nano"].busy_s == pytest.approx(0.0055 + 0.001)  # its stage, and decoding
    assert loads["jetson"].memory_bytes == 4 << 30
    assert loads["jetson"].used_bytes == plan.stages[0].memory_bytes
    links = {(link.source, link.target): link for link in plan.link_loads}
    assert links["jetson", "nano"].wire_bytes == 125_000
    assert links["nano", "jetson"].wire_bytes == 0  # declared, and unused
    assert links["nano", "desk"].wire_bytes == 4_000


def test_advice_names_what_binds_and_what_would_gain() -> None:
    text = CLUSTER_TOML.replace("4 GiB", "42 MiB")
    plan = make_plan(a_chain(weight_bytes=2 << 20), a_cluster(text), advice=True)
    assert plan.advice is not None
    assert "device memory" in plan.advice.binding
    changes = {each.change: each.gain for each in plan.advice.what_ifs}
    assert any(change.startswith("one more device like") for change in changes)
    assert any(change.startswith("link ") and "twice as fast" in change for change in changes)
    assert not any("(results)" in change for change in changes)
    gains = [each.gain for each in plan.advice.what_ifs]
    assert gains == sorted(gains, reverse=True)
    assert make_plan(a_chain(), a_cluster()).advice is None


def test_value_cannot_contradict_the_predictions() -> None:
    plan = msgspec.structs.replace(a_plan(), objective="throughput", value=9.9)
    assert plan.value == plan.period_s


def test_a_plan_of_several_routes_is_a_plan_per_route() -> None:
    plan = a_plan()
    assert plan.legs == ((1.0, plan),)
    half = PlanShare(fraction=0.5, stages=plan.stages, transfers=plan.transfers)
    assert msgspec.structs.replace(plan, shares=(half, half)).legs == ((0.5, plan), (0.5, plan))


# -------------------------------------------------------------------------------------------------------- as text


def test_wishes_as_text() -> None:
    assert parse_weights("latency=1, cost=0.2,throughput=0") == {"latency": 1.0, "cost": 0.2, "period": 0.0}
    assert parse_tie("--pin", "0:4=jetson") == Tie(0, 4, "jetson")
    assert parse_tie("--pin", "4:=jetson") == Tie(4, None, "jetson")
    assert parse_tie("--pin", "7=jetson") == Tie(7, 8, "jetson")
    assert parse_bound("--max-latency", "50 ms", units.DURATION) == 0.05
    assert parse_bound("--max-energy", "2 J", units.ENERGY) == 2.0
    assert parse_bound("--max-cost", "0.5", None) == 0.5


@pytest.mark.parametrize("text", ["", "latency", "latency=x", "time=1", "latency=-1", "cost=inf", "cost=0"])
def test_bad_weights(text: str) -> None:
    with pytest.raises(errors.UsageError):
        parse_weights(text)


@pytest.mark.parametrize("text", ["", "jetson", "0:4", "a:4=jetson", ":4=jetson", "0:4="])
def test_bad_ties(text: str) -> None:
    with pytest.raises(errors.UsageError, match="does not say"):
        parse_tie("--pin", text)


@pytest.mark.parametrize("text", ["", "50", "-1 ms", "0 ms", "soon"])
def test_bad_bounds(text: str) -> None:
    with pytest.raises(errors.UsageError, match="--max-latency"):
        parse_bound("--max-latency", text, units.DURATION)
