"""The live page's questions and actions, against a dispatcher that only remembers what it was told to do."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import models
import partitioner
from defer.api import DeviceInfo, ServerStatus
from defer.blocks import planning_chain
from defer.dispatcher.bringup import Order
from defer.dispatcher.planner import Planner
from defer.documents.cluster import loads_cluster
from defer.errors import NoRoute, NotReady, Overloaded, UnknownModel, UsageError
from defer.event_log import EventLog
from defer.live.board import Asked, Board
from defer.live.watcher import Watcher
from defer.live.what_if import Changes, changes_of
from defer.planning import make_plan
from defer.wishes import Rules

MODEL = "tiny_residual"
CLUSTER = """
[network]
bandwidth = "1 Gbit/s"
delay = "0.1 ms"
[[device]]
name = "a"
address = "127.0.0.1:7610"
speed = "1 GFLOP/s"
[[device]]
name = "b"
address = "127.0.0.1:7620"
speed = "1 GFLOP/s"
"""
WAIT_S = 10.0


class Remembering:
    """A dispatcher without agents."""

    boot, phase = "boot", "serving"

    def __init__(self, order: Order) -> None:
        self.cluster = loads_cluster(CLUSTER)
        self.log = EventLog(time.time)
        self.done: list[Any] = []
        self.states = {"a": "alive", "b": "alive"}
        self.go_on = threading.Event()
        self.go_on.set()
        self.error: Exception | None = None
        self.verbs = self
        served: dict[int, Any] = {}
        self.deployments = SimpleNamespace(
            orders={order.name: order},
            served=served,
            in_service=lambda: served,
            bring_up=self.bring_up,
            parts=Path("parts"),
            planner=Planner(),
        )

    def status(self) -> ServerStatus:
        devices = tuple(DeviceInfo(name, state) for name, state in self.states.items())
        return ServerStatus(0, "@dispatcher", "0", 1.0, (), (), devices)

    def bring_up(self, order: Order, _on_progress: object) -> None:
        self.go_on.wait(WAIT_S)
        if self.error is not None:
            raise self.error
        self.done.append(order)
        self.deployments.orders[order.name] = order

    def undeploy(self, verb: Any) -> None:
        self.done.append(verb)


@pytest.fixture(scope="module")
def order(tmp_path_factory: pytest.TempPathFactory) -> Order:
    path = models.save(MODEL, tmp_path_factory.mktemp("board") / "m.onnx")
    chain = planning_chain(partitioner.analyze(path), 8, None)
    return Order("m", Path(path), plan=make_plan(chain, loads_cluster(CLUSTER)), blocks=8)


@pytest.fixture
def daemon(order: Order) -> Remembering:
    return Remembering(order)


@pytest.fixture
def board(daemon: Remembering) -> Board:
    return Board(daemon, Watcher(daemon), may_act=True)  # type: ignore[arg-type]


def idle(board: Board) -> None:
    deadline = time.monotonic() + WAIT_S
    while board.state()["doing"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not board.state()["doing"]


def test_a_what_if_is_told_beside_what_runs_and_what_would_be_planned_now(board: Board):
    told = board.what_if(Asked("m", Changes(without=("a",))))
    assert told["running"] == told["now"]
    assert [stage["device"] for stage in told["then"]["stages"]] == ["b"]
    assert told["left_out"] == ""


def test_a_lost_device_is_in_no_prediction(board: Board, daemon: Remembering):
    daemon.states["a"] = "lost"
    told = board.what_if(Asked("m", Changes()))
    assert [stage["device"] for stage in told["now"]["stages"]] == ["b"]
    with pytest.raises(NoRoute, match="no device that computes is left"):
        board.what_if(Asked("m", Changes(without=("b",))))


def test_while_a_device_is_lost_what_runs_is_the_plan_around_it(
    board: Board, daemon: Remembering, order: Order
):
    assert order.plan is not None
    (home,) = {stage.device for stage in order.plan.stages}
    chain = planning_chain(partitioner.analyze(order.model), 8, None)
    around = make_plan(chain, loads_cluster(CLUSTER), rules=Rules(excluded=(home,)))
    daemon.states[home] = "lost"
    for epoch, plan in ((1, order.plan), (2, around)):
        deployment = SimpleNamespace(model="m", plan=plan)
        daemon.deployments.served[epoch] = SimpleNamespace(deployment=deployment)
    told = board.what_if(Asked("m", Changes()))
    assert home not in [stage["device"] for stage in told["running"]["stages"]]
    assert told["running"]["stages"] == told["now"]["stages"]


def test_one_prediction_at_a_time(board: Board):
    with board._planning, pytest.raises(Overloaded):
        board.what_if(Asked("m", Changes()))
    board.what_if(Asked("m", Changes()))


def test_what_cannot_be_asked(board: Board, daemon: Remembering, order: Order):
    with pytest.raises(UnknownModel, match="served: m"):
        board.what_if(Asked("other", Changes()))
    daemon.deployments.orders["m"] = replace(order, plan=None)
    with pytest.raises(NotReady, match="no plan"):
        board.what_if(Asked("m", Changes()))


def test_changes_come_from_what_the_page_sends():
    changes = changes_of(("a",), (("a", "b", 0.25),))
    assert changes.without == ("a",)
    assert [(link.first, link.second, link.factor) for link in changes.links] == [("a", "b", 0.25)]


def test_to_plan_again_forgets_the_plan_and_what_was_measured(board: Board, daemon: Remembering):
    board.act("replan", "m")
    idle(board)
    (done,) = daemon.done
    assert (done.name, done.plan, done.profile) == ("m", None, None)
    assert [event.kind for event in daemon.log.since(0, 10)] == ["asked"]


def test_to_drain_undeploys_with_a_time_for_what_is_under_way(board: Board, daemon: Remembering):
    board.act("drain", "m")
    idle(board)
    assert daemon.done[0].name == "m"
    assert daemon.done[0].drain_s > 0


def test_one_can_return_to_the_plan_before(board: Board, daemon: Remembering, order: Order):
    assert board.state()["actions"] == {"m": ["replan", "drain"]}
    with pytest.raises(UsageError, match="one plan only") as caught:
        board.act("rollback", "m")
    assert "the same plan" in caught.value.hint
    chain = planning_chain(partitioner.analyze(order.model), 8, None)
    second = make_plan(chain, loads_cluster(CLUSTER), objective="throughput")
    daemon.deployments.orders["m"] = replace(order, plan=second)
    assert board.state()["actions"] == {"m": ["replan", "rollback", "drain"]}
    board.act("rollback", "m")
    idle(board)
    assert daemon.done[-1].plan is order.plan
    board.act("rollback", "m")  # and forth again
    idle(board)
    assert daemon.done[-1].plan is second


def test_one_thing_at_a_time_and_what_fails_is_told(board: Board, daemon: Remembering):
    daemon.go_on.clear()
    daemon.error = UsageError("there is no such thing")
    board.act("replan", "m")
    assert board.state()["doing"] == "replan m"
    with pytest.raises(NotReady, match="replan m"):
        board.act("drain", "m")
    daemon.go_on.set()
    idle(board)
    last = daemon.log.since(0, 10)[-1]
    assert (last.kind, last.level) == ("action-failed", "error")
    assert "replan m" in last.text
    assert "no such thing" in last.text


def test_what_cannot_be_done(board: Board, daemon: Remembering):
    with pytest.raises(UsageError) as caught:
        board.act("explode", "m")
    assert "replan" in caught.value.hint
    with pytest.raises(UnknownModel):
        board.act("drain", "other")
    daemon.phase = "stopping"
    with pytest.raises(NotReady, match="stopping"):
        board.act("drain", "m")
    assert daemon.done == []


def test_without_a_token_no_action_is_offered(daemon: Remembering):
    board = Board(daemon, Watcher(daemon), may_act=False)  # type: ignore[arg-type]
    assert board.state()["actions"] == {}
