"""Questions that may be asked twice: an agent that is lost for a moment need not fail what takes minutes."""

from __future__ import annotations

import time
from typing import Final

from defer.agents import AgentPool
from defer.errors import AgentUnreachable
from node_agent import messages as m

BACK_S: Final = 10.0
"""An agent that is lost gets this long to be back: one on a busy box is, within a second or two."""

LOOK_EVERY_S: Final = 0.05


def ask_again(pool: AgentPool, name: str, message: m.ControlMessage, *, timeout: float) -> m.ControlMessage:
    """`AgentPool.ask`, and once more if the agent was lost before it answered and came back.

    Args:
        pool: Connections to the agents.
        name: Which one.
        message: A question that changes nothing: it may run twice.
        timeout: Seconds to wait for each answer.

    Raises:
        AgentFault: The agent answered that it cannot.
        AgentUnreachable: It did not come back, or did not answer either time.
    """
    try:
        return pool.ask(name, message, timeout=timeout)
    except AgentUnreachable:
        deadline = time.monotonic() + BACK_S
        while not _alive(pool, name):
            if time.monotonic() > deadline:
                raise
            time.sleep(LOOK_EVERY_S)
        return pool.ask(name, message, timeout=timeout)


def _alive(pool: AgentPool, name: str) -> bool:
    known = pool.liveness(name)
    return known is not None and known.state == "alive"
