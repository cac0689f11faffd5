"""What heartbeats tell beyond that an agent lives: a stage that hangs or goes on again, and devices with nothing to do.

Pure. A stage hangs when its item is older than a stage of this plan can be: than three times what was predicted or seen.
A stage that is merely slow has been seen to be slow, or is seen to be so at its first item that ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from node_agent.messages import Heartbeat

LEAST_S = 0.4
"""An item younger than this hangs nowhere."""

FACTOR = 3.0
"""An item may be so many times older than what was predicted, or seen."""

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
        return frozenset(name for name, seen in self._seen.items() if seen.hung)

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
        seen.progress, seen.age = beat.progress, beat.item_age_s
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
        limit = max(LEAST_S, FACTOR * max(expected, seen.slowest))
        if beat.item_age_s > limit:
            seen.hung = True
            return Hung(device, beat.item_age_s, limit)
        return None
