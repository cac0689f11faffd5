"""Which routes have not been heard of for long, and which do not answer: when a canary is due, and what it found. Pure.

A route that answers requests needs no canary. One that has given no result for a while gets one, whether requests are
under way on it or not: a pipeline that has stopped has nothing else to show for it. The first requests after a pause are
given the same time, though: they tell as much as a canary would, which they would only have to wait for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

PATIENCE: Final = 10.0
"""A canary may take so many times longer than the one by which its deployment was proven."""

LEAST_S: Final = 5.0
"""Patience at least."""

EXCUSED: Final = frozenset({"overloaded", "not-ready", "unknown-model", "cancelled"})
"""Codes of a canary that was not let in: the route is full, or about to go, and not broken."""


@dataclass(slots=True)
class _Route:
    answered: int
    heard: float
    busy: float | None = None
    """When requests were first seen on it since it was heard of."""
    asked: bool = False
    failing: str = ""


@dataclass(slots=True)
class Pulse:
    """What is known of the routes that serve.

    Args:
        every: Seconds without a result after which a route gets a canary.
    """

    every: float
    _routes: dict[int, _Route] = field(default_factory=dict)

    def due(self, answered: Mapping[int, int], now: float, busy: Collection[int] = ()) -> list[int]:
        """The epochs that get a canary now.

        Args:
            answered: Results so far of each route that takes requests; others are forgotten.
            now: In seconds.
            busy: The routes with requests that have no result yet.
        """
        self._routes = {epoch: self._routes.get(epoch) or _Route(-1, now) for epoch in answered}
        found = []
        for epoch, count in answered.items():
            route = self._routes[epoch]
            if count != route.answered:
                # Its own canary's result counts as well.
                route.answered, route.heard, route.failing, route.busy = count, now, "", None
            if route.busy is None and epoch in busy:
                route.busy = now
            since = route.heard if route.busy is None else max(route.heard, route.busy)
            if not route.asked and now >= since + self.every:
                route.asked = True
                found.append(epoch)
        return found

    def passed(self, epoch: int, now: float) -> bool:
        """A canary came back; whether the route was failing before."""
        return self._ended(epoch, now, "")

    def failed(self, epoch: int, now: float, code: str, reason: str) -> bool:
        """A canary did not come back, or as an error; whether that is news of the route."""
        if code in EXCUSED:
            reason = self._routes[epoch].failing if epoch in self._routes else ""
        return self._ended(epoch, now, reason)

    def _ended(self, epoch: int, now: float, reason: str) -> bool:
        route = self._routes.get(epoch)
        if route is None:
            return False
        changed = bool(route.failing) != bool(reason)
        route.asked, route.heard, route.failing = False, now, reason
        return changed

    def failing(self, epochs: Iterable[int]) -> str:
        """Why none of a model's routes answers; empty where one does, or where nothing is known against it."""
        reasons = [self._routes[epoch].failing for epoch in epochs if epoch in self._routes]
        return reasons[0] if reasons and all(reasons) else ""


def patience(first_s: float) -> float:
    """Seconds in which a canary must come back, by what the first one of its deployment took."""
    return max(LEAST_S, PATIENCE * first_s)
