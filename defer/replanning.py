"""Whether a running plan should give way to a better one, now that the cluster or the profile has changed. Pure.

Changing has a price: partitions that a device does not hold must be sent there first. The running plan is kept where
what a new one gains does not pay for that within the horizon.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import msgspec

import router
from defer.costs import make_costs
from defer.documents.cluster import Cluster
from defer.documents.plan import Objective, Plan
from defer.documents.profile import CostProfile
from defer.errors import InvalidDocument, UsageError
from defer.planning import goal_of, in_our_words
from defer.route_plans import to_plan, to_route
from defer.wishes import NO_LIMITS, NO_RULES, Limits, Rules, check_wishes

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
        load_bandwidth: Bytes per second at which devices receive partitions; None takes the dispatcher's slowest link.
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
) -> Replanned:
    """Compare a running plan with the best one for the cluster as it is now.

    Args:
        running: What serves.
        chain: The model's blocks.
        cluster: Devices and links as they are now.
        profile: What was measured, as it is now.
        objective: What is made least; see `make_plan` for this and the rest.
        max_stages: At most so many stages.
        codec: The one codec between stages.
        limits: Bounds.
        rules: Blocks and devices.
        prospect: What the change has to pay off in.

    Raises:
        NoRoute: No plan can exist any more.
        InvalidDocument: The running plan is of another model, or cut where the chain has no boundary.
        UsageError: Wishes that re-planning cannot weigh against the time of loading.
    """
    if rules.replicas or running.shares or running.accuracy:
        raise UsageError(
            "a running plan is weighed against another without replicas and without an error budget",
            hint="make a new plan, and see both with --compare",
        )
    if running.order:
        raise UsageError(
            "the running plan has an order of the ops of its own, in which its blocks are not those of this chain",
            hint="make a new plan, and see both with --compare",
        )
    check_wishes(objective, limits, rules)
    costs = make_costs(chain, cluster, profile, max_stages=max_stages, codec=codec, rules=rules)
    problem = costs.problem
    if running.by_hand:  # a placement by hand may come back to a device
        problem = replace(problem, stages_per_device=None)
    bandwidth = prospect.load_bandwidth or _slowest(problem)
    with in_our_words(costs):
        found = router.replan(
            problem,
            to_route(_on_chain(running, chain), problem),
            goal_of(objective, limits),
            load_bandwidth=bandwidth,
            horizon=prospect.horizon,
            rate=prospect.rate,
            threshold=prospect.threshold,
        )
        best = found.best if found.change or found.running is None else found.running
        plan = to_plan(
            chain, cluster, costs, best, objective, limits, by_hand=running.by_hand and not found.change
        )
    return Replanned(
        found.change,
        costs.told(found.reason),
        plan,
        round(found.moved_bytes),
        float(found.load_seconds),
        float(found.gain),
        float(found.price),
    )


def _slowest(problem: router.Problem) -> float:
    """Bandwidth of the slowest link from the dispatcher to a device that computes."""
    rates = [
        link.bandwidth
        for link in problem.cluster.links
        if link.source == problem.source and link.target in problem.block_seconds
    ]
    return min(rates, default=min((link.bandwidth for link in problem.cluster.links), default=1.0))


def _on_chain(running: Plan, chain: BlockChain) -> Plan:
    """The running plan in block numbers of the chain, which may be coarser or finer than the one it was made with."""
    if running.digest != chain.digest:
        raise InvalidDocument(
            f"the running plan is of another model: {running.model!r} with digest {running.digest[:12]}, "
            f"not {chain.model!r} with {chain.digest[:12]}",
            hint="give the plan that serves this model",
        )
    numbers = {boundary.position: number for number, boundary in enumerate(chain.boundaries)}
    if missing := [cut for cut in running.cuts if cut not in numbers]:
        raise InvalidDocument(
            f"the running plan cuts at op {missing[0]}, where this chain has no boundary",
            hint="plan with the profile, or the --max-blocks, that the running plan was made with",
        )
    stages = tuple(
        msgspec.structs.replace(stage, start=numbers[stage.ops[0]], stop=numbers[stage.ops[1]])
        for stage in running.stages
    )
    edges = [0, *(stage.stop for stage in stages)]
    transfers = tuple(
        msgspec.structs.replace(transfer, boundary=edge)
        for transfer, edge in zip(running.transfers, edges, strict=True)
    )
    return msgspec.structs.replace(running, stages=stages, transfers=transfers)
