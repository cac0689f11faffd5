"""What is kept of a deployment, and what becomes of it when a dispatcher starts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

import models
from defer.api import ModelInfo
from defer.dispatcher.agent_news import AgentNews
from defer.dispatcher.bringup import Order
from defer.dispatcher.membership import Membership
from defer.dispatcher.reaching import Reaching
from defer.dispatcher.restoring import kept_of, order_of, plan_of
from defer.dispatcher.returning import Back, backs, bring_back, summary
from defer.dispatcher.store import KeptModel, KeptRoute
from defer.documents.cluster import Cluster, loads_cluster
from defer.documents.plan import Plan
from defer.errors import AgentUnreachable, ProtocolMismatch
from defer.planning import make_plan, parse_placement
from partitioner import analyze
from tests.defer.plan_fixtures import a_plan

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


def deployment(name: str, *devices: str) -> KeptModel:
    return KeptModel(name, "serve", "", "", "", (), (), (), (KeptRoute(1, 1.0, dict.fromkeys(devices, ())),))


def test_models_come_back_as_their_agents_do_and_what_lacks_one_is_given_up() -> None:
    models_ = [deployment("needs-c", "a", "c"), deployment("on-a", "a"), deployment("needs-b", "b")]
    routes = (KeptRoute(1, 0.5, {"a": (), "b": ()}), KeptRoute(2, 0.5, {"a": (), "c": ()}))
    models_.append(msgspec.structs.replace(deployment("shared"), routes=routes))
    there: dict[str, bool] = {"a": True}
    coming = [("c", False), ("b", True)]
    said: list[object] = []

    def missing(devices: Collection[str]) -> tuple[str, ...] | None:
        if devices - there.keys():  # type: ignore[operator]
            return None
        return tuple(device for device in sorted(devices) if not there[device])

    def wait() -> None:
        name, answers = coming.pop(0)
        there[name] = answers

    bring_back(
        models_,
        missing,
        wait,
        lambda kept, without: said.append((kept.name, "back", without)),
        lambda kept, gone: said.append((kept.name, "not", gone)),
        lambda: False,
    )
    assert said == [
        ("on-a", "back", ()),
        ("needs-c", "not", ("c",)),
        ("needs-b", "back", ()),
        ("shared", "back", ("c",)),
    ]


def test_routes_that_do_without_who_is_late_wait_for_it_for_a_moment() -> None:
    routes = (KeptRoute(1, 0.5, {"a": (), "b": ()}), KeptRoute(2, 0.5, {"a": (), "c": ()}))
    shared = msgspec.structs.replace(deployment("shared"), routes=routes)
    models_ = [shared, deployment("needs-b", "b"), deployment("needs-d", "d")]
    there: dict[str, bool] = {"a": True}
    coming = ["c", "", "b", "d"]  # nobody answers in the second wait, and that is told
    said: list[object] = []

    def missing(devices: Collection[str]) -> tuple[str, ...] | None:
        return None if set(devices) - there.keys() else tuple(each for each in devices if not there[each])

    def wait() -> None:
        if name := coming.pop(0):
            there[name] = name != "d"

    bring_back(
        models_,
        missing,
        wait,
        lambda kept, without: said.append((kept.name, without, len(coming))),
        lambda kept, gone: said.append((kept.name, gone)),
        lambda: len(coming) < 3,
    )
    assert said == [("shared", ("b",), 2), ("needs-b", (), 1), ("needs-d", ("d",))]


def info(name: str, state: Any = "ready", reason: str = "") -> ModelInfo:
    return ModelInfo(name, state, reason)


def test_what_is_said_of_what_came_back_is_so() -> None:
    whole, mended = Back(info("m")), Back(info("n"), "a → c", as_before=False, without=("b",))
    waits = Back(info("o", "announced", "coming back: no answer from b"), as_before=False, without=("b",))
    assert whole.told() == "model m is ready as before"
    assert mended.told() == "model n is ready on a → c, without b"
    assert waits.told() == "model o is not ready: coming back: no answer from b"
    assert summary((whole,)) == "as before"
    assert summary((whole, mended)) == "not on the same devices as before"
    assert summary((whole, waits)) == "1 of 2 models"
    assert summary((waits,)) == "no model is back yet"
    planned = a_plan()
    served = cast(Any, SimpleNamespace(deployment=SimpleNamespace(model="n", plan=planned)))
    mended = replace(mended, on="jetson → nano")
    assert backs([info("m"), info("n")], [served], {"n": ("b",)}) == (whole, mended)
    shared = replace(mended, on="desk, jetson, nano")
    assert backs([info("n")], [served, served], {"n": ("b",)}) == (shared,)


class Pool:
    """Agents that answer, are missing or are refused."""

    def __init__(self, **answers: object) -> None:
        self.answers, self.asked = answers, dict[str, str]()

    def connect(self, name: str, endpoint: str, *, timeout: float) -> object:
        self.asked[name] = endpoint
        answer = self.answers[name]
        if isinstance(answer, threading.Event):
            answer.wait(30)
            raise AgentUnreachable(f"{name} did not answer")
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_agents_that_answer_are_known_while_others_are_waited_for_and_told_of() -> None:
    late = threading.Event()
    pool = Pool(a="offer", b=late, c=ProtocolMismatch("c speaks another version"))
    told: list[tuple[str, ...]] = []
    with Reaching(cast(Any, pool), cluster_of("a", "b", "c"), 9.0, told.append) as reaching:
        while reaching.missing(["a", "c"]) is None:
            reaching.wait()
        assert reaching.missing(["a"]) == ()
        assert reaching.missing(["a", "c", "nobody"]) == ("c", "nobody")
        assert reaching.missing(["a", "b"]) is None
        reaching.settle()
        assert told == [("b",)]
        reaching.settle()  # once is enough
        late.set()
        assert [type(error) for error in reaching.problems()] == [ProtocolMismatch, AgentUnreachable]
        assert reaching.missing(["a", "b"]) == ("b",)
    assert told == [("b",)]
    assert pool.asked["a"] == "tcp://127.0.0.1:7710"
    with Reaching(cast(Any, Pool(a="offer")), cluster_of("a"), 9.0, told.append, dial=False) as reaching:
        assert reaching.problems() == []
        assert cast(Any, reaching)._pool.asked == {"a": ""}, "who is dialled is not dialled again"
