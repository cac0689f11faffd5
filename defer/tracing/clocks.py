"""How far another monotonic clock is ahead of ours, from questions and answers. Pure.

As in NTP: a clock that was read between our times b and e showed our (b + e) / 2, give or take (e - b) / 2. That holds
whatever the way there and back took, so of several readings the one of the shortest round trip is the best (D. Mills,
RFC 5905, the clock filter).
Crystals differ by some 10 to 100 µs per second, so clocks are read before and after a run, and between the two the
difference is taken as a straight line.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at another clock.

    Attributes:
        at_ns: Our time.
        ahead_ns: How far the other clock was ahead then.
        error_ns: It may have been as much more or less than that.
    """

    at_ns: int
    ahead_ns: int
    error_ns: int

    @classmethod
    def of(cls, begun_ns: int, other_ns: int, ended_ns: int) -> Reading:
        """A clock that showed `other_ns` at some time between `begun_ns` and `ended_ns` of ours."""
        middle = (begun_ns + ended_ns) // 2
        # Rounded up: the bound must hold.
        return cls(middle, other_ns - middle, (ended_ns - begun_ns + 1) // 2 + 1)


def best_reading(readings: Iterable[Reading]) -> Reading:
    """The one whose round trip was the shortest, of one or more."""
    return min(readings, key=lambda reading: reading.error_ns)


@dataclass(frozen=True, slots=True)
class Clock:
    """Another clock, by a reading before and one after.

    Attributes:
        first: The earlier one.
        last: The later one; the same where there is only one.
    """

    first: Reading
    last: Reading

    @property
    def error_ns(self) -> int:
        """What a time of this clock may be wrong by when it is told in ours."""
        return max(self.first.error_ns, self.last.error_ns)

    def ours(self, other_ns: int) -> int:
        """When it was on our clock that the other showed `other_ns`."""
        first, last = self.first, self.last
        begun, ended = first.at_ns + first.ahead_ns, last.at_ns + last.ahead_ns
        if ended <= begun:
            return other_ns - first.ahead_ns
        # Beyond the readings the line would lead anywhere: the nearer one holds there.
        share = min(max((other_ns - begun) / (ended - begun), 0.0), 1.0)
        return other_ns - first.ahead_ns - round(share * (last.ahead_ns - first.ahead_ns))


OURS = Clock(Reading(0, 0, 0), Reading(0, 0, 0))
"""Our own clock, which is right by definition."""
