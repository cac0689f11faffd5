"""A route of the router's as a plan that people and deployments read, and back. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import router
from defer.costs import Costs
from defer.documents.cluster import Cluster
from defer.documents.plan import (
    Objective,
    Plan,
    PlanAlternative,
    PlanDevice,
    PlanLink,
    PlanShare,
    PlanStage,
    PlanTerm,
    PlanTransfer,
)
from defer.wishes import NO_LIMITS, Limits
from router.instance import compile_problem

if TYPE_CHECKING:
    from partitioner import BlockChain

ALONE_LABELS = 2_000
"""Effort for the way to and from a single device: one stage leaves little to search."""


def to_route(plan: Plan, problem: router.Problem) -> router.Route:
    """A plan's route in the router's names: the sink has one of its own where it forwards nothing."""
    transfers = [
        router.Transfer(each.boundary, each.path, each.codec if len(each.path) > 1 else "raw")
        for each in plan.transfers
    ]
    last = transfers[-1]
    transfers[-1] = replace(last, path=(*last.path[:-1], problem.sink))
    stages = tuple(router.Stage(each.device, each.start, each.stop) for each in plan.stages)
    return router.Route(stages, tuple(transfers))


def to_plan(
    chain: BlockChain,
    cluster: Cluster,
    costs: Costs,
    solution: router.Solution,
    objective: Objective,
    limits: Limits = NO_LIMITS,
    *,
    by_hand: bool = False,
) -> Plan:
    """What the router found, in the words of the cluster's file.

    Args:
        chain: The model's blocks.
        cluster: Devices and links as they are declared.
        costs: The problem that was solved.
        solution: What was found.
        objective: What was made least.
        limits: Under which bounds.
        by_hand: Whether an operator placed the blocks.
    """
    shares = solution.shares or (router.Share(1.0, solution.route),)
    legs = [_leg(costs, share) for share in shares]
    devices, links, bottleneck = _loads(cluster, costs, legs)
    stages, transfers = _parts(chain, costs, legs[0])
    return Plan(
        model=chain.model,
        digest=chain.digest,
        positions=tuple(boundary.position for boundary in chain.boundaries),
        bindings=dict(chain.bindings),
        objective=objective,
        method=costs.method,
        latency_s=float(solution.latency),
        period_s=float(solution.period),
        cost=float(solution.cost),
        energy_j=float(solution.energy),
        error=float(solution.error),
        weights=dict(limits.weights),
        limits=limits.given,
        bound=float(solution.bound),
        optimal=solution.optimal,
        bottleneck=bottleneck,
        stages=stages,
        transfers=transfers,
        terms=tuple(
            PlanTerm(kind=term.kind, where=costs.told(term.where), seconds=term.seconds, bytes=term.bytes)
            for term in legs[0].terms
            if term.seconds > 0
        ),
        alternatives=_alone(costs.problem),
        by_hand=by_hand,
        notes=(*costs.notes, *_free(objective, solution)),
        shares=_plan_shares(chain, costs, legs) if len(legs) > 1 else (),
        device_loads=devices,
        link_loads=links,
    )


@dataclass(frozen=True, slots=True)
class _Leg:
    """A route, its part of the requests, and what the router says of it."""

    fraction: float
    route: router.Route
    evaluation: router.Evaluation
    terms: tuple[router.Term, ...]


def _leg(costs: Costs, share: router.Share) -> _Leg:
    evaluation = router.evaluate(costs.problem, share.route)
    return _Leg(float(share.fraction), share.route, evaluation, router.explain(costs.problem, share.route))


def _plan_shares(chain: BlockChain, costs: Costs, legs: Iterable[_Leg]) -> tuple[PlanShare, ...]:
    found = []
    for leg in legs:
        stages, transfers = _parts(chain, costs, leg)
        found.append(PlanShare(fraction=leg.fraction, stages=stages, transfers=transfers))
    return tuple(found)


def _loads(
    cluster: Cluster, costs: Costs, legs: Sequence[_Leg]
) -> tuple[tuple[PlanDevice, ...], tuple[PlanLink, ...], str]:
    """What a request asks of each device and link in the mean over the shares, and the name of the busiest."""
    busy: dict[str, float] = defaultdict(float)
    crossing: dict[tuple[str, str], float] = defaultdict(float)
    moved: dict[tuple[str, str], float] = defaultdict(float)
    media: dict[str, float] = defaultdict(float)
    memory: dict[str, int] = {}
    for leg in legs:
        found = leg.evaluation
        for name, seconds in found.devices.items():
            busy[name] += leg.fraction * seconds
        for ends, seconds in found.links.items():
            crossing[ends] += leg.fraction * seconds
        for name, seconds in found.media.items():
            media[name] += leg.fraction * seconds
        for name, nbytes in found.memory.items():
            memory[name] = max(memory.get(name, 0), nbytes)
        for term in leg.terms:
            if term.kind == "transmission":
                source, _, target = term.where.partition(" -> ")
                moved[source, target] += leg.fraction * term.bytes
    named = {f"device {name}": seconds for name, seconds in busy.items()}
    named |= {f"link {source} -> {target}": seconds for (source, target), seconds in crossing.items()}
    named |= {f"medium {name}": seconds for name, seconds in media.items()}
    bottleneck = max(named, key=lambda name: named[name])
    if len(legs) == 1:  # where two are as busy, the router's word counts
        bottleneck = legs[0].evaluation.bottleneck
    declared = {pair for link in cluster.links for pair in link.pairs}
    devices = tuple(
        PlanDevice(
            name=device.name,
            computes=device.computes,
            memory_bytes=device.memory,
            used_bytes=memory.get(device.name, 0),
            busy_s=math.fsum(seconds for name, seconds in busy.items() if costs.told(name) == device.name),
        )
        for device in costs.problem.cluster.devices
        if costs.told(device.name) == device.name
    )
    links = tuple(
        PlanLink(
            source=costs.told(link.source),
            target=costs.told(link.target),
            bytes_per_s=link.bandwidth,
            delay_s=link.delay,
            medium=link.medium,
            wire_bytes=round(moved.get((link.source, link.target), 0.0)),
            busy_s=crossing.get((link.source, link.target), 0.0),
        )
        for link in costs.problem.cluster.links
        if (link.source, link.target) in moved or (link.source, costs.told(link.target)) in declared
    )
    return devices, links, costs.told(bottleneck)


def _parts(
    chain: BlockChain, costs: Costs, leg: _Leg
) -> tuple[tuple[PlanStage, ...], tuple[PlanTransfer, ...]]:
    """Stages and transfers of one route."""
    problem, route = costs.problem, leg.route
    spans = _spans(leg.terms, len(route.stages))
    positions = tuple(boundary.position for boundary in chain.boundaries)
    needed = compile_problem(problem).stage_bytes
    stages = tuple(
        PlanStage(
            device=stage.device,
            start=stage.start,
            stop=stage.stop,
            ops=(positions[stage.start], positions[stage.stop]),
            weight_bytes=chain.weight_bytes_of(stage.start, stage.stop),
            flops=sum(block.flops for block in chain.blocks[stage.start : stage.stop]),
            seconds=math.fsum(spans.stages[number]),
            memory_bytes=int(needed[stage.start, stage.stop]),
        )
        for number, stage in enumerate(route.stages)
    )
    transfers = tuple(
        PlanTransfer(
            boundary=transfer.boundary,
            path=tuple(costs.told(name) for name in transfer.path),
            codec=transfer.codec,
            nbytes=int(costs.problem.boundary_bytes[transfer.boundary]),
            seconds=math.fsum(spans.transfers[number]),
            tensors=chain.boundaries[transfer.boundary].tensors,
            wire_bytes=spans.wire_bytes[number],
            encode_s=spans.encode[number],
            decode_s=spans.decode[number],
            encrypt_s={costs.told(name): seconds for name, seconds in spans.encrypt[number].items()},
        )
        for number, transfer in enumerate(route.transfers)
    )
    return stages, transfers


@dataclass(frozen=True, slots=True)
class _Spans:
    """Addends of each stage and transfer in seconds; of each transfer, bytes on the wire and seconds at both ends."""

    stages: list[list[float]]
    transfers: list[list[float]]
    wire_bytes: list[int]
    encode: list[float]
    decode: list[float]
    encrypt: list[dict[str, float]]


def _spans(terms: Sequence[router.Term], stages: int) -> _Spans:
    """The router's terms by stage and transfer.

    They come in order of time, transfer 0, stage 0, transfer 1, …; a stage ends with its compute.
    """
    found = _Spans(
        [[] for _ in range(stages)],
        [[] for _ in range(stages + 1)],
        [0] * (stages + 1),
        [0.0] * (stages + 1),
        [0.0] * (stages + 1),
        [{} for _ in range(stages + 1)],
    )
    number = 0
    for term in terms:
        if not term.detail.startswith("boundary"):
            found.stages[number].append(term.seconds)
            number += term.kind == "compute"
            continue
        found.transfers[number].append(term.seconds)
        if term.kind == "transmission":
            found.wire_bytes[number] = term.bytes
        elif term.kind == "encode":
            found.encode[number] += term.seconds
        elif term.kind == "decode":
            found.decode[number] += term.seconds
        elif term.kind == "encrypt":
            found.encrypt[number][term.where] = found.encrypt[number].get(term.where, 0.0) + term.seconds
    return found


def _free(objective: Objective, solution: router.Solution) -> list[str]:
    """What to say where the plan costs nothing because nobody said what anything costs."""
    declared = {"cost": ("price", solution.cost), "energy": ("power", solution.energy)}
    word, value = declared.get(objective, ("", 1.0))
    if value > 0:
        return []
    return [f"no {word} of a device or link that the plan uses is declared: it counts as 0"]


def _alone(problem: router.Problem) -> dict[str, PlanAlternative]:
    """The whole model on each device that can hold it; a plan is judged against the best of them."""
    found = {}
    instance = compile_problem(problem)
    whole = instance.stage_bytes[0, -1]
    for name in problem.block_seconds:
        if whole > instance.memory[instance.index[name]]:
            continue  # to prove that takes the solver seconds
        try:
            alone = router.place(problem, (router.Stage(name, 0, problem.blocks),), labels=ALONE_LABELS)
        except router.RouterError:
            continue  # too little memory, or out of reach
        found[name] = PlanAlternative(
            latency_s=alone.latency, period_s=alone.period, cost=alone.cost, energy_j=alone.energy
        )
    return found
