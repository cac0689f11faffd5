"""The control thread's end: whoever waits for it learns of it."""

from __future__ import annotations

import time

import pytest

from defer.agents import AgentPool
from defer.agents_core import AgentsCore
from defer.errors import AgentUnreachable
from node_agent.messages import Unload

pytestmark = pytest.mark.integration


def test_a_crash_of_the_control_thread_is_told_and_questions_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[BaseException] = []
    with AgentPool("test", on_crash=told.append) as pool:

        def fail(_core: AgentsCore, _now: float) -> None:
            raise ValueError("broken")

        monkeypatch.setattr(AgentsCore, "tick", fail)
        deadline = time.monotonic() + 10
        while not told:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert "broken" in str(told[0])
        with pytest.raises(AgentUnreachable):
            pool.ask("a", Unload(0, 1), timeout=5)
    assert "the thread defer-control failed" in caplog.text
