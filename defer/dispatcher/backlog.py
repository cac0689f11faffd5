"""How much work waits at each device and link, as far as the dispatcher can tell. Pure.

A virtual queue per resource, in seconds: a request's work is added when it is accepted and drains at one second per
second, so that a decision counts at once and not when the request gets there. Predictions are not the truth, and two
corrections keep the queues near it: no more waits than unanswered requests have brought, and requests that should have
been answered by now still wait. So a device that is faster than predicted is not taken for busy, and one that is slower
is not taken for idle.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

MOST_LATE = 256
"""Late requests that are counted per route; of a route with more, nobody needs to know how many."""

Work = Sequence[tuple[str, float]]
"""Busy seconds per request of each resource on a route."""


@dataclass(slots=True)
class _Book:
    """What is under way on a route: the number of each request, and when its answer is due."""

    latency: float
    work: Work
    due: dict[int, float] = field(default_factory=dict)

    def late(self, now: float) -> int:
        """Requests whose answer is overdue; they are kept in the order of acceptance, which is nearly that."""
        count = 0
        for due in islice(self.due.values(), MOST_LATE):
            if due >= now:
                break
            count += 1
        return count


class Backlog:
    """The virtual queues of every resource on the loaded routes."""

    def __init__(self) -> None:
        self._books: dict[int, _Book] = {}
        self._virtual: dict[str, float] = {}
        self._seen = 0.0

    def open(self, epoch: int, latency: float, work: Work) -> None:
        """A route was loaded.

        Args:
            epoch: Its number.
            latency: Seconds of one request through it when nothing waits.
            work: What a request asks of its resources.
        """
        self._books[epoch] = _Book(latency, work)

    def close(self, epoch: int) -> None:
        """A route is gone."""
        self._books.pop(epoch, None)

    def accepted(self, epoch: int, number: int, now: float) -> None:
        """A request was given to a route."""
        book = self._books[epoch]
        waits = self.waits(now)
        book.due[number] = now + book.latency + sum(waits[name] for name, _ in book.work)
        for name, seconds in book.work:
            self._virtual[name] = self._virtual.get(name, 0.0) + seconds

    def ended(self, epoch: int, number: int) -> None:
        """A request was answered, or left its route."""
        book = self._books.get(epoch)
        if book is not None:
            book.due.pop(number, None)

    def waits(self, now: float) -> Mapping[str, float]:
        """Seconds of work that wait at each resource; 0 for one that no route names."""
        passed, self._seen = now - self._seen, now
        most: defaultdict[str, float] = defaultdict(float)
        late: defaultdict[str, float] = defaultdict(float)
        for book in self._books.values():
            if book.due:
                count, overdue = len(book.due), book.late(now)
                for name, seconds in book.work:
                    most[name] += count * seconds
                    late[name] += overdue * seconds
        self._virtual = {
            name: left
            for name, queue in self._virtual.items()
            if (left := min(queue - passed, most[name])) > 0
        }
        for name, queue in self._virtual.items():
            late[name] = min(late[name] + queue, most[name])
        return late

    def usual_v(self, epochs: Sequence[int]) -> float:
        """Seconds to weigh the own delay with, where nobody says: half of what the routes' busiest resources take.

        Own delay and drift are then of one scale, whether stages take milliseconds or seconds; in the simulator p99
        hardly changes between a third of this and twice of it.
        """
        most = [max((seconds for _, seconds in self._books[epoch].work), default=0.0) for epoch in epochs]
        return 0.5 * sum(most) / len(most)

    def score(self, epoch: int, waits: Mapping[str, float], v: float) -> float:
        """What a request on this route costs itself and those after it: drift plus penalty, as `router.online` has it.

        Args:
            epoch: The route.
            waits: As `waits` returned them.
            v: Seconds by which the request's own delay is weighed against the delay that it causes.
        """
        book = self._books[epoch]
        own = book.latency
        drift = 0.0
        for name, seconds in book.work:
            queue = waits.get(name, 0.0)
            own += queue
            drift += queue * seconds
        return v * own + drift
