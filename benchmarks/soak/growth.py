"""Whether something grows: a robust slope through what was seen of it, and a rule for what counts as flat. Pure.

What is seen is put together by spans of time, each told by its lower fifth: what leaks never comes back, while two
deployments lie side by side for a moment only, and so does a client that has just hung up. The slope is the median of
the slopes between all pairs of those (Theil and Sen): up to 29 % of them may be anything. Growth is the slope times the
time that was judged; flat is what grew less than is allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

MIB = 1 << 20
DAY_S = 86400.0

WARM = 0.25
"""Part of the time that is not judged: caches fill, allocators find their size."""

SPANS = 9
"""Into which the rest is divided; everything that is done now and then is done in each of them."""

Seen = Sequence[tuple[float, float]]
"""Seconds and what was held then."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """What still counts as flat over the time that is judged.

    Attributes:
        share: Of the median.
        least: However small the median is; in the unit of what is judged.
    """

    share: float
    least: float


ALLOWED = {
    "memory": Allowed(0.02, 2 * MIB),
    "descriptors": Allowed(0.0, 0.9),
    "threads": Allowed(0.0, 0.9),
    "sockets": Allowed(0.0, 0.9),
    "database": Allowed(0.02, MIB / 4),
    "disk": Allowed(0.02, MIB / 4),
}
"""Descriptors, threads and sockets are whole: what grows by less than one does not grow."""


@dataclass(frozen=True, slots=True)
class Growth:
    """What became of one quantity of one process.

    Attributes:
        level: Median while it was judged.
        grown: Slope times the time that was judged.
        per_day: The slope, over a day.
        flat: Whether `grown` is allowed.
    """

    level: float
    grown: float
    per_day: float
    flat: bool


def slope(points: Seen) -> float:
    """Median of the slopes between all pairs of points, per second; 0 for fewer than two."""
    slopes = [(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(points, 2) if x2 > x1]
    return median(slopes) if slopes else 0.0


def spans(seen: Seen, count: int = SPANS) -> list[tuple[float, float]]:
    """Of `count` spans of equal length the middle, and the value that a fifth lies below; empty ones are left out."""
    if not seen:
        return []
    first, last = seen[0][0], seen[-1][0]
    width = (last - first) / count or 1.0
    parts: list[list[tuple[float, float]]] = [[] for _ in range(count)]
    for at, value in seen:
        parts[min(count - 1, int((at - first) / width))].append((at, value))
    return [
        (median(at for at, _ in part), sorted(value for _, value in part)[len(part) // 5])
        for part in parts
        if part
    ]


def judge(kind: str, seen: Seen, warm: float = WARM) -> Growth:
    """What became of a quantity.

    Args:
        kind: One of `ALLOWED`.
        seen: In order of time.
        warm: Part of the time that is left out at the beginning.
    """
    begin = seen[0][0] + warm * (seen[-1][0] - seen[0][0])
    late = [point for point in seen if point[0] >= begin]
    rate = slope(spans(late))
    level = median(value for _, value in late)
    grown = rate * (late[-1][0] - late[0][0])
    allowed = ALLOWED[kind]
    return Growth(level, grown, rate * DAY_S, grown <= max(allowed.least, allowed.share * level))
