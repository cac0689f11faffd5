"""Several models on one cluster: static joint planning, and admission."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from router.errors import NoRoute
from router.flows import Job, capacity
from router.instance import Floats, compile_problem
from router.placing import place
from router.problem import Load, Objective, Problem
from router.route import Route, Solution
from router.solver import LABELS, solve
from router.workload import work_of

PASSES = 4


@dataclass(frozen=True, slots=True)
class JointPlan:
    """One route per job.

    Attributes:
        solutions: in the order of the jobs, each predicted under the load of the others.
        utilisation: largest busy share of any resource, and `busiest` its name.
        bound: no plan, with any number of routes per job, has a smaller utilisation.
    """

    solutions: tuple[Solution, ...]
    utilisation: float
    busiest: str
    bound: float


def _load(problem: Problem, busy: Floats, waits: Floats) -> Load:
    """Load of others as a problem states it; names come from the compiled problem."""
    instance = compile_problem(problem)
    n, m = instance.n, len(instance.src)
    names = instance.names
    ends = [(names[a], names[b]) for a, b in zip(instance.src, instance.dst, strict=True)]
    busy = np.clip(busy, 0.0, 1 - 1e-6)
    return Load(
        device_wait=dict(zip(names, waits[:n].tolist(), strict=True)),
        link_wait=dict(zip(ends, waits[n : n + m].tolist(), strict=True)),
        device_busy=dict(zip(names, busy[:n].tolist(), strict=True)),
        link_busy=dict(zip(ends, busy[n : n + m].tolist(), strict=True)),
        medium_busy=dict(zip(instance.media, busy[n + m :].tolist(), strict=True)),
    )


def _memory_left(problem: Problem, others: Sequence[tuple[Problem, Route]]) -> Problem:
    used: dict[str, float] = {}
    for other, route in others:
        table = compile_problem(other).stage_bytes
        for stage in route.stages:
            used[stage.device] = used.get(stage.device, 0.0) + float(table[stage.start, stage.stop])
    devices = [
        d if d.memory is None else replace(d, memory=max(0, int(d.memory - used.get(d.name, 0.0))))
        for d in problem.cluster.devices
    ]
    return replace(problem, cluster=replace(problem.cluster, devices=devices))


def admit(jobs: Sequence[Job]) -> float:
    """Factor by which all rates can still grow.

    Raises:
        NoRoute: the load is outside what the cluster can carry, whatever the routes; names the scarce resources.
    """
    found = capacity(jobs)
    if found.limit < 1:
        scarce = ", ".join(name for name, _ in found.prices[:3])
        raise NoRoute(
            f"the cluster carries at most {found.limit:.3g} of the requested rates; used up: {scarce}",
            limit="capacity",
            hint="lower a rate, or add what is used up",
        )
    return found.factor


def plan_jobs(jobs: Sequence[Job], *, labels: int = LABELS) -> JointPlan:
    """One route per job, so that the busiest resource is as little busy as this search can make it.

    Jobs are placed one after the other, heaviest first, each for the least period on what the earlier ones leave;
    then each is planned again under the load of all others as long as the busiest resource gains. Every single plan
    is the solver's; the joint one is not proved optimal, `bound` says how far it can be.

    Raises:
        NoRoute: admission refuses, or memory does.
    """
    admit(jobs)
    instances = [compile_problem(job.problem) for job in jobs]
    free = instances[0].free
    routes: list[Route | None] = [None] * len(jobs)

    def busy_without(skip: int) -> Floats:
        total = 1.0 - free
        for k, route in enumerate(routes):
            if route is not None and k != skip:
                total = total + jobs[k].rate * work_of(instances[k], route)
        return total

    def alone(k: int) -> Solution:
        busy = busy_without(k)
        others = [(jobs[i].problem, r) for i, r in enumerate(routes) if r is not None and i != k]
        roomy = _memory_left(jobs[k].problem, others)
        loaded = replace(roomy, load=_load(roomy, busy, np.zeros(len(free))))
        wanted = replace(jobs[k].limits or Objective("throughput"), name="throughput", weights={})
        return solve(loaded, wanted, labels=labels)

    order = sorted(
        range(len(jobs)), key=lambda k: -jobs[k].rate * float(instances[k].block.min(axis=0).sum())
    )
    for k in order:
        routes[k] = alone(k).route
    best = float(busy_without(-1).max())
    for _ in range(PASSES):
        improved = False
        for k in order:
            before = routes[k]
            routes[k] = alone(k).route
            now = float(busy_without(-1).max())
            if now < best * (1 - 1e-9):
                best, improved = now, True
            else:
                routes[k] = before
        if not improved:
            break
    total = busy_without(-1)
    if best > 1 + 1e-9:
        busiest = instances[0].resource_name(int(np.argmax(total)))
        raise NoRoute(
            f"no single route per job was found that keeps every resource below full use; {busiest} is at {best:.2f}",
            limit="capacity",
            hint="lower a rate, or add what is busiest",
        )
    solutions = tuple(_predicted(jobs[k], routes[k], busy_without(k)) for k in range(len(jobs)))
    bound = 1 / capacity(jobs).limit
    return JointPlan(solutions, best, instances[0].resource_name(int(np.argmax(total))), min(bound, best))


def _predicted(job: Job, route: Route | None, busy: Floats) -> Solution:
    """Predictions of a job's route while others keep resources busy: they wait as in M/D/1 at that load."""
    assert route is not None
    instance = compile_problem(job.problem)
    share = np.clip(busy + job.rate * work_of(instance, route), 0.0, 1 - 1e-6)
    waits = share / (2 * (1 - share)) * work_of(instance, route)
    return place(replace(job.problem, load=_load(job.problem, busy, waits)), route, "throughput")
