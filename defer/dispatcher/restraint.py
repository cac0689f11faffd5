"""When a model's plan may be changed again because something has drifted. Pure.

Each change costs loading, and one that was wrong costs another. So after a change nothing is changed for a pause, which
doubles with each further change while the last ones are not long ago: however measurements jump, changes become rare.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

DOUBLINGS: Final = 5
"""The pause is doubled this often at most."""

MEMORY: Final = 64.0
"""Changes longer ago than so many pauses count no more."""


@dataclass(slots=True)
class Restraint:
    """Counts the changes of one model.

    Args:
        pause: Seconds between the first change and the next.
    """

    pause: float
    _changes: deque[float] = field(default_factory=lambda: deque(maxlen=DOUBLINGS + 1))
    _failed: float | None = None
    _asked: tuple[object, float] | None = None

    def until(self, now: float) -> float:
        """When the next change may be made; not after `now` where it may be made at once."""
        while self._changes and self._changes[0] < now - MEMORY * self.pause:
            self._changes.popleft()
        due = now
        if self._changes:
            due = max(due, self._changes[-1] + self.pause * 2.0 ** (len(self._changes) - 1))
        if self._failed is not None:
            due = max(due, self._failed + self.pause)
        return due

    def asks(self, question: object, now: float, *, again: bool) -> bool:
        """Whether a plan should be looked for now; it counts as asked then.

        Args:
            question: All that the answer depends on.
            now: In seconds.
            again: Whether the same question is worth asking after a pause: traffic may be another then.
        """
        if self.until(now) > now:
            return False
        if self._asked is not None:
            before, at = self._asked
            if before == question and (not again or now < at + self.pause):
                return False
        self.settled(question, now)
        return True

    def settled(self, question: object, now: float) -> None:
        """The answer is known: what serves is what was found."""
        self._asked = (question, now)

    def changed(self, now: float) -> None:
        """The plan was changed."""
        self._changes.append(now)
        self._failed = None

    def failed(self, now: float) -> None:
        """A change was tried and could not be made."""
        self._failed = now
