"""Codecs for a route whose stages and paths stand, under an error budget. Pure.

The router finds the best route for given codec errors quickly where nothing bounds their sum; under a bound its search
over all cuts and codecs at once takes minutes. Between the two lies this: it takes the fastest route and gives up speed
where that buys the most accuracy, one transfer at a time, and afterwards spends what is left of the budget.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import router
from router.evaluation import measure, objective_value
from router.instance import Instance, compile_problem
from router.limits import broken

LATENCY_SHARE = 1e-3
"""Weight of the latency where the period is made least: among plans of one period the quicker one is better."""


def choose_codecs(
    problem: router.Problem, route: router.Route, objective: router.Objective
) -> router.Route | None:
    """The route with other codecs, whose errors add up to at most the objective's `max_error`.

    Args:
        problem: Its codecs carry their errors.
        route: Stages and paths, which are kept, and the codecs to start from.
        objective: What should stay small, and the bounds; `max_error` in the units of the codecs' errors.

    Returns:
        None where not even the most accurate codecs keep the bound.
    """
    choice = _Choice(compile_problem(problem), objective)
    return choice.run(route)


class _Choice:
    def __init__(self, instance: Instance, objective: router.Objective) -> None:
        self._instance = instance
        self._objective = objective
        self._max_error = objective.max_error
        self._bounds = replace(objective, max_error=math.inf)

    def run(self, route: router.Route) -> router.Route | None:
        """See `choose_codecs`: from the codecs given and from the fastest ones, whichever leads further."""
        found = [self._within(start) for start in (route, self._climb(route, math.inf))]
        kept = [(self._judge(each)[0], number, each) for number, each in enumerate(found) if each is not None]
        return min(kept)[2] if kept else None

    def _within(self, route: router.Route) -> router.Route | None:
        """Gives up speed where that buys the most accuracy, until the bound is kept; then spends what is left."""
        score, error = self._judge(route)
        while error > self._max_error:
            options = [
                ((max(0.0, s - score) + 1e-12) / (error - e), s, e, other)
                for s, e, other in self._neighbours(route)
                if e < error
            ]
            if not options:
                return None
            _, score, error, route = min(options, key=lambda option: option[:3])
        return self._climb(route, self._max_error)

    def _climb(self, route: router.Route, max_error: float) -> router.Route:
        """Changes one codec after the other for the better, as long as the bound is kept."""
        score, _ = self._judge(route)
        while True:
            better = [
                (s, e, other)
                for s, e, other in self._neighbours(route)
                if e <= max_error and s < score * (1 - 1e-9)
            ]
            if not better:
                return route
            score, _, route = min(better, key=lambda option: option[:2])

    def _neighbours(self, route: router.Route) -> Iterator[tuple[float, float, router.Route]]:
        """Score, error and route for every change of one codec."""
        for number, transfer in enumerate(route.transfers):
            if len(transfer.path) < 2:
                continue
            for codec in self._instance.problem.codecs:
                if codec.name == transfer.codec:
                    continue
                changed = list(route.transfers)
                changed[number] = replace(transfer, codec=codec.name)
                other = replace(route, transfers=tuple(changed))
                score, error = self._judge(other)
                if math.isfinite(score):
                    yield score, error, other

    def _judge(self, route: router.Route) -> tuple[float, float]:
        found = measure(self._instance, route)
        if broken(self._instance, self._bounds, route, found) is not None:
            return math.inf, found.error
        value = objective_value(self._objective, found)
        if self._objective.name == "throughput":
            value += LATENCY_SHARE * found.latency
        return value, found.error
