"""From a problem to the best plan: which method proves what, in which order.

1. What adds up along a route (latency, money, energy, their weighted sum) is a shortest path on the layered
   graph. If that path keeps every limit it is the optimum, however large the instance.
2. Otherwise, and for the period, an exact search over labelled routes, as long as its label budget lasts.
"""

from __future__ import annotations

import math

from router.diagnosis import check_blocks, nothing_found
from router.errors import NoRoute
from router.evaluation import measure, objective_value
from router.goal import make_goal
from router.instance import Instance, compile_problem
from router.layers import shortest
from router.limits import broken
from router.problem import Objective, Problem
from router.route import Route, Solution
from router.search import search

TOLERANCE = 1e-9
LABELS = 100_000


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


def _attempt(instance: Instance, objective: Objective, labels: int) -> Solution | None:
    """Best plan found, or None when none was found."""
    goal = make_goal(instance, objective)
    bound = 0.0
    if goal.primary is not None:
        least, route = shortest(instance, goal.primary)
        if route is None:
            return None
        bound = least
        if goal.period_weight == 0 and broken(instance, objective, route, measure(instance, route)) is None:
            return solution(instance, objective, route, bound)
    found = search(instance, goal, budget=labels)
    if found.route is None:
        return None
    return solution(instance, objective, found.route, max(bound, found.bound))


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
    instance = compile_problem(problem)
    check_blocks(instance)
    result = _attempt(instance, wanted, labels)
    if result is None:
        raise nothing_found(instance, wanted, lambda other, goal: _feasible(other, goal, labels))
    return result


def _feasible(problem: Problem, objective: Objective, labels: int) -> bool:
    instance = compile_problem(problem)
    try:
        check_blocks(instance)
    except NoRoute:
        return False
    result = _attempt(instance, objective, labels)
    return result is not None and math.isfinite(result.value)
