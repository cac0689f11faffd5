"""What the dispatcher counts: totals, and the recent rate and latency of each deployment."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from node_agent.messages import TensorHeader

RATE_WINDOW_S = 10
"""Seconds over which a rate is taken."""

RECENT = 1024
"""Latencies kept for percentiles."""


LATENCY_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the buckets that latencies are counted in, in seconds."""


@dataclass(slots=True)
class Totals:
    """Counts of one model over all its deployments; they only rise while the process lives.

    Attributes:
        succeeded: Requests that ended with a result.
        failed: Accepted requests that ended with an error, by code.
        inferences: Elements of a free first dimension of the former, or their number where it is not free.
        seconds: From acceptance to the result, of those that succeeded, in all.
        waited: Requests that were sent to the first stage; one that is sent again counts again.
        waited_s: Seconds that they had waited for that, in all.
        latencies: How many succeeded within each of `LATENCY_BOUNDS`, and in no bound.
    """

    succeeded: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    inferences: int = 0
    seconds: float = 0.0
    waited: int = 0
    waited_s: float = 0.0
    latencies: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS) + 1))


@dataclass(slots=True)
class Before:
    """Counts of the deployments in whose place one has come, after a loss or for a better plan of the same model."""

    accepted: int = 0
    answered: int = 0
    failed: int = 0
    cancelled: int = 0


@dataclass(slots=True)
class Traffic:
    """Counts of one deployment.

    Attributes:
        totals: Of its model; shared with the model's other deployments.
        batched: Whether the first dimension of the model's first input is free.
        accepted: Requests taken.
        answered: Of those, ended with a result.
        failed: Of those, ended with an error.
        cancelled: Of those, given up by their clients.
        before: What has to be added where a model is told of, and not a route.
    """

    totals: Totals = field(default_factory=Totals)
    batched: bool = False
    accepted: int = 0
    answered: int = 0
    failed: int = 0
    cancelled: int = 0
    before: Before = field(default_factory=Before)
    _latencies: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    _seconds: deque[list[int]] = field(default_factory=lambda: deque(maxlen=RATE_WINDOW_S + 1))

    def sent(self, seconds: float) -> None:
        """A request went to the first stage, `seconds` after it was accepted."""
        self.totals.waited += 1
        self.totals.waited_s += seconds

    def ended(self, code: str) -> None:
        """An accepted request ended with an error."""
        self.failed += 1
        self.cancelled += code == "cancelled"
        self.totals.failed[code] += 1

    def finished(self, now: float, seconds: float, inputs: Sequence[TensorHeader] = ()) -> None:
        """A result was delivered `seconds` after its request, which brought `inputs`, was accepted."""
        self.answered += 1
        totals = self.totals
        totals.succeeded += 1
        totals.inferences += inputs[0].shape[0] if self.batched and inputs and inputs[0].shape else 1
        totals.seconds += seconds
        totals.latencies[bisect_left(LATENCY_BOUNDS, seconds)] += 1
        self._latencies.append(seconds)
        second = int(now)
        if self._seconds and self._seconds[-1][0] == second:
            self._seconds[-1][1] += 1
        else:
            self._seconds.append([second, 1])

    def inherit(self, gone: Traffic) -> None:
        """Go on from what a deployment came to in whose place this one is."""
        self.before.accepted += gone.accepted + gone.before.accepted
        self.before.answered += gone.answered + gone.before.answered
        self.before.failed += gone.failed + gone.before.failed
        self.before.cancelled += gone.cancelled + gone.before.cancelled

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
        replayed: Requests sent again because a connection broke.
    """

    refused: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    stale: int = 0
    replayed: int = 0
