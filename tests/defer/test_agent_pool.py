"""The control thread's end: whoever waits for it learns of it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import zmq

from defer import keys
from defer.agents import AgentPool
from defer.agents_core import AgentsCore
from defer.errors import AgentUnreachable
from node_agent.frames import decode_control, encode_control
from node_agent.link import dial, new_context, open_socket
from node_agent.messages import Fault, Hello, Unload
from node_agent.security import DISPATCHER, choose

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


def test_a_key_that_is_used_under_another_name_is_told_of_at_both_ends(tmp_path: Path) -> None:
    keys.make(tmp_path / "main", "main", "dispatcher")
    keys.make(tmp_path / "k1", "k1", "agent")
    keys.authorise(tmp_path / "main", tmp_path / "k1" / "allowed" / "k1.toml")
    keys.authorise(tmp_path / "k1", tmp_path / "main" / "allowed" / "main.toml")
    happened: list[tuple[str, str, str]] = []
    ours = choose(tmp_path / "main", roles=("dispatcher",), hosts=[])
    context = new_context(choose(tmp_path / "k1", roles=("agent",), hosts=[]))
    with AgentPool(
        DISPATCHER,
        listen="tcp://127.0.0.1:0",
        on_event=lambda *what: happened.append(what),
        security=ours,
    ) as pool:
        socket = open_socket(context, zmq.DEALER, purpose="control")
        try:
            dial(socket, pool.endpoint, DISPATCHER)
            assert socket.poll(10_000, zmq.POLLOUT)
            socket.send(encode_control(Hello(3, 1, 1, "k9", "agent")))
            assert socket.poll(10_000)
            fault = decode_control(socket.recv())
        finally:
            socket.close(0)
            context.term()
        why = "The key of 'k1', role agent, may not register as 'k9'."
        assert fault == Fault(3, "not-allowed", why)
        deadline = time.monotonic() + 10
        while happened != [("turned-away", "k9", why)]:
            assert time.monotonic() < deadline, happened
            time.sleep(0.01)
        assert pool.liveness("k9") is None
