"""Whether a running plan should give way to a better one, now that the cluster or the profile has changed. Pure.

Changing has a price: partitions that a device does not hold must be sent there first. The running plan is kept where
what a new one gains does not pay for that within the horizon.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import msgspec

import router
from defer.branches import Branches, own_order
from defer.costs import make_costs
from defer.documents.cluster import Cluster
from defer.documents.plan import Objective, Plan, PlanStage, PlanTransfer
from defer.documents.profile import CostProfile
from defer.errors import InvalidDocument, NoRoute, UsageError
from defer.planning import goal_of, make_plan
from defer.route_plans import to_plan, to_route
from defer.wishes import NO_LIMITS, NO_RULES, Limits, Rules

if TYPE_CHECKING:
    from partitioner import BlockChain

HORIZON: Final = 600.0
"""Seconds for which a new plan is expected to serve, where nobody says."""

THRESHOLD: Final = 0.05
"""Least relative gain: below, measurements differ as much from one day to the next."""


@dataclass(frozen=True, slots=True)
class Prospect:
    """What the change has to pay off in.

    Attributes:
        horizon: Seconds that a new plan will serve.
        rate: Requests per second.
        threshold: Least relative gain.
        load_bandwidth: Bytes per second at which devices receive partitions; None takes the slowest of the links from
            the dispatcher to those that do.
    """

    horizon: float = HORIZON
    rate: float = 1.0
    threshold: float = THRESHOLD
    load_bandwidth: float | None = None


USUAL: Final = Prospect()


@dataclass(frozen=True, slots=True)
class Replanned:
    """What to do with a running plan.

    Attributes:
        change: Whether to load the new plan.
        reason: One sentence.
        plan: The plan to follow: the new one, or the running one as it is predicted now.
        moved_bytes: What devices would have to be sent.
        load_s: Until the last of them has it.
        gain: Seconds, money or joules saved over the horizon, in the objective's unit, loading not counted.
        price: Of loading, in the same unit.
    """

    change: bool
    reason: str
    plan: Plan
    moved_bytes: int
    load_s: float
    gain: float
    price: float


def replan(
    running: Plan,
    chain: BlockChain,
    cluster: Cluster,
    profile: CostProfile | None = None,
    *,
    objective: Objective = "latency",
    max_stages: int | None = None,
    codec: str | None = None,
    limits: Limits = NO_LIMITS,
    rules: Rules = NO_RULES,
    prospect: Prospect = USUAL,
    branches: Branches | None = None,
    best: Plan | None = None,
) -> Replanned:
    """Compare a running plan with the best one for the cluster as it is now.

    Args:
        running: What serves.
        chain: The model's blocks.
        cluster: Devices and links as they are now.
        profile: What was measured, as it is now.
        objective: What is made least; see `make_plan` for this and the rest.
        max_stages: At most so many stages.
        codec: The one codec between stages of a new plan.
        limits: Bounds.
        rules: Blocks and devices.
        prospect: What the change has to pay off in.
        branches: The model, for plans with an order of the ops of their own.
        best: The plan to weigh the running one against, where it was made already (with an error budget, say).

    Raises:
        NoRoute: No plan can exist any more.
        InvalidDocument: The running plan is of another model, or cut where the chain has no boundary.
        UsageError: What was asked for does not fit together, or the running plan has an order of its own and there is
            no model to look its ops up in.
    """
    if running.digest != chain.digest:
        raise InvalidDocument(
            f"the running plan is of another model: {running.model!r} with digest {running.digest[:12]}, "
            f"not {chain.model!r} with {chain.digest[:12]}",
            hint="give the plan that serves this model",
        )
    now, reason = _predicted(running, chain, cluster, profile, objective, limits, rules, max_stages, branches)

    def planned(within: Limits) -> Plan:
        return make_plan(
            chain,
            cluster,
            profile,
            objective=objective,
            max_stages=max_stages,
            codec=codec,
            limits=within,
            rules=rules,
            branches=branches,
        )

    new = best or _carrying(planned, limits, prospect.rate, None if reason else now)
    need = _needed(new, None if reason else now, running, chain, branches)
    problem = make_costs(chain, cluster, profile).problem
    found = router.weigh(
        problem.cluster,
        goal_of(objective, limits),
        now.value,
        new.value,
        need,
        load_bandwidth=prospect.load_bandwidth or _slowest(problem, need),
        horizon=prospect.horizon,
        rate=prospect.rate,
        threshold=prospect.threshold,
        broken=reason,
        periods=(now.period_s, new.period_s),
    )
    if not found.change:
        now = msgspec.structs.replace(now, bound=min(now.value, new.bound), optimal=now.value <= new.bound)
    return Replanned(
        found.change,
        found.reason,
        _batching_as(running, new if found.change else now),
        round(found.moved_bytes),
        float(found.load_seconds),
        float(found.gain),
        float(found.price),
    )


def _carrying(planned: Callable[[Limits], Plan], limits: Limits, rate: float, now: Plan | None) -> Plan:
    """The best plan that carries the requests which come, where the running one does."""
    if now is None or rate <= 0 or now.period_s * rate > 1 or limits.period * rate <= 1:
        return planned(limits)
    try:
        return msgspec.structs.replace(planned(replace(limits, period=1 / rate)), limits={**limits.given})
    except NoRoute:
        # What comes to the same by rounding, or is beyond the effort; weighing refuses what carries less.
        return planned(limits)


def _batching_as(running: Plan, plan: Plan) -> Plan:
    """Which requests run together is wanted of the model, whatever its plan."""
    if plan.batching == running.batching:
        return plan
    return msgspec.structs.replace(plan, batching=running.batching)


def _predicted(
    running: Plan,
    chain: BlockChain,
    cluster: Cluster,
    profile: CostProfile | None,
    objective: Objective,
    limits: Limits,
    rules: Rules,
    max_stages: int | None,
    branches: Branches | None,
) -> tuple[Plan, str]:
    """The running plan as it is predicted now, or as it was and why it can no longer run."""
    if running.order:
        chain, profile = own_order(running.order, running.positions, chain, profile, _known(branches))
    else:
        running = _on_chain(running, chain)
    used = {each.codec for _, leg in running.legs for each in leg.transfers if len(each.path) > 1}
    free = [0.0] * len(chain.boundaries)
    costs = make_costs(
        chain,
        cluster,
        profile,
        max_stages=max_stages,
        codec="every",
        errors=dict.fromkeys(used, free),
        rules=rules,
        refusals="bear",
    )
    # A placement by hand may come back to a device.
    problem = replace(costs.problem, stages_per_device=None) if running.by_hand else costs.problem
    known = {each.name for each in problem.codecs}
    if profile is None:  # nothing is known of a codec then, and planning took it as free
        problem = replace(problem, codecs=[*problem.codecs, *map(router.CodecCost, sorted(used - known))])
    elif used - known:
        return running, f"codec {min(used - known)!r} was not measured on these devices"
    try:
        shares = [router.Share(part, to_route(leg, problem)) for part, leg in running.legs]
        solution = router.predict(problem, shares, goal_of(objective, limits))
    except router.RouterError as refusal:
        return running, costs.told(str(refusal))
    plan = to_plan(chain, cluster, costs, solution, objective, limits, by_hand=running.by_hand)
    return msgspec.structs.replace(plan, order=running.order, accuracy=running.accuracy), ""


def _known(branches: Branches | None) -> Branches:
    if branches is None:
        raise UsageError(
            "a plan with an order of the ops of its own cannot be weighed by its blocks alone",
            hint="give the model, not --blocks",
        )
    return branches


def _needed(
    new: Plan, now: Plan | None, running: Plan, chain: BlockChain, branches: Branches | None
) -> dict[str, float]:
    """Bytes of the weights that each device would have to be sent: of blocks, or ops, that it does not hold."""
    if new.order or running.order:
        sizes: Sequence[int] = _known(branches).flow().weight_bytes
        edges: Sequence[int] = range(len(sizes) + 1)
    else:
        sizes = [block.weight_bytes for block in chain.blocks]
        edges = [boundary.position for boundary in chain.boundaries]
    wanted, held = _held(new, edges), _held(running if now is None else now, edges)
    return {
        device: float(sum(sizes[number] for number in numbers - held.get(device, set())))
        for device, numbers in wanted.items()
    }


def _held(plan: Plan, edges: Sequence[int]) -> dict[str, set[int]]:
    """Which of the pieces between `edges` each device holds, edges counted in the model's own order of the ops."""
    numbers = {position: number for number, position in enumerate(edges)}
    held: dict[str, set[int]] = {}
    for _, leg in plan.legs:
        for stage in leg.stages:
            start, stop = stage.ops
            pieces = plan.order[start:stop] if plan.order else range(numbers[start], numbers[stop])
            held.setdefault(stage.device, set()).update(pieces)
    return held


def _slowest(problem: router.Problem, need: Mapping[str, float]) -> float:
    """Bandwidth of the slowest link from the dispatcher to a device that needs something."""
    rates = [
        link.bandwidth
        for link in problem.cluster.links
        if link.source == problem.source and need.get(link.target, 0.0) > 0
    ]
    return min(rates, default=min((link.bandwidth for link in problem.cluster.links), default=1.0))


def _on_chain(running: Plan, chain: BlockChain) -> Plan:
    """The running plan in block numbers of the chain, which may be coarser or finer than the one it was made with."""
    numbers = {boundary.position: number for number, boundary in enumerate(chain.boundaries)}
    if missing := [cut for _, leg in running.legs for cut in leg.cuts if cut not in numbers]:
        raise InvalidDocument(
            f"the running plan cuts at op {missing[0]}, where this chain has no boundary",
            hint="plan with the profile, or the --max-blocks, that the running plan was made with",
        )

    def moved(
        stages: tuple[PlanStage, ...], transfers: tuple[PlanTransfer, ...]
    ) -> tuple[tuple[PlanStage, ...], tuple[PlanTransfer, ...]]:
        there = tuple(
            msgspec.structs.replace(stage, start=numbers[stage.ops[0]], stop=numbers[stage.ops[1]])
            for stage in stages
        )
        edges = [0, *(stage.stop for stage in there)]
        return there, tuple(
            msgspec.structs.replace(transfer, boundary=edge)
            for transfer, edge in zip(transfers, edges, strict=True)
        )

    shares = []
    for share in running.shares:
        stages, transfers = moved(share.stages, share.transfers)
        shares.append(msgspec.structs.replace(share, stages=stages, transfers=transfers))
    stages, transfers = moved(running.stages, running.transfers)
    return msgspec.structs.replace(running, stages=stages, transfers=transfers, shares=tuple(shares))
