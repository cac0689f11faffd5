"""What a model needs, which devices are relied on, and which cluster is left to plan with."""

from __future__ import annotations

import time
from pathlib import Path
from typing import cast
from unittest.mock import Mock

import msgspec
import pytest

import models
from defer.dispatcher.mending import Remedy, Serving, devices_of_plan, indispensable, remedy
from defer.dispatcher.planner import Planner
from defer.dispatcher.planner_process import Answers, without
from defer.dispatcher.questions import Foresee, Foreseen, Topic
from defer.dispatcher.recovery import Recovery
from defer.dispatcher.trust import LONGEST_S, MEMORY_S, Trust
from defer.documents.cluster import Cluster, loads_cluster
from defer.documents.plan import Plan, PlanShare
from defer.errors import DeferError, NoRoute
from defer.parts import signature_of
from defer.planning import make_plan, parse_placement
from partitioner import analyze

TEXT = """
[network]
bandwidth = "1 Gbit/s"
delay = "0.1 ms"
[[device]]
name = "a"
address = "127.0.0.1:7700"
[[device]]
name = "b"
address = "127.0.0.1:7710"
[[device]]
name = "c"
address = "127.0.0.1:7720"
[[link]]
between = ["b", "c"]
bandwidth = "10 Mbit/s"
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save("tiny_residual", tmp_path_factory.mktemp("model") / "m.onnx")


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return loads_cluster(TEXT)


@pytest.fixture(scope="module")
def home(model: Path, cluster: Cluster) -> Plan:
    chain = analyze(model)
    placement = parse_placement("a=0:4,b=4:", cluster, len(chain.blocks))
    return make_plan(chain, cluster, placement=placement)


def asked(model: Path, cluster: Cluster, parts: Path, *lost: tuple[str, ...]) -> Foresee:
    return Foresee(
        topic=Topic(model=str(model), shapes={}, blocks=64, calibration="", parts=str(parts)),
        cluster=cluster,
        profile=None,
        objective="latency",
        without=lost,
    )


def answered(question: Foresee) -> tuple[Foreseen, ...]:
    return cast(tuple[Foreseen, ...], Answers().answer(question))


@pytest.mark.parametrize(
    ("serving", "missing", "wanted"),
    [
        ([(1, True, True)], set(), "none"),
        ([(1, True, True)], {"b"}, "none"),  # it is not known to be lost yet, or no longer
        ([(1, False, True)], set(), "home"),  # an agent restarted
        ([(1, False, True)], {"b"}, "elsewhere"),
        ([(1, False, True)], {"c"}, "home"),
        ([(2, True, False)], {"b"}, "none"),
        ([(2, True, False)], set(), "home"),
        ([(2, False, False)], {"a"}, "elsewhere"),
        ([], set(), "home"),
        ([], {"a"}, "elsewhere"),
    ],
)
def test_what_a_model_needs(
    home: Plan, serving: list[tuple[int, bool, bool]], missing: set[str], wanted: Remedy
) -> None:
    other = msgspec.structs.replace(home, latency_s=99.0)
    given = [Serving(epoch, ready, home if planned else other) for epoch, ready, planned in serving]
    assert remedy(home, given, missing) == wanted


def test_a_plan_with_replicas_needs_all_its_routes(home: Plan) -> None:
    shares = tuple(PlanShare(fraction=0.5, stages=home.stages, transfers=home.transfers) for _ in range(2))
    both = msgspec.structs.replace(home, shares=shares)
    (_, leg), _ = both.legs
    one = Serving(1, True, leg)
    assert remedy(both, [one, one], set()) == "none"
    assert remedy(both, [one], set()) == "home"
    assert remedy(both, [one], {"b"}) == "none"
    assert devices_of_plan(both) == {"a", "b"}


def test_only_what_all_routes_need_is_prepared_for(model: Path, cluster: Cluster) -> None:
    chain = analyze(model)
    over_b, over_c = (
        make_plan(chain, cluster, placement=parse_placement(f"a=0:4,{last}=4:", cluster, len(chain.blocks)))
        for last in "bc"
    )
    routes = [Serving(1, True, over_b), Serving(2, True, over_c)]
    assert indispensable(routes[:1], set()) == {"a", "b"}
    assert indispensable(routes, set()) == {"a"}
    assert indispensable(routes, {"c"}) == {"a", "b"}, "c serves again, but has come and gone"
    assert indispensable(routes, {"b", "c"}) == {"a"}
    assert indispensable([routes[0], Serving(2, False, over_c)], set()) == {"a", "b"}
    assert indispensable([Serving(1, True, None)], set()) == frozenset()


def test_a_device_is_relied_on_again_later_and_later() -> None:
    trust = Trust()
    assert trust.until("a", 0.0) == 0.0
    holds = []
    for now in range(10, 20):
        trust.lost("a", float(now))
        holds.append(trust.until("a", float(now)) - now)
    assert holds == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, LONGEST_S, LONGEST_S, LONGEST_S]
    assert trust.until("b", 19.0) == 19.0
    late = 20 + MEMORY_S
    assert trust.until("a", late) == late


def test_the_cluster_that_is_left(cluster: Cluster) -> None:
    left = without(cluster, {"b"})
    assert left.names == ("a", "c", "dispatcher")
    assert left.links == ()
    at_home = msgspec.structs.replace(
        cluster, dispatcher=msgspec.structs.replace(cluster.dispatcher, device="a")
    )
    kept = without(at_home, {"a"})
    assert (kept.device("a").computes, kept.device("a").has_agent, len(kept.links)) == (False, False, 1)


def test_plans_for_what_is_left_are_cut_and_one_that_cannot_be_says_why(
    model: Path, cluster: Cluster, tmp_path: Path
) -> None:
    one, none = answered(asked(model, cluster, tmp_path, ("a", "b"), ("a", "b", "c")))
    assert one.plan is not None
    assert [stage.device for stage in one.plan.stages] == ["c"]
    (part,) = one.written(tmp_path)
    assert all(path.stat().st_size == ref.nbytes for ref, path in part.files.items())
    assert one.signature == signature_of(analyze(model))
    assert (none.plan, none.code) == (None, "no-route")


@pytest.mark.integration
def test_planning_in_a_process_of_its_own(model: Path, cluster: Cluster, tmp_path: Path) -> None:
    planner = Planner()
    question = asked(model, cluster, tmp_path, ("a", "b"), ("a", "b", "c"))
    assert planner.ask(question, tuple[Foreseen, ...]) == answered(question)
    planner.close()
    with pytest.raises(DeferError, match="shutting down"):
        planner.ask(question, tuple[Foreseen, ...])


def test_a_model_that_could_not_be_mended_is_tried_again_after_a_pause_or_when_other_devices_are_missing(
    home: Plan, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = Mock(plan=home)
    order.name = "model"
    deployments, shell = Mock(orders={"model": order}, served={}, cluster=cluster), Mock()
    shell.call.return_value.result.return_value = ({}, {})
    recovery = Recovery(deployments, Mock(), shell)
    missing = frozenset({"a"})
    tried: list[frozenset[str]] = []
    monkeypatch.setattr(recovery, "missing", lambda **_: missing)

    def fails(*_: object) -> None:
        tried.append(missing)
        raise NoRoute("it does not fit anywhere")

    def look() -> int:
        recovery._look_at_models()
        while recovery._busy:
            time.sleep(0.001)
        return len(tried)

    monkeypatch.setattr(recovery, "_try_to_mend", fails)
    monkeypatch.setattr("defer.dispatcher.unmended.AGAIN_S", 3600.0)
    try:
        assert [look(), look()] == [1, 1]
        missing = frozenset({"a", "b"})
        assert [look(), look()] == [2, 2]
        recovery._failed["model"] = (missing, time.monotonic())
        assert look() == 3
    finally:
        recovery.close()
