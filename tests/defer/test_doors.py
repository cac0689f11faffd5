"""What each role may say at the dispatcher's sockets: every message of the protocol, under every role."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest

from defer import api
from defer.cli import VERBS
from defer.client_core import CLIENT
from defer.doors import (
    API,
    DATA,
    FETCH,
    READS,
    WORDS,
    api_problem,
    data_problem,
    fetch_problem,
    message_at_api,
)
from node_agent import messages as m
from node_agent.doors import CONTROL, control_problem
from node_agent.doors import data_problem as agent_data_problem
from node_agent.frames import encode_control
from node_agent.keys import ROLES, Certificate, Role

WRITES = {"deploy", "undeploy", "want", "chunk", "roll", "give_up"}


def owner(role: Role, name: str = "edge1") -> Certificate:
    return Certificate(name, role, "k" * 40)


def tag(kind: Any) -> str:
    return str(kind.__struct_config__.tag)


def blank(kind: Any) -> Any:
    """A message of this kind; only its type matters."""
    return kind(*[0 for field in msgspec.structs.fields(kind) if field.required])


API_KINDS = [kind for kind in get_args(api.ApiMessage) if kind is not m.Hello]


@pytest.mark.parametrize("kind", API_KINDS, ids=tag)
def test_an_observer_may_say_what_is_listed_and_nothing_else(kind: Any) -> None:
    assert (api_problem(owner("observer"), blank(kind)) == "") == (tag(kind) in READS)
    assert not READS & WRITES


@pytest.mark.parametrize("kind", API_KINDS, ids=tag)
def test_clients_may_ask_for_everything_and_agents_for_nothing_that_changes_anything(kind: Any) -> None:
    assert api_problem(owner("client"), blank(kind)) == ""
    assert api_problem(owner("dispatcher"), blank(kind)) == ""
    if tag(kind) in WRITES:
        assert WORDS[tag(kind)] == api_problem(owner("agent"), blank(kind))


def test_a_refusal_says_what_in_words_of_the_command_line() -> None:
    for verb in WRITES:
        problem = WORDS[verb]
        command = problem.split("`")[1]
        assert command.split()[1] in VERBS


def test_what_is_no_message_is_no_verb_of_an_observers() -> None:
    assert api_problem(owner("observer"), None)
    assert message_at_api(b"\xc1") is None
    assert message_at_api(encode_control(m.StatusRequest(1))) == m.StatusRequest(1)
    assert message_at_api(api.encode(api.GetStatus(3))) == api.GetStatus(3)


def test_an_agent_registers_under_its_own_name() -> None:
    hello = m.Hello(1, 1, 1, "edge1", "agent")
    assert api_problem(owner("agent"), hello) == ""
    assert "edge1" in api_problem(owner("agent", "edge2"), hello)
    for role in ("client", "observer", "dispatcher"):
        assert api_problem(owner(role), hello) == "register as an agent"  # type: ignore[arg-type]


def test_requests_come_from_clients_and_results_from_agents() -> None:
    infer, item, failure = blank(m.Infer), blank(m.Item), blank(m.Failure)
    for role in ROLES:
        may_ask = role in ("client", "dispatcher")
        assert (data_problem(owner(role), infer) == "") == may_ask
        assert (data_problem(owner(role), item) == "") == (role == "agent")
        assert (data_problem(owner(role), failure) == "") == (role == "agent")


def test_nobody_takes_anothers_name() -> None:
    def greets(name: str) -> m.Greeting:
        return m.Greeting(1, 1, name)

    for problem in (data_problem, fetch_problem, agent_data_problem):
        assert problem(owner("agent"), greets("edge1")) == ""
        for name in ("edge2", CLIENT, "@dispatcher x"):
            assert "call itself" in problem(owner("agent"), greets(name))
        assert problem(owner("dispatcher"), greets("@dispatcher x")) == ""
        assert "call itself" in problem(owner("dispatcher"), greets("edge1"))
    assert data_problem(owner("client"), greets(CLIENT)) == ""
    assert "call itself" in data_problem(owner("client"), greets("edge2"))


def test_orders_come_from_a_dispatcher() -> None:
    for kind in get_args(m.ControlMessage):
        assert control_problem(owner("dispatcher"), blank(kind)) == ""
        assert (control_problem(owner("agent"), blank(kind)) == "") == (kind is m.Hello)


def test_who_is_let_in_at_all() -> None:
    assert CONTROL.roles == {"dispatcher"}
    assert FETCH.roles == {"dispatcher", "agent"}
    assert API.roles == DATA.roles == set(ROLES)
