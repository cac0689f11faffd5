"""What waits for a thread or a peer, in the order in which it goes: by priority, and nobody waits for ever.

The entry with the smallest number goes next, of equal ones the one that came first. Where `PASSED` entries in a row have
gone before one that came earlier than they, the one that came first of all goes next. So whatever comes, an entry with n
before it at its arrival has gone after at most (n + 1) × (PASSED + 1) turns.

`Line` is pure; `Waiting` is a line between threads.
"""

from __future__ import annotations

import threading
from bisect import insort
from collections import deque
from collections.abc import Iterator
from operator import itemgetter
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")

PASSED = 8
"""See the module."""


class Line(Generic[T]):
    """See the module."""

    def __init__(self) -> None:
        self._count = 0
        self._passed = 0
        # Priority, number and entry of what may go; what stands behind a call in the order in which it came.
        self._front: list[tuple[int, int, T]] = []
        self._behind: deque[tuple[int | None, int, T]] = deque()

    def __len__(self) -> int:
        return len(self._front) + len(self._behind)

    def __iter__(self) -> Iterator[T]:
        """Everything, in the order in which it came."""
        for _, _, entry in sorted(self._front, key=itemgetter(1)):
            yield entry
        for _, _, entry in self._behind:
            yield entry

    def put(self, entry: T, priority: int | None) -> None:
        """Adds an entry; one without a priority lets nothing pass, neither forward nor back."""
        self._count += 1
        if priority is None or self._behind:
            self._behind.append((priority, self._count, entry))
        else:
            insort(self._front, (priority, self._count, entry), key=_order)

    def first(self) -> T:
        """What `take` would take; there must be something."""
        return self._front[self._next()][2] if self._front else self._behind[0][2]

    def take(self) -> T:
        """Takes what goes next; there must be something."""
        if self._front:
            at = self._next()
            taken = self._front.pop(at)
            passes = (
                any(other[1] < taken[1] for other in self._front) if taken[0] != self._lowest() else False
            )
            self._passed = self._passed + 1 if passes else 0
            return taken[2]
        entry = self._behind.popleft()[2]
        while self._behind and self._behind[0][0] is not None:
            priority, number, other = self._behind.popleft()
            assert priority is not None
            insort(self._front, (priority, number, other), key=_order)
        return entry

    def _lowest(self) -> int | None:
        return self._front[-1][0] if self._front else None

    def _next(self) -> int:
        if self._passed < PASSED:
            return 0
        return min(range(len(self._front)), key=lambda at: self._front[at][1])


def _order(entry: tuple[int, int, T]) -> tuple[int, int]:
    return entry[0], entry[1]


class Waiting(Generic[T]):
    """A `Line` between threads, one of which takes from it; with the methods of `queue.SimpleQueue`."""

    def __init__(self) -> None:
        self._line: Line[T] = Line()
        self._lock = threading.Lock()
        self._there: SimpleQueue[None] = SimpleQueue()

    def put(self, entry: T, priority: int | None) -> None:
        """See `Line.put`."""
        with self._lock:
            self._line.put(entry, priority)
        self._there.put(None)

    def get(self, timeout: float | None = None) -> T:
        """Takes what goes next, and waits for it.

        Raises:
            queue.Empty: Nothing came for so many seconds.
        """
        self._there.get(timeout=timeout)
        with self._lock:
            return self._line.take()

    def get_nowait(self) -> T:
        """Takes what goes next.

        Raises:
            queue.Empty: There is nothing.
        """
        self._there.get_nowait()
        with self._lock:
            return self._line.take()

    def empty(self) -> bool:
        """Whether nothing waits."""
        return self._there.empty()
