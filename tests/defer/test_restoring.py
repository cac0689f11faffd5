"""What is kept of a deployment, and what becomes of it when a dispatcher starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

import models
from defer.dispatcher.agent_news import AgentNews
from defer.dispatcher.bringup import Order
from defer.dispatcher.membership import Membership
from defer.dispatcher.restoring import kept_of, order_of, plan_of
from defer.dispatcher.store import KeptModel
from defer.documents.cluster import Cluster, loads_cluster
from defer.documents.plan import Plan
from defer.planning import make_plan, parse_placement
from partitioner import analyze

CLUSTER = """
[dispatcher]
join = true
[network]
bandwidth = "1 Gbit/s"
delay = "0.1 ms"
"""
DEVICE = """
[[device]]
name = "{0}"
address = "127.0.0.1:77{1}0"
"""


def cluster_of(*names: str) -> Cluster:
    return loads_cluster(
        CLUSTER + "".join(DEVICE.format(name, number) for number, name in enumerate(names, 1))
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save("tiny_residual", tmp_path_factory.mktemp("model") / "m.onnx")


@pytest.fixture(scope="module")
def planned(model: Path) -> Callable[[str], Plan]:
    chain, cluster = analyze(model), cluster_of("a", "b")
    return lambda words: make_plan(
        chain, cluster, placement=parse_placement(words, cluster, len(chain.blocks))
    )


def kept(order: Order, plan: Plan) -> KeptModel:
    made = SimpleNamespace(epoch=3, inputs=(), outputs=(), warm_up=(), layout=SimpleNamespace(hops={}))
    found = kept_of(order, plan, cast(Any, [made] * len(plan.legs)))
    return msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=KeptModel)


def test_a_plan_that_helps_out_is_kept_beside_the_models_own(
    model: Path, planned: Callable[[str], Plan]
) -> None:
    home, helping = planned("a=0:4,b=4:"), planned("a=0:")
    order = Order("m", model, plan=home, given=True)
    found = kept(order, helping)
    assert (order_of(found).plan, plan_of(found)) == (home, helping)
    again = kept(
        order_of(found), helping
    )  # the next process keeps what it found, and so does the one after it
    assert (order_of(again).plan, plan_of(again), again.given) == (home, helping, True)
    back = kept(order_of(again), home)
    assert (order_of(back).plan, plan_of(back), back.home) == (home, home, "")


def test_what_an_older_build_kept_has_one_plan(model: Path, planned: Callable[[str], Plan]) -> None:
    home = planned("a=0:4,b=4:")
    fields = msgspec.to_builtins(kept(Order("m", model, plan=home), home))
    del fields["home"]
    old = msgspec.convert(fields, KeptModel)
    assert order_of(old).plan == plan_of(old) == home


def test_devices_of_both_plans_are_expected_to_join(model: Path, planned: Callable[[str], Plan]) -> None:
    order = Order("m", model, plan=planned("a=0:4,b=4:"))
    deployments = cast(Any, SimpleNamespace(cluster=cluster_of("b")))
    Membership(deployments, cast(Any, None)).expect([kept(order, planned("b=0:"))])
    assert set(deployments.cluster.names) >= {"a", "b"}
    deployments = cast(Any, SimpleNamespace(cluster=cluster_of("b")))
    Membership(deployments, cast(Any, None)).expect(
        [kept(replace(order, plan=planned("b=0:")), planned("a=0:"))]
    )
    assert set(deployments.cluster.names) >= {"a", "b"}


@pytest.mark.parametrize("resumed", [False, True])
def test_an_agent_that_answers_for_the_first_time_may_be_what_a_model_lacks(resumed: bool) -> None:
    told: list[object] = []
    deployments = SimpleNamespace(resumed=resumed, clean=lambda name: told.append(("clean", name)))
    news = AgentNews(
        cast(Any, deployments),
        cast(Any, None),
        cast(Any, SimpleNamespace(look=lambda: told.append("look"))),
        cast(Any, SimpleNamespace(answered=lambda name: None)),
        cast(Any, SimpleNamespace(arrived=lambda name: False)),
        cast(Any, SimpleNamespace(note=lambda *_, **__: None)),
        cast(Any, SimpleNamespace(do=lambda action: action())),
    )
    news.happened("alive", "mid", "")
    # Before everything was restored, what an agent holds is what is served in a moment.
    assert told == ([("clean", "mid")] if resumed else []) + ["look"]
