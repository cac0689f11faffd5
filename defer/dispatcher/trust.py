"""How soon a device that was lost is relied on again: at once after one loss, later and later after several. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

MEMORY_S = 300.0
"""Losses longer ago count no more."""

FIRST_S = 1.0
LONGEST_S = 60.0
"""Hold-off after the second loss, doubled with each further one, up to the longest."""


@dataclass(slots=True)
class Trust:
    """Counts the losses of every device."""

    _losses: dict[str, deque[float]] = field(default_factory=dict)

    def lost(self, device: str, now: float) -> None:
        """A device was lost."""
        self._losses.setdefault(device, deque(maxlen=16)).append(now)

    def until(self, device: str, now: float) -> float:
        """When the device may be relied on again; not after `now` where it may be already."""
        losses = self._losses.get(device)
        while losses and losses[0] < now - MEMORY_S:
            losses.popleft()
        if not losses or len(losses) < 2:
            return now
        return losses[-1] + min(LONGEST_S, FIRST_S * 2.0 ** (len(losses) - 2))
