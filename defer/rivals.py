"""Agents that register under the name of one that is elsewhere, or that lives: which of the two it is. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from node_agent.messages import Fault, Hello

if TYPE_CHECKING:
    from defer.agents_core import Liveness

LIVES_S: Final = 0.5
"""An agent that is still heard of this long after another process came by its name lives."""

ABSENT_S: Final = 5.0
"""Where an agent is dialled and has not answered for this long after another came by its name, the other is told."""

Verdict = Literal["wait", "take", "same", "no"]


@dataclass(frozen=True, slots=True)
class Rival:
    """One that came by the name of another.

    Attributes:
        hello: What it said last.
        via: The connection on which it did.
        version: Of the protocol, for both.
        at: Where the cluster has the agent of that name, `tcp://host:port`; empty for one that registers.
        since: When it first said so, s.
    """

    hello: Hello
    via: bytes
    version: int
    at: str
    since: float

    def verdict(self, known: Liveness | None, now: float) -> Verdict:
        """Whether it is taken, as soon as that can be known.

        Args:
            known: The agent whose name it has.
            now: s, on the clock of `since`.

        Returns:
            `take`: in the other's place, which is gone. `same`: both are one process. `no`: the other lives, or is to
            be elsewhere. `wait`: it is not known yet.
        """
        lives = known is not None and known.state == "alive"
        if self.at:
            if known is not None and lives and known.boot == self.hello.boot:
                return "same"
            if not lives:
                return "no" if now - self.since > ABSENT_S else "wait"
        elif known is None or not is_another(known, self.hello):
            return "take"
        # What has just ended was heard of before the other came, not since.
        return "no" if known is not None and known.heard_at - self.since > LIVES_S else "wait"

    def refusal(self, known: Liveness | None) -> Fault:
        """What it is told where the verdict is `no`."""
        name = self.hello.name
        hint = "start this one with another --name"
        if not self.at:
            why = f"another agent called {name!r} is registered, and alive"
            return Fault(self.hello.id, "not-allowed", why, hint)
        lives = known is not None and known.state == "alive"
        who = "another agent of that name answers" if lives else "nobody answers"
        why = f"the cluster has {name!r} at {self.at.removeprefix('tcp://')}, where {who}"
        hint += "; or, if it is that device, say `dials = true` in the cluster file"
        return Fault(self.hello.id, "not-allowed", why, hint)


def is_another(known: Liveness, hello: Hello) -> bool:
    """Whether an agent that lives is another process than one that registers under its name."""
    return known.state == "alive" and bool(known.boot) and bool(hello.boot) and known.boot != hello.boot
