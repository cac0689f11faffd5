"""What heartbeats tell beyond that an agent lives: a stage that hangs or goes on again, and devices with nothing to do.

Pure. A stage hangs when its item is older than a stage of this plan can be, three times what was predicted or seen, and
the thread that runs it gets no work done: it waits for something that does not come. One that is merely slow uses its
processor. One that uses it and never ends hangs as well, which is known only much later.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from node_agent.messages import Heartbeat

LEAST_S = 0.25
"""An item younger than this hangs nowhere. A heartbeat later that is known: within 0.4 s."""

FACTOR = 3.0
"""An item may be so many times older than what was predicted, or seen."""

WORKS = 0.01
"""Part of a processor that a thread uses at least while it works, however slow the device has become."""

LOOKS_BACK_S = 0.4
"""Over how long that is looked at."""

SHORTEST_S = 0.15
"""Heartbeats of one item that are nearer to each other than this do not tell."""

AT_WORK_S = 2.0
"""After this, a thread that has worked on a long item is no longer said to be at work."""

BUSY = 50.0
"""An item on which its thread works may be so many times older than one on which it does not."""

FADES = 0.999
"""What is left of the slowest item after each heartbeat."""


@dataclass(frozen=True, slots=True)
class Hung:
    """The item in work on a device is too old."""

    device: str
    age_s: float
    limit_s: float


@dataclass(frozen=True, slots=True)
class Moving:
    """A device that hung has finished its item."""

    device: str


@dataclass(slots=True)
class _Seen:
    progress: int = -1
    age: float = 0.0
    slowest: float = 0.0
    hung: bool = False
    quiet_since: float | None = None
    worked_at: float = -math.inf
    used: deque[tuple[float, float]] = field(default_factory=deque)

    def works(self, beat: Heartbeat, heard: float, *, same: bool) -> bool:
        """Whether the thread with the item in work has used its processor lately."""
        if not same:
            self.used.clear()
        if not self.used or self.used[-1][0] < heard:
            self.used.append((heard, beat.run_cpu_s))
        while len(self.used) > 2 and self.used[1][0] <= heard - LOOKS_BACK_S:
            self.used.popleft()
        (since, before), (until, now) = self.used[0], self.used[-1]
        if beat.run_cpu_s > 0 and until - since < SHORTEST_S:
            return True  # heartbeats come late where a processor is short of time: the next one tells
        return now - before > WORKS * (until - since)


@dataclass(slots=True)
class Watch:
    """Looks at the latest heartbeat of every agent.

    Attributes:
        quiet: Devices with nothing to do, each with the time since when.
        hung: Devices that hang.
    """

    quiet: dict[str, float] = field(default_factory=dict)
    _seen: dict[str, _Seen] = field(default_factory=dict)

    @property
    def hung(self) -> frozenset[str]:
        """Devices whose item in work is too old."""
        return frozenset(name for name, seen in list(self._seen.items()) if seen.hung)

    def at_work(self, now: float) -> frozenset[str]:
        """Devices that worked on an item that takes long a moment ago: what passes them is slow, not lost."""
        return frozenset(name for name, seen in list(self._seen.items()) if seen.worked_at > now - AT_WORK_S)

    def gone(self, device: str) -> None:
        """A device is out of reach, or its process is new: what was seen of it counts no more."""
        self._seen.pop(device, None)
        self.quiet.pop(device, None)

    def look(
        self, beats: Mapping[str, tuple[Heartbeat, float]], expected: Mapping[str, float]
    ) -> list[Hung | Moving]:
        """Compare the heartbeats with those before.

        Args:
            beats: The latest of each agent in reach, and when it was heard.
            expected: Predicted seconds of the longest stage on each device; a device without one cannot hang.

        Returns:
            What has changed.
        """
        changes: list[Hung | Moving] = []
        for device, (beat, heard) in beats.items():
            seen = self._seen.setdefault(device, _Seen())
            change = self._beat(device, seen, beat, heard, expected.get(device))
            if change is not None:
                changes.append(change)
        for device in self._seen.keys() - beats.keys():
            self.gone(device)
        self.quiet = {
            name: seen.quiet_since for name, seen in self._seen.items() if seen.quiet_since is not None
        }
        return changes

    def _beat(
        self, device: str, seen: _Seen, beat: Heartbeat, heard: float, expected: float | None
    ) -> Hung | Moving | None:
        moved = beat.progress != seen.progress
        if moved or beat.item_age_s < seen.age:
            seen.slowest = max(FADES * seen.slowest, seen.age)
        works = seen.works(beat, heard, same=not moved and beat.item_age_s >= seen.age > 0)
        seen.progress, seen.age = beat.progress, beat.item_age_s
        if works and beat.item_age_s > LEAST_S:
            seen.worked_at = heard
        idle = beat.item_age_s == 0 and beat.queued == 0
        if not idle:
            seen.quiet_since = None
        elif moved or seen.quiet_since is None:
            seen.quiet_since = heard
        if seen.hung:
            if moved:
                seen.hung = False
                return Moving(device)
            return None
        if expected is None:
            return None
        limit = max(LEAST_S, FACTOR * max(expected, seen.slowest)) * (BUSY if works else 1.0)
        if beat.item_age_s > limit:
            seen.hung = True
            return Hung(device, beat.item_age_s, limit)
        return None
