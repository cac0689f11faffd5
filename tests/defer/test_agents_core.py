"""The dispatcher's knowledge of its agents: events in, instructions out, no clock."""

from __future__ import annotations

import pytest

from defer.agents_core import (
    DOUBT_S,
    HELLO_EVERY_S,
    SILENCE_LIMIT_S,
    SILENCE_S,
    AgentsCore,
    Notify,
    Report,
    Send,
    Settle,
)
from node_agent import messages as m

OFFER = m.Offer((m.EngineInfo("cpu"),), 1 << 30, 2.0, 1, "same", 7701, 7702)


def welcome(number: int, boot: str = "a") -> m.Welcome:
    return m.Welcome(number, 1, "box", boot, OFFER)


def beat(boot: str = "a", progress: int = 0) -> m.Heartbeat:
    return m.Heartbeat(boot, progress, 0.0, 0, "serving")


@pytest.fixture
def core() -> AgentsCore:
    core = AgentsCore("@dispatcher")
    [hello] = core.dial("box", "tcp://127.0.0.1:7700", 0.0)
    assert isinstance(hello, Send)
    assert core.received("box", welcome(hello.message.id), 0.1) == [Notify("alive", "box")]
    return core


def ask(core: AgentsCore, deadline: float) -> int:
    number, todo = core.ask("box", lambda n: m.StatusRequest(n), deadline)
    assert todo == [Send("box", m.StatusRequest(number), None)]
    return number


def test_greets_until_welcomed() -> None:
    core = AgentsCore("@dispatcher")
    assert len(core.dial("box", "tcp://127.0.0.1:7700", 0.0)) == 1
    assert core.tick(HELLO_EVERY_S / 2) == []
    [again] = core.tick(HELLO_EVERY_S)
    assert isinstance(again, Send)
    assert isinstance(again.message, m.Hello)
    core.received("box", welcome(again.message.id), HELLO_EVERY_S)
    assert core.tick(2 * HELLO_EVERY_S) == []
    assert core.agents["box"].offer == OFFER


def test_refused_hello_is_final() -> None:
    core = AgentsCore("@dispatcher")
    core.dial("box", "tcp://127.0.0.1:7700", 0.0)
    fault = m.Fault(1, "protocol-mismatch", "I speak versions 2 to 3, you speak 1")
    assert core.received("box", fault, 0.1) == [Notify("refused", "box", fault.message)]
    assert core.tick(10.0) == []


def test_answer_settles_its_question_once(core: AgentsCore) -> None:
    number = ask(core, 5.0)
    assert core.received("box", m.Progress(number, "loading", 0.5), 1.0) == [
        Report(number, m.Progress(number, "loading", 0.5))
    ]
    assert core.received("box", m.Done(number), 1.0) == [Settle(number, m.Done(number))]
    assert core.received("box", m.Done(number), 1.1) == []
    assert Settle(number, None, "timeout") not in core.tick(1.2)


def test_question_ends_at_its_deadline_and_a_late_answer_is_ignored(core: AgentsCore) -> None:
    number = ask(core, 1.0)
    core.received("box", beat(), 0.9)
    assert core.tick(1.0) == [Settle(number, None, "timeout")]
    assert core.received("box", m.Done(number), 1.1) == []


def test_unknown_agent_cannot_be_asked(core: AgentsCore) -> None:
    number, todo = core.ask("nobody", lambda n: m.Done(n), 1.0)
    assert todo == [Settle(number, None, "lost")]


def test_silence_loses_the_agent_and_its_questions(core: AgentsCore) -> None:
    number = ask(core, 100.0)
    for tick in (0.2, 0.3, 0.4):
        assert core.tick(tick) == []
    todo = core.tick(0.2 + SILENCE_S)
    assert todo[0] == Settle(number, None, "lost")
    assert isinstance(todo[1], Notify)
    assert (todo[1].kind, todo[1].name) == ("lost", "box")


def test_heartbeats_keep_it_alive(core: AgentsCore) -> None:
    for tenth in range(1, 100):
        assert core.received("box", beat(), tenth / 10) == []
        assert core.tick(tenth / 10) == []


def test_irregular_heartbeats_are_waited_for_longer(core: AgentsCore) -> None:
    now = 0.1
    for pause in (0.1, 0.3, 0.1, 0.1):
        now += pause
        core.received("box", beat(), now)
    lost_at = now
    while not (todo := core.tick(lost_at)):
        lost_at += 0.1
    assert isinstance(todo[0], Notify)
    assert 1.0 < lost_at - now < 1.4
    # However irregular they are, there is an end to patience.
    core.received("box", welcome(1), lost_at + 50)
    for pause in (2.5, 2.5, 2.5):
        lost_at += pause
        core.received("box", beat(), lost_at + 50)
    steps = [core.tick(lost_at + 50 + tenth / 10) for tenth in range(1, 2 + int(SILENCE_LIMIT_S * 10))]
    assert [step[0].name for step in steps if step and isinstance(step[0], Notify)] == ["box"]


def test_a_dispatcher_that_stood_still_has_lost_nobody(core: AgentsCore) -> None:
    core.tick(0.2)
    assert core.tick(60.0) == []
    assert core.tick(60.05) == []
    assert core.received("box", beat(), 60.1) == []
    assert core.tick(60.2) == []


def test_a_connection_of_unknown_owner_that_closed_was_that_of_the_agent_that_falls_silent() -> None:
    core = AgentsCore("@dispatcher")
    for number, name in enumerate(("nat", "other")):
        core.registered(m.Hello(number, 1, 1, name, "agent", OFFER, name), 0.0)
        core.received(name, m.Welcome(7, 1, name, name, OFFER), 0.0)
    core.dial("box", "tcp://127.0.0.1:7700", 0.0)
    core.received("box", welcome(9), 0.0)
    for name in ("nat", "other", "box"):
        core.received(name, beat("a" if name == "box" else name), 0.1)
    core.hung_up(0.12)
    core.received("other", beat("other"), 0.2)
    assert core.tick(0.2) == []
    assert core.tick(0.13 + DOUBT_S) == [Notify("lost", "nat", "its connection closed")]


@pytest.mark.parametrize(("boot", "kind"), [("a", "back"), ("b", "restarted")])
def test_comes_back_as_the_same_process_or_another(core: AgentsCore, boot: str, kind: str) -> None:
    number = ask(core, 100.0)
    assert core.disconnected("box", 1.0)[0] == Settle(number, None, "lost")
    [hello] = core.connected("box", 1.2)
    assert isinstance(hello, Send)
    todo = core.received("box", welcome(hello.message.id, boot), 1.5)
    assert todo == [Notify(kind, "box")]  # type: ignore[arg-type]
    assert core.agents["box"].state == "alive"


def test_restart_without_a_noticed_disconnect(core: AgentsCore) -> None:
    number = ask(core, 100.0)
    [hello] = core.received("box", beat("b"), 1.0)
    assert isinstance(hello, Send)
    todo = core.received("box", welcome(hello.message.id, "b"), 1.1)
    assert todo == [Settle(number, None, "lost"), Notify("restarted", "box")]


def test_agent_that_dials_is_welcomed_and_greeted_on_every_connection() -> None:
    core = AgentsCore("@dispatcher")
    for number in (7, 8):
        hello = m.Hello(number, 1, 1, "nat", "agent", OFFER, "z")
        welcome_back, send = core.registered(hello, float(number))
        assert welcome_back == Send("nat", m.Welcome(number, 1, "@dispatcher", ""))
        assert isinstance(send, Send)
        core.received("nat", m.Welcome(send.message.id, 1, "nat", "z", OFFER), number + 0.1)
        assert core.agents["nat"].state == "alive"


def test_agent_that_dials_with_another_protocol_is_refused() -> None:
    core = AgentsCore("@dispatcher")
    fault, notice = core.registered(m.Hello(1, 8, 9, "nat", "agent", OFFER, "z"), 0.0)
    assert isinstance(fault, Send)
    assert isinstance(fault.message, m.Fault)
    assert isinstance(notice, Notify)
    assert (notice.kind, core.agents["nat"].state) == ("refused", "refused")


def test_a_dispatcher_where_an_agent_should_be_is_named() -> None:
    core = AgentsCore("dispatcher")
    core.dial("left", "tcp://x:7600", 0)
    said = core.received("left", m.Welcome(1, 1, "dispatcher", "a"), 0)
    assert [type(each) for each in said] == [Notify]
    assert "a dispatcher listens there" in core.agents["left"].refusal


def test_agent_of_another_name_is_refused() -> None:
    core = AgentsCore("@dispatcher")
    core.dial("left", "tcp://127.0.0.1:7700", 0.0)
    [notice] = core.received("left", welcome(1), 0.1)
    assert isinstance(notice, Notify)
    assert notice.kind == "refused"
    assert "--name left" in core.agents["left"].refusal


def test_forgotten_agent_leaves_no_question(core: AgentsCore) -> None:
    number = ask(core, 100.0)
    assert core.forget("box") == [Settle(number, None, "lost")]
    assert core.received("box", m.Done(number), 1.0) == []
