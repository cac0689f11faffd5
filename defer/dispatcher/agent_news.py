"""What follows where an agent answers, is lost, comes back or has restarted: each part of the dispatcher is told."""

from __future__ import annotations

import logging
from typing import Final

from defer.dispatcher import events as e
from defer.dispatcher.background import Background
from defer.dispatcher.deployments import Deployments
from defer.dispatcher.detours import Detours
from defer.dispatcher.membership import Membership
from defer.dispatcher.recovery import Recovery
from defer.dispatcher.shell import DataShell
from defer.event_log import EventLog, Level

logger = logging.getLogger("defer.dispatcher")


class AgentNews:
    """Takes what happens to agents to whom it concerns.

    Args:
        deployments: Have agents forget what nobody knows of.
        shell: The data path.
        recovery: Plans anew where a device is lost.
        members: Which devices the cluster has.
        detours: At which of their addresses they are.
        log: What operators read.
        background: Does what takes long, which never runs in the control thread.
    """

    def __init__(
        self,
        deployments: Deployments,
        shell: DataShell,
        recovery: Recovery,
        members: Membership,
        detours: Detours,
        log: EventLog,
        background: Background,
    ) -> None:
        self._deployments, self._shell, self._recovery = deployments, shell, recovery
        self._members, self._detours, self._log = members, detours, log
        self._background = background

    def happened(self, kind: str, name: str, detail: str) -> None:
        """Take in what `defer.agents_core.Notify` says; from the control thread, returns at once."""
        if kind in ("turned-away", "unknown"):
            told = "device-unknown" if kind == "unknown" else "device-refused"
            self._members.turned_away(told, name, detail)
            return
        if kind == "alive" and self._detours.arrived(name):
            kind = "moved"
        if kind == "lost":
            self._shell.post(e.DeviceLost(name, detail or "its connection closed"))
            self._recovery.lost(name)
            self._detours.lost(name)
        elif kind == "alive":
            self._members.answered(name)
            if self._deployments.resumed:
                # It was away when this dispatcher started, and may hold what the one before had it load.
                self._background.do(lambda: self._deployments.clean(name))
            self._recovery.look()  # it may be what a model's own plan lacks
        elif kind == "back":
            self._shell.post(e.DeviceBack(name))
            self._background.do(lambda: self._deployments.clean(name))
            self._recovery.look()
        elif kind in ("restarted", "moved"):
            # Its process is new: what it had loaded is gone, and with it every route through it. What it could not
            # be told to forget is forgotten. Where it is reached elsewhere, its neighbours have it at its old address.
            self._background.do(lambda: self._deployments.clean(name))
            self._members.answered(name)
            why = "its agent restarted" if kind == "restarted" else "it is reached at another address"
            self._shell.post(e.DeviceLost(name, why, restarted=True))
            self._recovery.look()
        self._log.note(*_words(kind, name, detail), level=_LEVELS.get(kind, "info"), device=name)
        level = logging.INFO if kind == "alive" else logging.WARNING
        logger.log(level, "agent %s is %s%s", name, kind, f": {detail}" if detail else "")


_LEVELS: Final[dict[str, Level]] = {
    "lost": "error",
    "restarted": "warning",
    "moved": "warning",
    "refused": "error",
}
"""How bad it is what happens to an agent; the rest is good news."""


def _words(kind: str, name: str, detail: str) -> tuple[str, str]:
    """Kind and sentence of what happened to an agent, for the event log."""
    words = {
        "alive": ("agent-joined", f"agent {name} has joined"),
        "lost": ("agent-lost", f"agent {name} is lost"),
        "back": ("agent-back", f"agent {name} is back with what it had loaded"),
        "restarted": ("agent-restarted", f"agent {name} has restarted, and holds nothing"),
        "moved": ("agent-moved", f"agent {name} is reached at another address"),
        "refused": ("agent-refused", f"agent {name} is not taken"),
    }
    known, text = words.get(kind, (f"agent-{kind}", f"agent {name} is {kind}"))
    return known, text + (f": {detail}" if detail else "")
