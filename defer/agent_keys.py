"""Which agents are dialled with which key, which ones keys keep from us, and when those are dialled again. Pure."""

from __future__ import annotations

from typing import Final

from node_agent.errors import AgentError
from node_agent.security import Security

AGAIN_S: Final = 2.0
"""Pause before an agent is dialled again whose key, or ours, kept us apart."""

LOOK_S: Final = 0.5
"""How often it is looked whether an agent's key has changed."""


class AgentKeys:
    """See the module.

    Args:
        security: The dispatcher's.
    """

    def __init__(self, security: Security) -> None:
        self._security = security
        self._used: dict[str, str] = {}
        self._again: dict[str, float] = {}
        self._look_at = 0.0

    def dialled(self, name: str) -> None:
        """An agent was dialled just now, with the key that is known of it."""
        key = self._key(name)
        if key:
            self._used[name] = key

    def hung_up(self, name: str) -> None:
        """The connection is no more."""
        self._used.pop(name, None)

    def barred(self, name: str, now: float) -> None:
        """Keys keep an agent from us."""
        self._again[name] = now + AGAIN_S

    def changed(self, now: float) -> list[str]:
        """Agents whose key was revoked or rotated since they were dialled: that connection is not with them."""
        if self._security.keys is None or now < self._look_at:
            return []
        self._look_at = now + LOOK_S
        self._security.keys.refresh()
        changed = [name for name, key in self._used.items() if self._key(name) != key]
        for name in changed:
            del self._used[name]
            self._again[name] = now
        return changed

    def due(self, now: float) -> list[str]:
        """Agents to dial again, on new sockets."""
        due = [name for name, at in self._again.items() if now >= at]
        for name in due:
            del self._again[name]
        return due

    def _key(self, name: str) -> str:
        try:
            return self._security.server_key(name) if self._security.curve else ""
        except AgentError:
            return ""
