"""What the keys of others allow at an agent's sockets: it obeys its dispatcher, and takes items from its like."""

from __future__ import annotations

from typing import Any, Final

from node_agent.keys import Certificate
from node_agent.messages import Greeting, Hello
from node_agent.security import Door, is_own_name


def control_problem(certificate: Certificate, message: Any) -> str:
    """Orders come from a dispatcher. The agent's own key may greet, so that a probe on the device sees a heartbeat."""
    if certificate.role == "dispatcher" or isinstance(message, Hello):
        return ""
    return f"give orders to an agent ({type(message).__name__})"


def data_problem(certificate: Certificate, message: Any) -> str:
    """Nobody takes another's name."""
    if isinstance(message, Greeting) and not is_own_name(certificate, message.name):
        return f"call itself {message.name!r:.80}"
    return ""


CONTROL: Final = Door("agent-control", frozenset({"dispatcher"}), control_problem)
DATA: Final = Door("agent-data", frozenset({"dispatcher", "agent"}), data_problem)
