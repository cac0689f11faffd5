"""Several devices for one stage, where that lowers the period.

A plan with replicas is a mix of routes that share their cuts: each request takes one route, and every device holds
one stage. For given cuts and a given stage per device, the best mix is a linear program (`router.flows`). Cuts and
stages are counted out where there are few; otherwise unused devices join, one by one, the stage where they help most,
from the best plan of every number of stages. The bound is that of the cluster without memory and stage limits. Bounds on
latency, money, energy and error are kept by every route of the mix, so that every request keeps them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from router.errors import InvalidProblem, NoRoute
from router.flows import Job, capacity
from router.instance import Instance, compile_problem
from router.limits import SLACK
from router.problem import CodecCost, Objective, Pins, Problem
from router.replanning import predict
from router.route import Route, Share, Solution, Stage, Transfer
from router.solver import LABELS, solve
from router.workload import mix_load

COUNT_OUT = 1500
THROUGHPUT = Objective("throughput")
Cuts = tuple[int, ...]


def _at(values: float | object, cuts: Cuts) -> object:
    return values if np.isscalar(values) else [values[i] for i in cuts]  # type: ignore[index]


def _coarse(problem: Problem, instance: Instance, cuts: Cuts, stage_of: Mapping[int, int]) -> Problem | None:
    """The problem whose blocks are the stages; None if a device does not fit its stage."""
    seconds: dict[str, list[float]] = {}
    for u, stage in stage_of.items():
        start, stop = cuts[stage], cuts[stage + 1]
        row = [math.inf] * (len(cuts) - 1)
        row[stage] = float(instance.block[u, start:stop].sum())
        if math.isinf(row[stage]) or instance.stage_bytes[start, stop] > instance.memory[u]:
            return None
        seconds[instance.names[u]] = row
    codecs = [
        CodecCost(
            codec.name,
            _at(codec.ratio, cuts),  # type: ignore[arg-type]
            {name: [row[i] for i in cuts] for name, row in codec.encode.items()},
            {name: [row[i] for i in cuts] for name, row in codec.decode.items()},
            _at(codec.error, cuts),  # type: ignore[arg-type]
        )
        for codec in problem.codecs
    ]
    return replace(
        problem,
        block_seconds=seconds,
        boundary_bytes=[problem.boundary_bytes[i] for i in cuts],
        block_memory=(),
        block_activation=(),
        stage_memory=0,
        codecs=codecs,
        max_stages=None,
        pins=Pins(banned=problem.pins.banned),
    )


@dataclass(frozen=True, slots=True)
class _Mix:
    """Shares for given cuts and stages, their period, and a proved bound of it."""

    shares: tuple[Share, ...]
    period: float
    bound: float


NOTHING = _Mix((), math.inf, math.inf)


def _mix(
    problem: Problem, objective: Objective, instance: Instance, cuts: Cuts, stage_of: Mapping[int, int]
) -> _Mix:
    """Best mix for given cuts and stages; `NOTHING` when they make no pipeline within the bounds."""
    if len(set(stage_of.values())) < len(cuts) - 1:
        return NOTHING
    coarse = _coarse(problem, instance, cuts, stage_of)
    if coarse is None:
        return NOTHING
    try:
        found = capacity([Job("mix", coarse, limits=objective)])
    except InvalidProblem:  # nothing has to be done, which no mix does faster
        return _Mix((), math.inf, 0.0)
    except NoRoute as refusal:
        return _Mix((), math.inf, 0.0) if refusal.limit == "effort" else NOTHING
    shares = []
    for share in found.mixes[0]:
        route = share.route
        stages = tuple(Stage(s.device, cuts[s.start], cuts[s.stop]) for s in route.stages)
        transfers = tuple(Transfer(cuts[t.boundary], t.path, t.codec) for t in route.transfers)
        shares.append(Share(share.fraction, Route(stages, transfers)))
    return _Mix(tuple(shares), float(mix_load(instance, shares).max()), 1 / found.limit)


def _all(instance: Instance, workers: list[int], most: int) -> Iterator[tuple[Cuts, dict[int, int]]]:
    for count in range(1, most + 1):
        for inner in itertools.combinations(range(1, instance.blocks), count - 1):
            for choice in itertools.product(range(-1, count), repeat=len(workers)):
                stage_of = {u: stage for u, stage in zip(workers, choice, strict=True) if stage >= 0}
                yield (0, *inner, instance.blocks), stage_of


def _alone(problem: Problem, objective: Objective, labels: int) -> Solution | None:
    """The best plan without replicas; None where only a mix may be fast enough."""
    try:
        return solve(problem, objective, labels=labels)
    except NoRoute:
        if math.isinf(objective.max_period):
            raise
    solve(problem, replace(objective, max_period=math.inf), labels=labels)  # any other limit is named
    return None


def solve_replicated(
    problem: Problem, objective: Objective = THROUGHPUT, *, labels: int = LABELS
) -> Solution:
    """Least period when a stage may run on several devices and a device on one stage.

    Args:
        problem: model, cluster, limits.
        objective: throughput, with bounds. Those on latency, cost, energy and error hold for every route of the mix.
        labels: effort of the exact search for plans without replicas.

    Returns:
        A solution whose `shares` say which part of the requests takes which route; never worse than without replicas.
        Its latency and error are those of the worst route, its cost and energy the mean of all.

    Raises:
        InvalidProblem: the input contradicts itself, or the problem allows several stages per device.
        NoRoute: there is no plan at all.
    """
    if problem.stages_per_device != 1:
        raise InvalidProblem("replicas are planned with stages_per_device=1")
    if objective.name != "throughput":
        raise InvalidProblem(f"replicas serve the objective throughput, not {objective.name}")
    single = _alone(problem, objective, labels)
    instance = compile_problem(problem)
    workers = np.flatnonzero(np.isfinite(instance.block).any(axis=1)).tolist()
    most = min(len(workers), instance.blocks, problem.max_stages or instance.blocks)
    best = NOTHING if single is None else _Mix((Share(1.0, single.route),), single.value, single.bound)
    ways = sum(math.comb(instance.blocks - 1, k - 1) * (k + 1) ** len(workers) for k in range(1, most + 1))
    bound = 1 / capacity([Job("all", problem)]).limit

    def offer(cuts: Cuts, stage_of: Mapping[int, int]) -> _Mix:
        nonlocal best
        mix = _mix(problem, objective, instance, cuts, stage_of)
        if mix.period < best.period * (1 - 1e-9):
            best = mix
        return mix

    if ways <= COUNT_OUT:
        least = min((offer(cuts, held).bound for cuts, held in _all(instance, workers, most)), default=0.0)
        bound = max(bound, least)
    else:
        for count in range(1, most + 1):
            _grow(problem, objective, instance, workers, count, labels, offer)
    if not best.period <= objective.max_period * SLACK:
        raise NoRoute(
            f"no mix of routes was found with a period of at most {objective.max_period:.6g} s; "
            f"the least is {best.period:.6g} s",
            limit="period",
            hint="allow a longer period, or add a device",
        )
    optimal = best.period <= bound * (1 + 1e-9)
    found = predict(problem, best.shares, objective)
    return replace(
        found,
        bound=best.period if optimal else min(bound, best.period),
        optimal=optimal,
        shares=best.shares,
    )


def _grow(
    problem: Problem,
    objective: Objective,
    instance: Instance,
    workers: list[int],
    count: int,
    labels: int,
    offer: Callable[[Cuts, Mapping[int, int]], _Mix],
) -> None:
    """Let unused devices join the best plan of so many stages, one by one, where each helps most."""
    try:
        goal = replace(objective, max_period=math.inf)
        plan = solve(replace(problem, max_stages=count), goal, labels=labels // 10).route
    except NoRoute:
        return
    cuts = (0, *(stage.stop for stage in plan.stages))
    held = {instance.index[stage.device]: k for k, stage in enumerate(plan.stages)}
    period = offer(cuts, held).period
    while rest := [u for u in workers if u not in held]:
        trials = [(offer(cuts, {**held, u: k}).period, u, k) for u in rest for k in range(len(cuts) - 1)]
        least, u, k = min(trials)
        if not least < period * (1 - 1e-9):
            return
        held[u], period = k, least
