"""What limits a plan, and what one change of the cluster would gain."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from router.cluster import Device, Link
from router.diagnosis import without_bound
from router.errors import NoRoute
from router.evaluation import evaluate
from router.instance import compile_problem
from router.limits import counted
from router.problem import Objective, Problem
from router.route import Share, Solution
from router.solver import LABELS, solve
from router.workload import mix_load

BUSIEST = 3
"""Devices and links that are changed where every trial mixes routes anew."""


@dataclass(frozen=True, slots=True)
class WhatIf:
    """One change and the objective's value under the best plan then.

    Attributes:
        change: as a person reads it. value: of the objective. gain: relative, 0.2 = a fifth less.
    """

    change: str
    value: float
    gain: float


@dataclass(frozen=True, slots=True)
class Advice:
    """Attributes: `bottleneck` sets the period; `binding` are the limits without which the plan would be better."""

    bottleneck: str
    binding: tuple[str, ...]
    what_ifs: tuple[WhatIf, ...]


def _twin(problem: Problem, name: str) -> Problem:
    """The problem with a second device that equals one, linked like it, and to it as fast as its best link."""
    cluster = problem.cluster
    other = f"{name}'"
    device = replace(cluster.device(name), name=other)
    links = list(cluster.links)
    own = [k for k in cluster.links if name in (k.source, k.target)]
    for link in own:
        source, target = (other if end == name else end for end in (link.source, link.target))
        links.append(replace(link, source=source, target=target))
    if own:
        fastest = max(own, key=lambda k: k.bandwidth)
        links += [replace(fastest, source=a, target=b) for a, b in ((name, other), (other, name))]

    def doubled(table: dict[str, list[float]]) -> dict[str, list[float]]:
        return {**table, other: table[name]} if name in table else table

    codecs = [
        replace(c, encode=doubled(dict(c.encode)), decode=doubled(dict(c.decode)))  # type: ignore[arg-type]
        for c in problem.codecs
    ]
    overhead = dict(problem.stage_overhead)
    if name in overhead:
        overhead[other] = overhead[name]
    return replace(
        problem,
        cluster=replace(cluster, devices=[*cluster.devices, device], links=links),
        block_seconds={**problem.block_seconds, other: problem.block_seconds[name]},
        stage_overhead=overhead,
        codecs=codecs,
    )


def _with_devices(problem: Problem, devices: list[Device]) -> Problem:
    return replace(problem, cluster=replace(problem.cluster, devices=devices))


def _faster(problem: Problem, link: Link) -> Problem:
    links = [replace(k, bandwidth=2 * k.bandwidth) if k == link else k for k in problem.cluster.links]
    return replace(problem, cluster=replace(problem.cluster, links=links))


def _lifted(problem: Problem, objective: Objective) -> list[tuple[str, Problem, Objective]]:
    """Every limit in force, with the problem without it."""
    found = []
    limited = [d for d in problem.cluster.devices if d.memory is not None]
    if limited:
        free = _with_devices(problem, [replace(d, memory=None) for d in problem.cluster.devices])
        found.append(("device memory", free, objective))
    if problem.max_stages is not None:
        found.append(
            (f"at most {counted(problem.max_stages, 'stage')}", replace(problem, max_stages=None), objective)
        )
    pins = problem.pins
    if any((dict(pins.blocks), list(pins.forbidden), list(pins.excluded), list(pins.banned))):
        found.append(("pins", replace(problem, pins=type(pins)()), objective))
    names = [
        n
        for n in ("latency", "period", "cost", "energy", "error")
        if math.isfinite(getattr(objective, f"max_{n}"))
    ]
    found += [(f"{n} bound", problem, without_bound(objective, n)) for n in names]
    return found


def advise(
    problem: Problem,
    found: Solution,
    objective: str | Objective,
    *,
    labels: int = LABELS,
    solver: Callable[[Problem, Objective, int], Solution] | None = None,
) -> Advice:
    """Explain a plan and try changes: each used device twice, each used link twice as fast, each other codec alone.

    Args:
        problem: as it was solved.
        found: the plan; of one with replicas, only the busiest devices and links are changed, which takes long enough.
        objective: as it was solved.
        labels: effort of the solve; a trial gets a tenth of it.
        solver: what solved it, of problem, objective and labels; `solve` by default.
    """
    wanted = Objective(objective) if isinstance(objective, str) else objective

    def trial(changed: Problem, goal: Objective = wanted) -> float:
        try:
            if solver is not None:
                return solver(changed, goal, labels // 10).value
            return solve(changed, goal, labels=labels // 10).value
        except NoRoute:
            return math.inf

    def gain(value: float) -> float:
        return 1 - value / found.value if found.value > 0 else 0.0

    binding = [name for name, changed, goal in _lifted(problem, wanted) if gain(trial(changed, goal)) > 1e-9]
    shares = found.shares or (Share(1.0, found.route),)
    devices, hops = _used(problem, shares)
    if len(shares) > 1:
        devices, hops = devices[:BUSIEST], hops[:BUSIEST]
    trials = [
        (f"one more device like {name}", _twin(problem, name))
        for name in devices
        if name not in (problem.source, problem.sink)
    ]
    for a, b in hops:
        link = problem.cluster.link(a, b)
        if math.isfinite(link.bandwidth):
            trials.append((f"link {a} -> {b} twice as fast", _faster(problem, link)))
    if len(problem.codecs) > 1:
        trials += [(f"codec {c.name} everywhere", replace(problem, codecs=[c])) for c in problem.codecs]
    results = [
        WhatIf(text, value, gain(value)) for text, changed in trials if math.isfinite(value := trial(changed))
    ]
    results.sort(key=lambda each: -each.gain)
    return Advice(_bottleneck(problem, shares), tuple(binding), tuple(results))


def _used(problem: Problem, shares: Sequence[Share]) -> tuple[list[str], list[tuple[str, str]]]:
    """Devices that compute and links that are crossed, the busiest first."""
    devices: dict[str, float] = {}
    hops: dict[tuple[str, str], float] = {}
    for share in shares:
        measured = evaluate(problem, share.route)
        for stage in share.route.stages:
            devices.setdefault(stage.device, 0.0)
        for name in {stage.device for stage in share.route.stages}:
            devices[name] += share.fraction * measured.devices.get(name, 0.0)
        for transfer in share.route.transfers:
            for pair in itertools.pairwise(transfer.path):
                hops.setdefault(pair, 0.0)
        for pair, seconds in measured.links.items():
            hops[pair] = hops.get(pair, 0.0) + share.fraction * seconds
    return sorted(devices, key=lambda n: -devices[n]), sorted(hops, key=lambda pair: -hops[pair])


def _bottleneck(problem: Problem, shares: Sequence[Share]) -> str:
    if len(shares) == 1:
        return evaluate(problem, shares[0].route).bottleneck
    instance = compile_problem(problem)
    return instance.resource_name(int(mix_load(instance, shares).argmax()))
