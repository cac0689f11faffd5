"""The agent's threads: one that fails ends the agent, an item that fails does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from node_agent import encoding
from node_agent import messages as m
from node_agent.agent import Agent, AgentConfig
from node_agent.cli import serve
from node_agent.errors import EXIT_INTERNAL
from node_agent.frames import pack_item
from node_agent.routing import Route
from node_agent.work import LoadedRoute, Work
from tests.node_agent.harness import spec


def a_work(codec: str = "raw") -> Work:
    hop = m.HopSpec(
        0,
        m.PeerRef("a"),
        m.PeerRef("b"),
        graph=m.FileRef("a" * 64, 1),
        inputs=(spec("x", "n"),),
        outputs=(spec("y", "n"),),
        send=("y",),
        codec=codec,
    )
    tensors, frames = pack_item({"x": np.ones(3, np.float32)})
    loaded = LoadedRoute(Route(1, "m", hop), None)
    origin: Any = None
    return Work(loaded, m.Item(1, 1, 0, -1, tensors), list(frames), origin, 12, 0)


def raising(*_: Any, **__: Any) -> Any:
    raise ValueError("a codec's own fault")


@pytest.mark.parametrize("step", ["decode", "encode"])
def test_what_a_codec_raises_ends_one_item(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    work = a_work("lz4")
    assert encoding.admit(work, "me")
    monkeypatch.setattr(encoding, "unpack_tensor", raising)
    monkeypatch.setattr(encoding, "pack_tensor", raising)
    work.outputs = {"y": np.ones(3, np.float32)}
    getattr(encoding, step)(work, "me")
    assert work.failure is not None
    assert (work.failure.code, work.failure.where) == ("internal", "me")
    assert work.failure.message == "ValueError: a codec's own fault"


CRASHES: dict[str, Callable[[Agent], None]] = {
    "control": lambda agent: agent._control.inbox.put(None),  # type: ignore[union-attr, arg-type]
    "data": lambda agent: agent._plane._loop.put(raising),  # type: ignore[union-attr]
    "run": lambda agent: agent._plane._worker.put(raising),  # type: ignore[union-attr]
    "decode": lambda agent: agent._plane._decoder.put(1),  # type: ignore[union-attr, arg-type]
    "encode": lambda agent: agent._plane._encoder.put(1),  # type: ignore[union-attr, arg-type]
    "store": lambda agent: agent._actions._threads["store"].submit(raising),  # type: ignore[union-attr]
    "load": lambda agent: agent._actions._threads["load"].submit(raising),  # type: ignore[union-attr]
}


@pytest.mark.integration
@pytest.mark.parametrize("thread", CRASHES)
def test_an_agent_that_lost_a_thread_ends_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, thread: str
) -> None:
    """Its heartbeats would go on, and nobody would know that it does nothing any more."""
    agent = Agent(AgentConfig("me", tmp_path / "store", port=0))

    def wait() -> None:
        CRASHES[thread](agent)
        assert agent._ended.wait(20), "the agent goes on"

    monkeypatch.setattr(agent, "wait", wait)
    assert serve(agent, 1.0, as_json=True) == EXIT_INTERNAL
    assert [shell._thread.name for shell in agent._shells if shell.error is not None] == [thread]
