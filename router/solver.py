"""From a problem to the best plan: which method proves what, in which order.

1. What adds up along a route (latency, money, energy, their weighted sum) is a shortest path on the layered
   graph. If that path keeps every limit it is the optimum, however large the instance.
2. With one stage per device, the stage-by-stage program (`router.pipeline`) gives a bound and a route for the period
   and for sums under memory limits and a period; if the route attains the bound it is the optimum.
   Where that is too much work, devices and links that are nearly alike are taken for alike (`router.alike`): the
   bound still holds, and the route is as good up to that difference.
3. For the period on clusters too large for that, a beam search with a bound (`router.threshold`).
4. Where nothing is known yet, the fastest route of one request is a first answer for the period too.
5. Otherwise a beam search for a good plan, and an exact search over labelled routes as long as its label budget lasts.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import replace
from functools import cached_property
from typing import cast

from router.additive import Additive, latency, weighted
from router.alike import NEARLY, alike
from router.diagnosis import check_blocks, nothing_found
from router.errors import NoRoute
from router.evaluation import measure, objective_value
from router.goal import make_goal
from router.instance import Instance, compile_problem
from router.layers import shortest
from router.limits import SLACK, broken
from router.pipeline import EFFORT, Pipeline, least_cost, least_period, make_pipeline
from router.problem import Objective, Problem
from router.route import Route, Solution
from router.search import beam, search
from router.threshold import beam_period

TOLERANCE = 1e-9
BISECTIONS = 48
TIE = 1e-10
"""What latency counts among equally good plans, as a part of the value: less than any difference that matters."""
LABELS = 100_000
LITTLE = 0.01
"""Where the best plan so far is no further than this part from its bound, a long search could gain nothing worth it."""
FEW = 10_000
"""Labels of the exact search then: it proves small instances, and ends soon on those that it cannot."""
CLASSED = 2_000
"""Devices at most that are sorted into classes, and between all of which widest paths are found."""
SEARCHABLE = 300  # devices, links and media


def solution(instance: Instance, objective: Objective, route: Route, bound: float) -> Solution:
    """A route with its predictions; `optimal` when the bound is reached."""
    measured = measure(instance, route)
    value = objective_value(objective, measured)
    optimal = value <= bound * (1 + TOLERANCE)
    return Solution(
        route=route,
        objective=objective.name,
        value=value,
        bound=value if optimal else bound,
        optimal=optimal,
        latency=measured.latency,
        period=measured.period,
        cost=measured.cost,
        energy=measured.energy,
        error=measured.error,
    )


class _Attempt:
    """Bound and best plan so far of one solve; every method can only improve them."""

    def __init__(self, instance: Instance, objective: Objective) -> None:
        self.instance, self.objective = instance, objective
        self.goal = make_goal(instance, objective)
        self.bound = 0.0
        self.value = math.inf
        self.route: Route | None = None
        self.gave_up = False
        self.roughly = 0.0
        """The part by which what was taken for alike may differ; 0 where nothing was."""

    @cached_property
    def rough(self) -> tuple[float, Pipeline]:
        """The same tables with what is nearly alike taken for alike: a bound, and routes that nearly attain it.

        And how nearly: by the least part that makes the program small enough, or the largest.
        """
        for nearly in NEARLY:
            pipeline = make_pipeline(alike(self.instance, nearly))
            if pipeline.effort * self.runs <= EFFORT:
                break
        return nearly, pipeline

    @property
    def chained(self) -> bool:
        """Whether the stage-by-stage program speaks of this problem."""
        return self.instance.problem.stages_per_device == 1 and self.instance.n <= CLASSED

    @cached_property
    def pipeline(self) -> Pipeline:
        """Tables of the stage-by-stage program."""
        return make_pipeline(self.instance)

    @property
    def runs(self) -> int:
        """How often the stage-by-stage program is run at most."""
        goal = self.goal
        many = len(goal.bounds) == 1 if goal.primary is None else goal.period_weight > 0
        return BISECTIONS if many else 1

    @property
    def quick(self) -> bool:
        """Whether the stage-by-stage program finds the best plan, or nearly that, by itself."""
        if not self.chained or len(self.goal.bounds) > (self.goal.primary is None):
            return False
        return self.pipeline.effort * self.runs <= EFFORT or self.rough[1].effort * self.runs <= EFFORT

    def offer(self, route: Route | None) -> None:
        """Take a route if it keeps the limits and is better."""
        if route is None:
            return
        measured = measure(self.instance, route)
        value = objective_value(self.objective, measured)
        if value < self.value and broken(self.instance, self.objective, route, measured) is None:
            self.value, self.route = value, route

    @property
    def searchable(self) -> bool:
        """Whether the exact search has a chance: its labels carry one load per resource."""
        return not self.goal.loads_matter or self.instance.resources <= SEARCHABLE

    @property
    def proved(self) -> bool:
        """Whether nothing better can exist."""
        return self.value <= self.bound * (1 + TOLERANCE)

    @property
    def settled(self) -> bool:
        """Whether the plan is as good as can be told where what is nearly alike was taken for alike."""
        return self.roughly > 0 and self.value <= self.bound * (1 + self.roughly)

    def run(self, labels: int) -> Solution | None:
        """Best plan, or None when there is none (or none was found within the effort)."""
        if self.goal.primary is not None:
            least, route = shortest(self.instance, self.goal.primary)
            if route is None:
                return None
            self.bound = least
            self.offer(route)
        if not self.proved and self.chained and not self._pipeline():
            return None
        if self.route is None and self.goal.primary is None:
            # The fastest route for one request may keep every limit, and any plan is better than none.
            self.offer(shortest(self.instance, latency(self.instance))[1])
        if not self.proved and not self.settled and (self.route is None or self.searchable):
            self.offer(beam(self.instance, self.goal, incumbent=self.value))
            near = self.value <= self.bound * (1 + LITTLE)
            budget = min(labels, FEW) if near else labels
            found = search(self.instance, self.goal, budget=budget, incumbent=self.value)
            self.offer(found.route)
            self.bound = max(self.bound, min(found.bound, self.value))
            self.gave_up = self.route is None and math.isfinite(found.bound)
        if self.route is None:
            return None
        self._settle_ties()
        return solution(self.instance, self.objective, self.route, self.bound)

    def _pipeline(self) -> bool:
        """Try the stage-by-stage program; False when it proves that there is no plan."""
        pipeline, goal = self.pipeline, self.goal
        if pipeline.effort * self.runs > EFFORT:
            nearly, rough = self.rough
            if rough.effort * self.runs <= EFFORT:
                pipeline, goal, self.roughly = rough, make_goal(rough.instance, self.objective), nearly
        if pipeline.effort > EFFORT:
            if goal.primary is None:
                least, routes = beam_period(pipeline)
                return self._take(least, routes)
            return True
        limit = self.objective.max_period
        if goal.primary is None:
            least, routes = least_period(pipeline)
            if not self._take(least, routes) or least > limit * (1 + TOLERANCE):
                return False
            if len(goal.bounds) == 1 and not self.proved and pipeline.effort * BISECTIONS <= EFFORT:
                return self._bisect(pipeline, *goal.bounds[0])
            return True
        if goal.period_weight == 0:
            least, route = least_cost(pipeline, goal.primary, limit)
            return self._take(least, [] if route is None else [route])
        return self._weigh(pipeline, goal.primary, goal.period_weight)

    def _weigh(self, pipeline: Pipeline, primary: Additive, weight: float) -> bool:
        """Least of a sum and a period, each with its weight; False when there is no plan.

        What is added up only falls as the period may grow. So between two periods the objective is at least the sum at
        the greater one and the weight of the smaller one; the interval that promises most is halved until it promises
        nothing.
        """
        least, routes = least_period(pipeline)
        if not self._take(weight * least, routes) or least > self.objective.max_period * (1 + TOLERANCE):
            return False
        end, route = least_cost(pipeline, primary, self.objective.max_period)
        if route is None:
            return False
        self.offer(route)
        high = measure(self.instance, route).period
        beyond = end + weight * high
        open_ = [(end + weight * least, least, high, end)]
        for _ in range(BISECTIONS if pipeline.effort * BISECTIONS <= EFFORT else 0):
            if open_[0][0] >= self.value * (1 - TOLERANCE):
                break
            _, low, high, end = heapq.heappop(open_)
            period = (low + high) / 2
            summed, route = least_cost(pipeline, primary, period)
            self.offer(route)
            heapq.heappush(open_, (end + weight * period, period, high, end))
            if route is not None:
                heapq.heappush(open_, (summed + weight * low, low, period, summed))
        self.bound = max(self.bound, min(open_[0][0], beyond, self.value))
        return True

    def _settle_ties(self) -> None:
        """Of plans that are equally good, take one whose requests are fast: nobody wants to wait for nothing."""
        value, goal = self.value, self.goal
        if self.objective.name == "latency" or (goal.primary is not None and goal.period_weight > 0):
            return
        before = measure(self.instance, cast(Route, self.route)).latency
        quick, limit = latency(self.instance), self.objective.max_period
        routes = []
        if goal.primary is None:
            limit = value
        else:
            quick = weighted([(1.0, goal.primary), (TIE * value / before if value else TIE, quick)])
            routes.append(shortest(self.instance, quick)[1])
        if self.chained and self.pipeline.effort <= EFFORT:
            routes.append(least_cost(self.pipeline, quick, limit)[1])
        for route in filter(None, routes):
            measured = measure(self.instance, route)
            if (
                objective_value(self.objective, measured) <= value * (1 + TOLERANCE / 10)
                and measured.latency < before
                and broken(self.instance, self.objective, route, measured) is None
            ):
                before, self.route = measured.latency, route

    def _bisect(self, pipeline: Pipeline, quantity: Additive, most: float) -> bool:
        """Least period at which the least of a bounded sum keeps its bound; False when it never does."""
        low, high = self.bound, self.objective.max_period
        for _ in range(BISECTIONS):
            if math.isfinite(high) and high <= low * (1 + TOLERANCE / 10):
                break
            period = (low + high) / 2 if math.isfinite(high) else high
            least, route = least_cost(pipeline, quantity, period)
            if least <= most * SLACK:
                self.offer(route)
                # The route may be faster than asked for; without one that keeps the limits, go on from here.
                high = min(period, self.value)
                if math.isinf(high):
                    return True
            elif math.isinf(period) or period >= self.objective.max_period:
                return False
            else:
                low = period * SLACK  # the program allows that much above the period
                self.bound = max(self.bound, low)
        return True

    def _take(self, least: float, routes: list[Route]) -> bool:
        """Note a relaxation's value and routes; False when it is infeasible."""
        if not math.isfinite(least):
            return False
        self.bound = max(self.bound, least)
        for route in routes:
            self.offer(route)
        return True


def solve(problem: Problem, objective: str | Objective = "latency", *, labels: int = LABELS) -> Solution:
    """Find the best plan.

    Args:
        problem: model, cluster, limits.
        objective: a name from `router.OBJECTIVES`, or an `Objective` with bounds or weights.
        labels: effort of the exact search; more labels prove larger instances.

    Returns:
        The plan, its predictions and a proved lower bound; `optimal` says whether they meet.

    Raises:
        InvalidProblem: the input contradicts itself.
        NoRoute: no plan keeps every limit; the message names the limit.
    """
    wanted = Objective(objective) if isinstance(objective, str) else objective
    if {name for name, weight in wanted.weights.items() if weight > 0} == {"period"}:
        factor = wanted.weights["period"]
        found = solve(problem, replace(wanted, name="throughput", weights={}), labels=labels)
        return replace(found, objective="weighted", value=factor * found.value, bound=factor * found.bound)
    instance = compile_problem(problem)
    check_blocks(instance)
    attempt = _Attempt(instance, wanted)
    result = attempt.run(labels)
    if result is None and attempt.gave_up:
        raise NoRoute(
            f"no plan was found with {labels} labels, and none is proved impossible",
            limit="effort",
            hint="allow more labels, or loosen a limit",
        )
    if result is None:
        raise nothing_found(instance, wanted, lambda other, goal: _feasible(other, goal, labels))
    return result


def soon(problem: Problem, objective: Objective) -> bool:
    """Whether `solve` takes seconds for a proof, or nearly one, and not a search whose end nobody knows.

    Args:
        problem: model, cluster, limits.
        objective: what is minimised, and the bounds.
    """
    return _Attempt(compile_problem(problem), objective).quick


def _feasible(problem: Problem, objective: Objective, labels: int) -> Solution | None:
    instance = compile_problem(problem)
    try:
        check_blocks(instance)
    except NoRoute:
        return None
    found = _Attempt(instance, objective).run(labels)
    return found if found is not None and math.isfinite(found.value) else None
