"""From a model's blocks, a cluster and a profile to a plan. Pure: same inputs, same plan; no clock, socket or chance.

Planning again after a device was lost, or a link became slow, is the same function with a changed cluster or profile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import router
from defer.codec_choice import choose_codecs
from defer.codec_costs import Errors
from defer.costs import Costs, make_costs
from defer.documents.cluster import Cluster
from defer.documents.plan import Objective, Plan, PlanAlternative, PlanStage, PlanTerm, PlanTransfer
from defer.documents.profile import CostProfile
from defer.errors import UnknownDevice, UsageError, translate

if TYPE_CHECKING:
    from partitioner import BlockChain

Placement = tuple[router.Stage, ...]
"""An operator's own choice: which blocks on which device, in order."""


def make_plan(
    chain: BlockChain,
    cluster: Cluster,
    profile: CostProfile | None = None,
    *,
    objective: Objective = "latency",
    max_stages: int | None = None,
    placement: Placement | None = None,
    codec: str | None = None,
    errors: Errors | None = None,
) -> Plan:
    """The plan with the least latency or period.

    Args:
        chain: The model's blocks; with a profile, those that were measured (see `defer.blocks`).
        cluster: Devices and links.
        profile: What was measured; None plans with static costs and says so in the plan.
        objective: `latency` of one request, or `throughput` of a full pipeline.
        max_stages: At most so many stages.
        placement: Blocks of each device, chosen by hand; planning then only finds the way between them.
        codec: The one codec between stages, or `auto`; None takes the cluster file's.
        errors: What lossy codecs add at each boundary; without it no codec changes a value.

    Raises:
        NoRoute: No plan can exist; the message names the limit.
        InvalidDocument: The profile does not fit the chain.
        UnknownDevice, UsageError: The placement does not fit the cluster or the chain.
    """
    costs = make_costs(chain, cluster, profile, max_stages=max_stages, codec=codec, errors=errors)
    goal = router.Objective(objective)
    try:
        if placement is None:
            solution = router.solve(costs.problem, goal)
        else:
            _check_placement(placement, chain, cluster)
            by_hand = replace(costs.problem, stages_per_device=None)
            solution = router.place(by_hand, placement, goal)
        return _to_plan(chain, costs, solution, objective, by_hand=placement is not None)
    except router.RouterError as exc:
        error = translate(exc)
        error.message = costs.told(error.message)
        raise error from exc


def recode_plan(
    plan: Plan,
    chain: BlockChain,
    cluster: Cluster,
    profile: CostProfile | None,
    errors: Errors,
    max_error: float,
) -> Plan | None:
    """The same stages and paths with other codecs, whose errors add up to at most `max_error`; None where none do.

    Args:
        plan: Made for this chain, cluster and profile.
        chain: The model's blocks.
        cluster: Devices and links.
        profile: What was measured.
        errors: What lossy codecs add at each boundary.
        max_error: The most, in the units of `errors`.
    """
    costs = make_costs(chain, cluster, profile, codec="auto", errors=errors)
    problem = replace(costs.problem, stages_per_device=None)
    route = choose_codecs(problem, _to_route(plan, problem), plan.objective, max_error)
    if route is None:
        return None
    goal = router.Objective(plan.objective, max_error=max_error)
    solution = router.place(problem, route, goal)
    return _to_plan(chain, costs, solution, plan.objective, by_hand=plan.by_hand)


def _to_route(plan: Plan, problem: router.Problem) -> router.Route:
    """A plan in the router's names: the sink has one of its own where it forwards nothing."""
    transfers = [
        router.Transfer(each.boundary, each.path, each.codec if len(each.path) > 1 else "raw")
        for each in plan.transfers
    ]
    last = transfers[-1]
    transfers[-1] = replace(last, path=(*last.path[:-1], problem.sink))
    stages = tuple(router.Stage(each.device, each.start, each.stop) for each in plan.stages)
    return router.Route(stages, tuple(transfers))


def parse_placement(text: str, cluster: Cluster, blocks: int) -> Placement:
    """A placement from `jetson=0:12,nano=12:30`; the last end may be left out.

    Args:
        text: Device, `=`, first block, `:`, block after the last; separated by commas.
        cluster: Whose devices it names.
        blocks: How many blocks the chain has.

    Raises:
        UsageError: Not of that form.
        UnknownDevice: A device that the cluster does not have.
    """
    hint = "write device=start:stop,…, for example jetson=0:12,nano=12:30"
    stages = []
    for part in text.split(","):
        name, equals, span = part.strip().rpartition("=")
        start, colon, stop = span.partition(":")
        if (
            not (equals and colon and name and start.strip().isdecimal())
            or not (stop or "0").strip().isdecimal()
        ):
            raise UsageError(f"{part.strip()!r} is not a placement", hint=hint)
        stages.append(
            router.Stage(cluster.device(name.strip()).name, int(start), int(stop) if stop.strip() else blocks)
        )
    return tuple(stages)


def _check_placement(placement: Placement, chain: BlockChain, cluster: Cluster) -> None:
    at, blocks = 0, len(chain.blocks)
    for stage in placement:
        device = cluster.device(stage.device)
        if not (device.computes and device.has_agent):
            raise UnknownDevice(
                f"device {device.name!r} computes nothing", hint="place blocks on devices with agents"
            )
        if stage.start != at or not stage.start < stage.stop <= blocks:
            raise UsageError(
                f"blocks {stage.start}:{stage.stop} on {stage.device!r} do not follow on block {at} of {blocks}",
                hint=f"stages must cover blocks 0:{blocks} in order, without a gap",
            )
        at = stage.stop
    if at != blocks:
        raise UsageError(
            f"blocks {at}:{blocks} are not placed", hint=f"stages must cover blocks 0:{blocks} in order"
        )


# ------------------------------------------------------------------------------------------------------- and back


def _to_plan(
    chain: BlockChain, costs: Costs, solution: router.Solution, objective: Objective, *, by_hand: bool
) -> Plan:
    problem, route = costs.problem, solution.route
    evaluation = router.evaluate(problem, route)
    terms = router.explain(problem, route)
    stage_s, transfer_s, wire = _spans(terms, len(route.stages))
    positions = tuple(boundary.position for boundary in chain.boundaries)
    stages = tuple(
        PlanStage(
            device=stage.device,
            start=stage.start,
            stop=stage.stop,
            ops=(positions[stage.start], positions[stage.stop]),
            weight_bytes=chain.weight_bytes_of(stage.start, stage.stop),
            flops=sum(block.flops for block in chain.blocks[stage.start : stage.stop]),
            seconds=stage_s[number],
            memory_bytes=_stage_memory(problem, stage),
        )
        for number, stage in enumerate(route.stages)
    )
    transfers = tuple(
        PlanTransfer(
            boundary=transfer.boundary,
            path=tuple(costs.told(name) for name in transfer.path),
            codec=transfer.codec,
            nbytes=chain.boundaries[transfer.boundary].nbytes,
            seconds=transfer_s[number],
            tensors=chain.boundaries[transfer.boundary].tensors,
            wire_bytes=wire[number],
        )
        for number, transfer in enumerate(route.transfers)
    )
    return Plan(
        model=chain.model,
        digest=chain.digest,
        positions=positions,
        bindings=dict(chain.bindings),
        objective=objective,
        method=costs.method,
        latency_s=solution.latency,
        period_s=solution.period,
        bound_s=solution.bound,
        optimal=solution.optimal,
        bottleneck=costs.told(evaluation.bottleneck),
        stages=stages,
        transfers=transfers,
        terms=tuple(
            PlanTerm(kind=term.kind, where=costs.told(term.where), seconds=term.seconds, bytes=term.bytes)
            for term in terms
            if term.seconds > 0
        ),
        alternatives=_alone(problem),
        by_hand=by_hand,
        notes=costs.notes,
    )


def _spans(terms: Sequence[router.Term], stages: int) -> tuple[list[float], list[float], list[int]]:
    """Seconds of each stage and of each transfer, and bytes on the wire of each transfer.

    The router lists the terms in order of time, transfer 0, stage 0, transfer 1, …; a stage ends with its compute.
    """
    stage_s: list[list[float]] = [[] for _ in range(stages)]
    transfer_s: list[list[float]] = [[] for _ in range(stages + 1)]
    wire = [0] * (stages + 1)
    number = 0
    for term in terms:
        if term.detail.startswith("boundary"):
            transfer_s[number].append(term.seconds)
            if term.kind == "transmission":
                wire[number] = term.bytes
        else:
            stage_s[number].append(term.seconds)
            number += term.kind == "compute"
    return [math.fsum(part) for part in stage_s], [math.fsum(part) for part in transfer_s], wire


def _stage_memory(problem: router.Problem, stage: router.Stage) -> int:
    """What the router reserves for one stage: weights, the largest activation, queues, and the runtime."""
    size, queues = problem.boundary_bytes, problem.buffers
    waiting = (queues.receive * size[stage.start] if stage.start else 0) + queues.send * size[stage.stop]
    weights = sum(problem.block_memory[stage.start : stage.stop])
    return int(
        weights + max(problem.block_activation[stage.start : stage.stop]) + waiting + problem.stage_memory
    )


def _alone(problem: router.Problem) -> dict[str, PlanAlternative]:
    """The whole model on each device that can hold it; a plan is judged against the best of them."""
    found = {}
    for name in problem.block_seconds:
        try:
            alone = router.place(problem, (router.Stage(name, 0, problem.blocks),))
        except router.RouterError:
            continue  # too little memory, or out of reach
        found[name] = PlanAlternative(latency_s=alone.latency, period_s=alone.period)
    return found
