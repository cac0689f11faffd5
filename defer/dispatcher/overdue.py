"""Which requests must have got lost on the way, although every device of their route is well. Pure.

A connection between two agents that breaks takes with it what was on it, and neither agent knows of that. Two signs:

* every device of the route has been idle for longer than a request may be on a link, and
* a request that was sent later has been back for that long: connections and stages keep the order.

`still` asks less: it tells the routes from which nothing comes back, whatever their devices do. Links are tried then.

Both wait for `patience`, so that a slow link is not taken for a broken one, and twice as long after each time that the
request was sent again. Sending again what was not lost does no harm: the first result is delivered, the other dropped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

LEAST_S = 0.4
"""Patience at least: below, a busy machine looks like a broken link."""

FACTOR = 3.0
"""Patience by what is predicted."""

SLOWEST = 2.0
"""Patience by the slowest answer lately."""

EVERY_S = 0.1
"""How often is looked; heartbeats come as often."""

FADES = 0.95
"""What is left of the slowest answer after each one that was faster."""

DOUBLINGS = 8
"""Patience is doubled this often at most."""


class _Sent(msgspec.Struct, gc=False):
    at: float
    order: int
    scale: float
    overtaken: float = math.inf


@dataclass(slots=True)
class _Book:
    """What is under way on one route, in the order in which it was sent; since when without a result."""

    devices: tuple[str, ...]
    predicted: float
    under_way: dict[int, _Sent] = field(default_factory=dict)
    newest_back: int = -1
    slowest: float = 0.0
    since: float = math.nan

    @property
    def patience(self) -> float:
        return max(LEAST_S, FACTOR * self.predicted, SLOWEST * self.slowest)


class Overdue:
    """Watches the requests that are under way.

    Attributes:
        quiet: Devices that have nothing to do, each with the time since when; by heartbeats.
    """

    def __init__(self) -> None:
        self.quiet: Mapping[str, float] = {}
        self._books: dict[int, _Book] = {}
        self._tries: dict[int, int] = {}
        self._next_order = 0
        self._looked = -math.inf

    def open(self, epoch: int, devices: tuple[str, ...], predicted: float) -> None:
        """A route was loaded; `predicted` is the seconds of one request through it."""
        self._books[epoch] = _Book(devices, predicted)

    def close(self, epoch: int) -> None:
        """A route is gone."""
        self._books.pop(epoch, None)

    def sent(self, epoch: int, number: int, now: float, scale: float = 1.0) -> float:
        """A request was sent; `scale` is its size by that of the one that was predicted. Returns when to look next."""
        if self._looked < now - EVERY_S:  # nothing was under way
            self._looked = now
        book, tries = self._books[epoch], self._tries.get(number, 0)
        if not book.under_way and (tries == 0 or math.isnan(book.since)):
            book.since = now
        book.under_way[number] = _Sent(now, self._next_order, max(1.0, scale))
        self._tries[number] = tries + 1
        self._next_order += 1
        return self._looked + EVERY_S

    def back(self, epoch: int, number: int, now: float) -> None:
        """A result came back."""
        book = self._books[epoch]
        sent = book.under_way.get(number)
        if sent is not None:
            book.newest_back = max(book.newest_back, sent.order)
            book.since = now
            book.slowest = max((now - sent.at) / sent.scale, FADES * book.slowest)

    def left(self, epoch: int, number: int) -> None:
        """A request is not under way on this route any more."""
        book = self._books.get(epoch)
        if book is not None:
            book.under_way.pop(number, None)

    def ended(self, number: int) -> None:
        """A request was answered."""
        self._tries.pop(number, None)

    def still(self, now: float) -> list[int]:
        """Routes on which requests are under way, and from which nothing has come back for longer than is their way."""
        return [
            epoch
            for epoch, book in self._books.items()
            if book.under_way
            and now - book.since > book.patience * max(sent.scale for sent in book.under_way.values())
        ]

    def next_look(self) -> float:
        """When `lost` should be asked next; infinity while nothing is under way."""
        for book in self._books.values():
            if book.under_way:
                return self._looked + EVERY_S
        return math.inf

    def lost(self, now: float) -> Iterator[tuple[int, Sequence[int]]]:
        """The requests that must be sent again now, by epoch, in the order in which they were sent."""
        if now < self._looked + EVERY_S:
            return
        self._looked = now
        for epoch, book in list(self._books.items()):
            if book.under_way:
                numbers = self._lost(book, now)
                if numbers:
                    yield epoch, numbers

    def _lost(self, book: _Book, now: float) -> list[int]:
        quiet = max((self.quiet.get(device, math.inf) for device in book.devices), default=math.inf)
        numbers = []
        for number, sent in book.under_way.items():
            if sent.order < book.newest_back:
                sent.overtaken = min(sent.overtaken, now)
            elif quiet == math.inf:
                break
            since = min(sent.overtaken, max(quiet, sent.at))
            tries = min(DOUBLINGS, self._tries.get(number, 1) - 1)
            if now - since > book.patience * sent.scale * 2**tries:
                numbers.append(number)
        return numbers
