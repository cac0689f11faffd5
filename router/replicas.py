"""Several devices for one stage, where that lowers the period.

A plan with replicas is a mix of routes that share their cuts: each request takes one route, and every device holds
one stage. For given cuts and a given stage per device, the best mix is a linear program (`router.flows`). Cuts and
stages are counted out where there are few; otherwise unused devices join, one by one, the stage where they help most,
from the best plan of every number of stages. The bound is that of the cluster without memory and stage limits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from router.errors import InvalidProblem, NoRoute
from router.evaluation import measure
from router.flows import Job, capacity
from router.instance import Instance, compile_problem
from router.problem import CodecCost, Objective, Pins, Problem
from router.route import Route, Share, Solution, Stage, Transfer
from router.solver import LABELS, solve
from router.workload import work_of

COUNT_OUT = 1500
Cuts = tuple[int, ...]


def mix_period(instance: Instance, shares: tuple[Share, ...]) -> float:
    """Seconds between requests when they are dealt to routes in these shares."""
    load = sum(
        (share.fraction * work_of(instance, share.route) for share in shares), np.zeros(instance.resources)
    )
    return float((load / instance.free).max())


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


def _mix(
    problem: Problem, instance: Instance, cuts: Cuts, stage_of: Mapping[int, int]
) -> tuple[Share, ...] | None:
    """Best mix for given cuts and stages, or None when they make no pipeline."""
    if len(set(stage_of.values())) < len(cuts) - 1:
        return None
    coarse = _coarse(problem, instance, cuts, stage_of)
    if coarse is None:
        return None
    try:
        found = capacity([Job("mix", coarse)])
    except (NoRoute, InvalidProblem):
        return None
    shares = []
    for share in found.mixes[0]:
        route = share.route
        stages = tuple(Stage(s.device, cuts[s.start], cuts[s.stop]) for s in route.stages)
        transfers = tuple(Transfer(cuts[t.boundary], t.path, t.codec) for t in route.transfers)
        shares.append(Share(share.fraction, Route(stages, transfers)))
    return tuple(shares)


def _all(instance: Instance, workers: list[int], most: int) -> Iterator[tuple[Cuts, dict[int, int]]]:
    for count in range(1, most + 1):
        for inner in itertools.combinations(range(1, instance.blocks), count - 1):
            for choice in itertools.product(range(-1, count), repeat=len(workers)):
                stage_of = {u: stage for u, stage in zip(workers, choice, strict=True) if stage >= 0}
                yield (0, *inner, instance.blocks), stage_of


def solve_replicated(problem: Problem, *, labels: int = LABELS) -> Solution:
    """Least period when a stage may run on several devices and a device on one stage.

    Returns:
        A solution whose `shares` say which part of the requests takes which route; never worse than without replicas.

    Raises:
        InvalidProblem: the input contradicts itself, or the problem allows several stages per device.
        NoRoute: there is no plan at all.
    """
    if problem.stages_per_device != 1:
        raise InvalidProblem("replicas are planned with stages_per_device=1")
    single = solve(problem, Objective("throughput"), labels=labels)
    instance = compile_problem(problem)
    workers = np.flatnonzero(np.isfinite(instance.block).any(axis=1)).tolist()
    most = min(len(workers), instance.blocks, problem.max_stages or instance.blocks)
    best = single.value
    shares: tuple[Share, ...] = (Share(1.0, single.route),)
    ways = sum(math.comb(instance.blocks - 1, k - 1) * (k + 1) ** len(workers) for k in range(1, most + 1))
    bound = 1 / capacity([Job("all", problem)]).limit

    def offer(cuts: Cuts, stage_of: Mapping[int, int]) -> float:
        nonlocal best, shares
        mix = _mix(problem, instance, cuts, stage_of)
        if mix is None:
            return math.inf
        period = mix_period(instance, mix)
        if period < best * (1 - 1e-9):
            best, shares = period, mix
        return period

    counted = ways <= COUNT_OUT
    if counted:
        for cuts, stage_of in _all(instance, workers, most):
            offer(cuts, stage_of)
    else:
        for count in range(1, most + 1):
            try:
                plan = solve(
                    replace(problem, max_stages=count), Objective("throughput"), labels=labels // 10
                ).route
            except NoRoute:
                continue
            cuts = (0, *(stage.stop for stage in plan.stages))
            held = {instance.index[stage.device]: k for k, stage in enumerate(plan.stages)}
            period = offer(cuts, held)
            while rest := [u for u in workers if u not in held]:
                trials = [(offer(cuts, {**held, u: k}), u, k) for u in rest for k in range(len(cuts) - 1)]
                least, u, k = min(trials)
                if not least < period * (1 - 1e-9):
                    break
                held[u], period = k, least
    measured = measure(instance, shares[0].route)
    optimal = counted or best <= bound * (1 + 1e-9)
    return replace(
        single,
        route=shares[0].route,
        value=best,
        bound=best if optimal else min(bound, best),
        optimal=optimal,
        period=best,
        latency=max(measure(instance, share.route).latency for share in shares),
        cost=sum(share.fraction * measure(instance, share.route).cost for share in shares),
        energy=sum(share.fraction * measure(instance, share.route).energy for share in shares),
        error=measured.error,
        shares=shares,
    )
