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

COUNTS: Final = 60
"""Counts of requests that are kept of a model, over the horizon."""


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


@dataclass(slots=True)
class Demand:
    """How many requests a second a model is asked for; the past is what is known of the time to come.

    Args:
        horizon: Seconds that count.
    """

    horizon: float
    _counts: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=COUNTS))
    _last: tuple[float, int] = (0.0, 0)

    def note(self, count: int, now: float) -> None:
        """So many requests have been sent to the first stage by now."""
        if not self._counts or now >= self._counts[-1][0] + self.horizon / COUNTS:
            self._counts.append((now, count))
        self._last = (now, count)

    @property
    def rate(self) -> float:
        """Per second over the horizon, or over its last half, if that were more.

        Requests that are not sent now because something is slow were asked for before it became so.
        """
        now, count = self._last
        kept = list(self._counts)
        found = [
            max(0, count - before) / max(now - at, 1.0)
            for at, before in (*kept[:1], *kept[len(kept) // 2 :][:1])
        ]
        return max(found, default=0.0)
