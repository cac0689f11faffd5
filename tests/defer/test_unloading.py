"""Epochs that agents are to forget: none waits behind an agent that hangs."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

from defer.dispatcher.background import Background
from defer.dispatcher.daemon import BACKGROUND
from defer.dispatcher.unloading import Unloader
from node_agent.messages import Done, Unload

STANDING_BY = 8
"""Deployments that pass the agent that hangs, of as many devices."""


class Agents:
    """A pool in which the agent `hangs` answers nothing until the end."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def liveness(self, _: str) -> Any:
        return SimpleNamespace(state="alive")

    def submit(self, device: str, _: Unload, *, timeout: float) -> Future[Any]:
        answer: Future[Any] = Future()
        if device != "hangs":
            answer.set_result(Done(0))
        return answer

    def result(self, answer: Future[Any], device: str, timeout: float) -> Any:
        if device == "hangs":
            self.over.wait(timeout)
        return None


def test_what_others_forget_waits_behind_no_agent_that_hangs() -> None:
    agents, epochs, forgotten = Agents(), Mock(), threading.Event()
    unloader = Unloader(agents, epochs)  # type: ignore[arg-type]
    background = Background(BACKGROUND, "test-unloading")

    def last() -> None:
        unloader.unload(99, ("other",))
        forgotten.set()

    try:
        for epoch in range(STANDING_BY):
            background.do(lambda epoch=epoch: unloader.unload(epoch, ("hangs", "other")))  # type: ignore[misc]
        background.do(last)
        assert forgotten.wait(5.0)
    finally:
        agents.over.set()
        background.close()
    epochs.end.assert_any_call(99)


def test_nobody_waits_for_what_an_agent_that_is_known_to_hang_forgets() -> None:
    """What stands by gives way before another plan is loaded: that plan is what the model waits for."""
    agents, epochs = Agents(), Mock()
    agents.over.set()
    agents.result = Mock()  # type: ignore[method-assign]
    unloader = Unloader(agents, epochs)  # type: ignore[arg-type]
    unloader.hung = lambda: frozenset({"hangs"})
    unloader.unload(1, ("hangs", "other"))
    assert [call.args[1] for call in agents.result.call_args_list] == ["other"]
    assert unloader.left == {1: ("hangs",)}, "it is told again when it is back"
    epochs.end.assert_not_called()
