"""Routing each request as it arrives, over stages that are already loaded.

A request's possible routes are rows of one table: latency without waits, busy seconds per resource. A policy looks at
the backlog of every resource, in seconds, and picks a row. Ours is drift plus penalty (Universal computing network
control, mixed-cast control): of all routes the one with the least

    V * (latency + backlog met along the route) + sum over resources of backlog * busy seconds,

where V, in seconds, weighs this request's own delay against the delay it causes to later ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from router.instance import Floats, compile_problem
from router.problem import Problem
from router.route import Route

V_SECONDS = 0.02


@dataclass(frozen=True, slots=True, eq=False)
class RouteTable:
    """Routes of one job: k routes, R resources.

    Attributes:
        steps: per route what a request goes through in order: (resource or -1, busy seconds, seconds after it).
        latency: (k,) seconds without any wait.
        work: (k, R) busy seconds.
        met: (k, R) 1 where the route uses the resource.
    """

    routes: tuple[Route, ...]
    steps: tuple[tuple[tuple[int, float, float], ...], ...]
    latency: Floats
    work: Floats
    met: Floats


def make_table(problem: Problem, routes: Sequence[Route]) -> RouteTable:
    """Compile the possible routes of a job."""
    instance = compile_problem(problem)
    n, m = instance.n, len(instance.src)
    codecs = {codec.name: at for at, codec in enumerate(problem.codecs)}
    all_steps = []
    for route in routes:
        steps: list[tuple[int, float, float]] = []
        for number, transfer in enumerate(route.transfers):
            if len(transfer.path) > 1:
                c, i = codecs[transfer.codec], transfer.boundary
                hops = [instance.index[name] for name in transfer.path]
                steps.append((hops[0], float(instance.encode[c, hops[0], i]), 0.0))
                wire = float(instance.wire[c, i])
                for a, b in itertools.pairwise(hops):
                    e = instance.edge[a, b]
                    shared = int(instance.medium[e])
                    resource = n + m + shared if shared >= 0 else n + e
                    steps.append((a, wire * float(instance.crypt[e, 0]), 0.0))
                    airtime = wire * float(instance.seconds_per_byte[e])
                    steps.append((resource, airtime, float(instance.delay[e])))
                    steps.append((b, wire * float(instance.crypt[e, 1]), 0.0))
                steps.append((hops[-1], float(instance.decode[c, hops[-1], i]), 0.0))
            if number < len(route.stages):
                stage = route.stages[number]
                u = instance.index[stage.device]
                seconds = float(instance.overhead[u] + instance.block[u, stage.start : stage.stop].sum())
                steps.append((u, seconds, 0.0))
        all_steps.append(tuple(step for step in steps if step[1] or step[2]))
    work = np.zeros((len(routes), instance.resources))
    for row, steps_of in zip(work, all_steps, strict=True):
        for resource, seconds, _ in steps_of:
            row[resource] += seconds
    latency = np.array([sum(busy + after for _, busy, after in steps) for steps in all_steps])
    return RouteTable(tuple(routes), tuple(all_steps), latency, work, (work > 0).astype(float))


# A policy: (table, backlog in seconds per resource, requests waiting per resource) → row of the table.
Policy = Callable[[RouteTable, Floats, Floats], int]


def drift_plus_penalty(v: float = V_SECONDS) -> Policy:
    """Ours; see the module."""

    def choose(table: RouteTable, backlog: Floats, waiting: Floats) -> int:
        del waiting
        own = table.latency + table.met @ backlog
        return int(np.argmin(v * own + table.work @ backlog))

    return choose


def shortest_path() -> Policy:
    """The fastest route of an idle cluster, whatever the load."""
    return lambda table, _backlog, _waiting: int(np.argmin(table.latency))


def backlog_only() -> Policy:
    """The route with the least backlog along it, as MDC weighs routes."""
    return lambda table, backlog, _waiting: int(np.argmin(table.met @ backlog))


def join_shortest_queue() -> Policy:
    """The route with the fewest requests waiting along it; ties go to the faster one."""

    def choose(table: RouteTable, backlog: Floats, waiting: Floats) -> int:
        del backlog
        return int(np.lexsort((table.latency, table.met @ waiting))[0])

    return choose


def at_random(seed: int) -> Policy:
    """Any route, all equally likely."""
    rng = Random(seed)
    return lambda table, _backlog, _waiting: rng.randrange(len(table.routes))
