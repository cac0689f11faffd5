"""What the keys of others allow at the dispatcher's sockets. Pure.

| role | api | requests |
|---|---|---|
| dispatcher, client | every verb | yes |
| observer | what only reads | no |
| agent | registers under its own name, answers orders, reads | hands over results under its own name |
"""

from __future__ import annotations

import contextlib
from typing import Any, Final, get_args

from defer import api
from defer.client_core import CLIENT
from defer.errors import ProtocolMismatch
from node_agent import messages as m
from node_agent.errors import FrameError
from node_agent.frames import decode_control
from node_agent.keys import ROLES, Certificate
from node_agent.security import Door, is_own_name

READS: Final = frozenset({"hello", "list_models", "get_status", "get_events", "get_traces"})
"""Verbs of an observer; one that is not here is not for it."""

WORDS: Final = {
    "want": "deploy a model (`defer deploy`)",
    "chunk": "deploy a model (`defer deploy`)",
    "deploy": "deploy a model (`defer deploy`)",
    "give_up": "give up a deployment (`defer deploy`)",
    "undeploy": "take a model down (`defer undeploy`)",
    "roll": "change or show versions (`defer rollout`)",
}
"""What is forbidden, in words of the command line."""

_SHIPS: Final[tuple[type, ...]] = (m.Want, m.Chunk)
_ANSWERS: Final[tuple[type, ...]] = tuple(kind for kind in get_args(m.ControlMessage) if kind not in _SHIPS)
_RESULTS: Final[tuple[type, ...]] = (m.Item, m.Failure, m.Credit)


def message_at_api(data: bytes) -> m.ControlMessage | api.ApiMessage | None:
    """What came in at the api, from an agent or from somebody who asks; None for what is neither."""
    for decode, error in ((decode_control, FrameError), (api.decode, ProtocolMismatch)):
        with contextlib.suppress(error):
            return decode(data)
    return None


def api_problem(certificate: Certificate, message: Any) -> str:
    """What somebody at the api may not do; empty if it may."""
    if isinstance(message, m.Hello) and message.role == "agent":
        if certificate.role != "agent":
            return "register as an agent"
        return "" if message.name == certificate.name else f"register as {message.name!r:.80}"
    if certificate.role == "agent":
        return "" if isinstance(message, _ANSWERS) or _verb(message) in READS else _forbidden(message)
    if certificate.role == "observer":
        return "" if _verb(message) in READS else _forbidden(message)
    return ""


def data_problem(certificate: Certificate, message: Any) -> str:
    """What somebody at the data socket may not do; empty if it may."""
    if certificate.role == "observer":
        return "send requests"
    if certificate.role == "agent":
        if isinstance(message, m.Infer):
            return "send requests"
        return _name_problem(certificate, message)
    if isinstance(message, _RESULTS):
        return "hand over results"
    if isinstance(message, m.Greeting) and message.name != CLIENT:
        return _name_problem(certificate, message)
    return ""


def fetch_problem(certificate: Certificate, message: Any) -> str:
    """What an agent that fetches its items may not do; empty if it may."""
    return _name_problem(certificate, message)


def _name_problem(certificate: Certificate, message: Any) -> str:
    if isinstance(message, m.Greeting) and not is_own_name(certificate, message.name):
        return f"call itself {message.name!r:.80}"
    return ""


def _forbidden(message: Any) -> str:
    verb = _verb(message)
    return WORDS.get(verb, f"ask for {verb}")


def _verb(message: Any) -> str:
    tag = getattr(getattr(message, "__struct_config__", None), "tag", None)
    return str(tag or type(message).__name__)


API: Final = Door("dispatcher-api", frozenset(ROLES), api_problem)
DATA: Final = Door("dispatcher-data", frozenset(ROLES), data_problem)
FETCH: Final = Door("dispatcher-fetch", frozenset({"agent", "dispatcher"}), fetch_problem)
