"""What keeps models from being mended: each reason is told once, and tried again later and later. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

AGAIN_S = 0.25
"""Pause before a model that could not be mended is tried again, unless other devices are missing by then."""

SOON = 4
"""So often a reason may be a passing one: an agent is still unloading, a connection is being made."""

DOUBLED = 4
"""How often the pause is doubled after that."""

REASONS = 16
"""Reasons of one model that are remembered at most."""

_EPOCH = re.compile(r"\d{10,}")


@dataclass(frozen=True, slots=True)
class Failed:
    """What follows from a try that failed.

    Attributes:
        new: Whether this reason was not told before.
        stays: Whether it has come so often now, for the first time, that it is no passing one.
        pause_s: Seconds before the next try.
    """

    new: bool
    stays: bool
    pause_s: float


class Unmended:
    """Reasons by model, until it is mended."""

    def __init__(self) -> None:
        self._seen: dict[str, dict[str, int]] = {}

    def failed(self, model: str, reason: str) -> Failed:
        """A model could not be mended; numbers of deployments make no other reason."""
        seen = self._seen.setdefault(model, {})
        key = _EPOCH.sub("", reason)
        times = seen[key] = seen.pop(key, 0) + 1
        while len(seen) > REASONS:
            del seen[next(iter(seen))]
        pause = AGAIN_S * 2 ** min(max(0, times - SOON), DOUBLED)
        return Failed(times == 1, times == SOON, pause)

    def mended(self, model: str) -> None:
        """It is served: whatever comes next is told anew."""
        self._seen.pop(model, None)

    def prune(self, models: Collection[str]) -> None:
        """Only these are deployed."""
        self._seen = {model: seen for model, seen in self._seen.items() if model in models}
