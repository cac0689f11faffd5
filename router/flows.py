"""How many requests per second a cluster can carry at most, and over which routes.

A linear program over all routes, solved by column generation: a new route is worth adding when it is the shortest
under the prices that the program puts on busy seconds, and the layered graph finds that route. No policy, static or
online, can carry more: the average of what any of them does is a mix of routes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog

from router.additive import priced
from router.errors import InvalidProblem, NoRoute
from router.goal import Goal, make_goal
from router.instance import Floats, compile_problem
from router.layers import Network, potentials, trace
from router.problem import Objective, Problem
from router.route import Route, Share
from router.search import search
from router.workload import work_of

ROUNDS = 300
LABELS = 20_000
"""Effort of finding the next route where routes have bounds to keep."""


@dataclass(frozen=True, slots=True)
class Job:
    """One model served on the cluster at some rate.

    Attributes:
        name: for people. problem: its costs; all jobs share one cluster. rate: requests per second.
        limits: whose bounds on latency, money, energy and error every single route keeps; None for no bounds.
    """

    name: str
    problem: Problem
    rate: float = 1.0
    limits: Objective | None = None


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the cluster can carry.

    Attributes:
        factor: the rates of all jobs can grow to this multiple at most; below 1 they cannot be carried.
        exact: column generation has converged; otherwise `factor` is reached but may not be the most.
        limit: proved upper bound of the factor (equal when exact).
        mixes: per job, the routes and their shares.
        prices: resources that are used up, with their price, dearest first.
    """

    factor: float
    exact: bool
    limit: float
    mixes: tuple[tuple[Share, ...], ...]
    prices: tuple[tuple[str, float], ...]


def _check(jobs: Sequence[Job]) -> None:
    if not jobs:
        raise InvalidProblem("no job given")
    for job in jobs:
        if not (math.isfinite(job.rate) and job.rate > 0):
            raise InvalidProblem(f"rate of job {job.name!r} must be positive, not {job.rate}")
        if (
            job.problem.cluster != jobs[0].problem.cluster
            or job.problem.pins.banned != jobs[0].problem.pins.banned
        ):
            raise InvalidProblem(f"job {job.name!r} is planned on another cluster than {jobs[0].name!r}")


def capacity(jobs: Sequence[Job]) -> Capacity:
    """Largest common factor of the jobs' rates that the cluster can carry.

    Memory and stage limits are left aside, but for jobs with bounds, each of whose routes keeps them.

    Raises:
        InvalidProblem: no jobs, a rate that is not positive, or different clusters.
        NoRoute: a job has no route at all.
    """
    _check(jobs)
    instances = [compile_problem(job.problem) for job in jobs]
    free = instances[0].free
    networks = [Network(instance) for instance in instances]
    columns: list[tuple[int, Route, Floats]] = []
    n, m = instances[0].n, len(instances[0].src)

    bounds = [
        make_goal(instance, job.limits).bounds if job.limits else ()
        for job, instance in zip(jobs, instances, strict=True)
    ]

    def price(j: int, busy: Floats) -> tuple[float, float, Route | None]:
        """The cheapest route at these prices: its price, a lower bound of any route's, and the route."""
        instance = instances[j]
        per_byte = busy[n : n + m] * instance.seconds_per_byte
        cost = priced(instance, busy[:n], per_byte, busy[n + m :])
        if bounds[j]:
            found = search(instance, Goal(Objective(), cost, 0.0, bounds[j], math.inf), budget=LABELS)
            return found.value, found.bound, found.route
        table = potentials(instance, cost, networks[j])
        if not math.isfinite(table.start):
            return math.inf, math.inf, None
        return table.start, table.start, trace(instance, cost, networks[j], table)

    for j, job in enumerate(jobs):
        route = price(j, np.ones(len(free)))[2]
        if route is None:
            raise NoRoute(f"job {job.name!r} has no route", limit="reachability")
        columns.append((j, route, work_of(instances[j], route)))
    known = {(j, route) for j, route, _ in columns}
    limit, exact = math.inf, False
    solution = _master(columns, jobs, free)
    for _ in range(ROUNDS):
        factor, flows, busy, worth = solution
        added, paid, proved = False, 0.0, True
        for j, job in enumerate(jobs):
            least, surely, route = price(j, busy)
            paid += job.rate * surely
            proved = proved and surely >= least * (1 - 1e-9)
            if route is not None and (j, route) not in known and least < worth[j] * (1 - 1e-9):
                known.add((j, route))
                columns.append((j, route, work_of(instances[j], route)))
                added = True
        if paid > 0:  # weak duality: prices scaled so that the cheapest routes are worth their factor
            limit = min(limit, float(busy @ free) / paid)
        exact = factor >= limit * (1 - 1e-9) or (proved and not added)
        if exact or not added:
            limit = factor if exact else limit
            break
        solution = _master(columns, jobs, free)
    factor, flows, busy, _ = solution  # columns found after it was solved are of no use any more
    mixes = []
    for j in range(len(jobs)):
        used = [
            (flow, route)
            for (of, route, _), flow in zip(columns, flows, strict=False)
            if of == j and flow > 1e-12
        ]
        total = sum(flow for flow, _ in used)
        mixes.append(tuple(Share(flow / total, route) for flow, route in sorted(used, key=lambda x: -x[0])))
    scarce = [(instances[0].resource_name(r), float(busy[r])) for r in np.argsort(-busy) if busy[r] > 1e-12]
    return Capacity(factor, exact, limit, tuple(mixes), tuple(scarce))


def _master(
    columns: list[tuple[int, Route, Floats]], jobs: Sequence[Job], free: Floats
) -> tuple[float, Floats, Floats, Floats]:
    """(factor, flow per column, price per resource, worth per job) of the program over the columns so far."""
    count = len(columns)
    work = np.stack([column[2] for column in columns], axis=1)
    balance = np.zeros((len(jobs), count + 1))
    for k, (j, _, _) in enumerate(columns):
        balance[j, k] = 1.0
    balance[:, count] = [-job.rate for job in jobs]
    scale = max(float(work.max(initial=0.0)), 1e-300)
    rows = np.concatenate([work / scale, np.zeros((len(free), 1))], axis=1)
    cost = np.zeros(count + 1)
    cost[-1] = -1.0
    result = linprog(cost, A_ub=rows, b_ub=free / scale, A_eq=balance, b_eq=np.zeros(len(jobs)))
    if result.status == 3:
        raise InvalidProblem("a job's requests keep no resource busy, so any rate can be carried")
    assert result.fun is not None
    assert result.x is not None
    busy = np.maximum(-np.asarray(result.ineqlin.marginals, float), 0.0) / scale
    worth = np.abs(np.asarray(result.eqlin.marginals, float))
    return -float(result.fun), np.asarray(result.x[:-1], float), busy, worth
