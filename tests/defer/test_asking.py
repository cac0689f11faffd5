"""Questions that may be asked twice: an agent that is lost for a moment is waited for, one that is gone is named."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from defer import asking
from defer.agents import AgentPool
from defer.asking import ask_again
from defer.errors import AgentUnreachable
from defer.local_agents import LocalAgent, local_agents
from node_agent import messages as m

pytestmark = pytest.mark.integration


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[LocalAgent]:
    with local_agents(["a"], tmp_path) as (one,):
        yield one


@pytest.fixture
def pool(agent: LocalAgent) -> Iterator[AgentPool]:
    with AgentPool("test") as pool:
        pool.connect("a", f"tcp://{agent.address}", timeout=20)
        yield pool


def lost(pool: AgentPool) -> None:
    deadline = time.monotonic() + 20
    while (known := pool.liveness("a")) is not None and known.state != "lost":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_agent_that_stood_still_answers_when_it_is_back(agent: LocalAgent, pool: AgentPool) -> None:
    os.kill(agent.process.pid, signal.SIGSTOP)
    back = threading.Timer(1.0, os.kill, (agent.process.pid, signal.SIGCONT))
    try:
        lost(pool)
        back.start()
        answer = ask_again(pool, "a", m.Want(0, (m.FileRef("ab" * 32, 1, ".onnx"),)), timeout=20)
    finally:
        os.kill(agent.process.pid, signal.SIGCONT)
        back.cancel()
        back.join()
    assert not isinstance(answer, m.Fault)


def test_one_that_is_gone_is_named(
    agent: LocalAgent, pool: AgentPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "BACK_S", 0.5)
    agent.process.kill()
    lost(pool)
    with pytest.raises(AgentUnreachable, match="agent 'a': it was lost before it answered") as raised:
        ask_again(pool, "a", m.Want(0, ()), timeout=5)
    assert "busy" in raised.value.hint
