"""What the dispatcher counts: totals, and the recent rate and latency of each deployment."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

RATE_WINDOW_S = 10
"""Seconds over which a rate is taken."""

RECENT = 1024
"""Latencies kept for percentiles."""


@dataclass(slots=True)
class Traffic:
    """Counts of one deployment.

    Attributes:
        accepted: Requests taken.
        answered: Of those, ended with a result.
        failed: Of those, ended with an error.
    """

    accepted: int = 0
    answered: int = 0
    failed: int = 0
    _latencies: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    _seconds: deque[list[int]] = field(default_factory=lambda: deque(maxlen=RATE_WINDOW_S + 1))

    def finished(self, now: float, seconds: float) -> None:
        """A result was delivered `seconds` after its request was accepted."""
        self.answered += 1
        self._latencies.append(seconds)
        second = int(now)
        if self._seconds and self._seconds[-1][0] == second:
            self._seconds[-1][1] += 1
        else:
            self._seconds.append([second, 1])

    def rate(self, now: float) -> float:
        """Results per second over the last whole seconds, or over what there is of them."""
        second = int(now)
        counts = [count for at, count in self._seconds if second - RATE_WINDOW_S <= at < second]
        if not counts:
            return 0.0
        first = min(at for at, _ in self._seconds if second - RATE_WINDOW_S <= at < second)
        return sum(counts) / (second - first)

    def latency(self, quantile: float) -> float:
        """A quantile (0 to 1) of recent latencies in seconds, 0 where there are none."""
        if not self._latencies:
            return 0.0
        ordered = sorted(self._latencies)
        return ordered[min(int(quantile * len(ordered)), len(ordered) - 1)]


@dataclass(slots=True)
class Counters:
    """Counts of the whole dispatcher.

    Attributes:
        refused: Requests never accepted, by code.
        failed: Accepted requests that ended with an error, by code.
        repeated: Requests that were already known and not run again.
        stale: Results and failures of requests that had ended, or of routes that are gone.
        malformed: Results that did not carry what the plan says.
        replayed: Requests sent again because a connection broke.
    """

    refused: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    stale: int = 0
    malformed: int = 0
    replayed: int = 0
