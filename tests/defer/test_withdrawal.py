"""A deployment that is given up: by a word, by a caller that goes away, in the queue and between its steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import models
from defer import api
from defer.admin import Admin
from defer.cli import group
from defer.dispatcher.api_server import QUEUED, ApiServer
from defer.dispatcher.bringup import Order
from defer.dispatcher.daemon import Daemon
from defer.dispatcher.restoring import digest_of
from defer.dispatcher.withdrawal import Withdrawal
from defer.errors import Cancelled
from node_agent.messages import Done, Fault, Progress
from tests.defer.test_adapting import dispatcher, slow_agents


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class SlowDeploys:
    """A deployment takes until the test lets it end, or it is given up."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.go = threading.Event()
        self.infos: tuple[api.ModelInfo, ...] = ()

    def deploy(self, order: api.Deploy, _progress: object, withdrawal: Withdrawal) -> api.Deployed:
        self.begun.append(order.name)
        while not self.go.wait(0.01):
            withdrawal.check()
        withdrawal.settle()
        return api.Deployed(0, api.ModelInfo(order.name, "ready"), "", 0, 0.0, 0.0)


class Answers:
    """An api server, and what it said."""

    def __init__(self, verbs: Any) -> None:
        self.said: list[tuple[bytes, Any]] = []
        self.server = ApiServer(
            "d", "boot", verbs, lambda identity, frames: self.said.append((identity, api.decode(frames[0])))
        )

    def hear(self, identity: bytes, message: api.ApiMessage) -> None:
        self.server.heard(identity, [api.encode(message)])

    def to(self, identity: bytes, kind: type) -> list[Any]:
        return [each for whom, each in self.said if whom == identity and isinstance(each, kind)]


def test_a_deployment_that_waits_is_dropped_and_one_that_runs_is_given_up() -> None:
    verbs = SlowDeploys()
    answers = Answers(verbs)
    answers.hear(b"1", api.Deploy(7, "first", ()))
    until(lambda: verbs.begun == ["first"])
    answers.hear(b"2", api.Deploy(7, "second", ()))
    answers.hear(b"3", api.Deploy(7, "third", ()))
    answers.hear(b"4", api.GiveUp(8, 7))  # another's question is not its own
    answers.hear(b"2", api.GiveUp(8, 7))
    assert [(each.id, each.code) for each in answers.to(b"2", Fault)] == [(7, "cancelled")]
    assert [each.id for each in answers.to(b"2", Done)][-1] == 8
    assert not answers.to(b"1", Fault)
    answers.server.gone(b"1")
    until(lambda: "third" in verbs.begun)
    assert [each.code for each in answers.to(b"1", Fault)] == ["cancelled"]
    verbs.go.set()
    until(lambda: bool(answers.to(b"3", api.Deployed)))
    answers.server.close()
    assert verbs.begun == ["first", "third"]


def test_what_is_about_to_serve_cannot_be_given_up() -> None:
    withdrawal, acts = Withdrawal(), list[int]()
    withdrawal.when(lambda: acts.append(1))
    withdrawal.settle()
    assert not withdrawal.withdraw()
    withdrawal.check()
    assert acts == []
    early = Withdrawal()
    assert early.withdraw()
    early.when(lambda: acts.append(2))
    assert acts == [2]
    with pytest.raises(Cancelled):
        early.settle()


def test_whoever_waits_hears_something_so_that_the_connection_tells_who_has_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("defer.dispatcher.api_server.BEAT_S", 0.01)
    verbs = SlowDeploys()
    answers = Answers(verbs)
    answers.hear(b"1", api.Deploy(7, "first", ()))
    until(lambda: Done(0) in answers.to(b"1", Done))
    answers.hear(b"2", api.Deploy(9, "second", ()))
    until(lambda: Progress(9, QUEUED, 0.0) in answers.to(b"2", Progress))
    answers.server.gone(b"2")
    answers.server.gone(b"1")
    until(lambda: bool(answers.to(b"1", Fault)))
    answers.server.close()


def test_an_order_is_the_same_however_it_may_be_given_up(tmp_path: Path) -> None:
    model = models.save("tiny_residual", tmp_path / "m.onnx")
    assert digest_of(Order("m", model)) == digest_of(Order("m", model))


@pytest.mark.integration
def test_a_caller_that_hangs_up_or_gives_up_over_real_sockets(server: Any) -> None:
    verbs = SlowDeploys()
    server.api._verbs = verbs
    gone = Admin(server.address)
    gone.open()
    gone.send(api.Deploy(0, "first", ()))
    until(lambda: verbs.begun == ["first"])
    with Admin(server.address) as admin:
        number = admin.send(api.Deploy(0, "second", ()))
        gone.close()
        until(lambda: verbs.begun == ["first", "second"])
        with pytest.raises(Cancelled):
            admin.give_up(number, api.Deployed, timeout=20)
        number = admin.send(api.Deploy(0, "third", ()))
        verbs.go.set()
        until(lambda: len(verbs.begun) == 3)
        made = admin.give_up(number, api.Deployed, timeout=20)
        assert made is not None
        assert made.model.name == "third"


@pytest.mark.integration
@pytest.mark.timeout(120)
@pytest.mark.parametrize("step", ["analysing", "measuring", "planning", "cutting the model", "canary"])
def test_a_deployment_is_given_up_at_each_step_and_leaves_nothing(tmp_path: Path, step: str) -> None:
    model = models.save("tiny_residual", tmp_path / "m.onnx")
    withdrawal = Withdrawal()
    seen: list[str] = []

    def told(what: str, _fraction: float) -> None:
        seen.append(what)
        if step in what:
            withdrawal.withdraw()

    with slow_agents("a", tmp_path) as agents, dispatcher(agents, tmp_path) as daemon:
        with pytest.raises(Cancelled):
            daemon.deployments.bring_up(Order("m", model, withdrawal=withdrawal), told)
        assert step in seen[-1] or step in ("analysing", "cutting the model"), seen
        assert not daemon.deployments.planner._running
        until(lambda: not daemon.deployments.served)
        assert not daemon.deployments.orders
        assert not daemon.verbs.models().models
        _deploys(daemon, model)


def _deploys(daemon: Daemon, model: Path) -> None:
    assert daemon.deployments.bring_up(Order("m", model), lambda _what, _fraction: None).deployment.epoch


@pytest.mark.integration
def test_ctrl_c_says_what_becomes_of_the_deployment(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.api._verbs = verbs = SlowDeploys()
    verbs.want = server.verbs.want  # type: ignore[attr-defined]
    verbs.chunk = server.verbs.chunk  # type: ignore[attr-defined]
    model = models.save("tiny_residual", tmp_path / "m.onnx")

    def interrupt(*_: object, **__: object) -> None:
        until(lambda: verbs.begun[-1:] == ["m"])
        raise KeyboardInterrupt

    monkeypatch.setattr("defer.cli.deploy.upload", lambda *_: 0)
    monkeypatch.setattr("defer.admin.Admin.answer", _interrupting(Admin.answer, interrupt))
    done = CliRunner().invoke(group, ["deploy", str(model), "--dispatcher", server.address])
    assert done.exit_code == 130
    assert "the deployment of m was given up" in done.stderr


@pytest.mark.integration
def test_ctrl_c_before_the_model_is_sent(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    model = models.save("tiny_residual", tmp_path / "m.onnx")
    monkeypatch.setattr("defer.cli.deploy.upload", interrupted)
    done = CliRunner().invoke(group, ["deploy", str(model), "--dispatcher", server.address])
    assert done.exit_code == 130
    assert "nothing is deployed" in done.stderr


def _interrupting(answer: Callable[..., Any], interrupt: Callable[..., None]) -> Callable[..., Any]:
    def answered(self: Admin, number: int, kind: type, **more: Any) -> Any:
        if kind is api.Deployed:
            interrupt()
        return answer(self, number, kind, **more)

    return answered
