"""From a model's blocks, a cluster and a profile to a plan. Pure: same inputs, same plan; no clock, socket or chance.

Planning again after a device was lost, or a link became slow, is the same function with a changed cluster or profile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

import router
from defer.branches import Branches, with_own_order
from defer.codec_choice import choose_codecs
from defer.codec_costs import Errors
from defer.costs import Costs, make_costs
from defer.cutting_around import Refusals
from defer.documents.cluster import Cluster
from defer.documents.plan import Objective, Plan, PlanAdvice, PlanWhatIf
from defer.documents.profile import CostProfile
from defer.errors import UnknownDevice, UsageError
from defer.route_plans import to_plan, to_route
from defer.translating import translate
from defer.wishes import NO_LIMITS, NO_RULES, Limits, Rules, check_wishes

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
    max_error: float = math.inf,
    limits: Limits = NO_LIMITS,
    rules: Rules = NO_RULES,
    advice: bool = False,
    branches: Branches | None = None,
) -> Plan:
    """The best plan for an objective.

    Args:
        chain: The model's blocks; with a profile, those that were measured (see `defer.blocks`).
        cluster: Devices and links.
        profile: What was measured; None plans with static costs and says so in the plan.
        objective: What is made least.
        max_stages: At most so many stages.
        placement: Blocks of each device, chosen by hand; planning then only finds the way between them.
        codec: The one codec between stages, or `auto`; None takes the cluster file's.
        errors: What lossy codecs add at each boundary; without it no codec changes a value.
        max_error: The most that these may add up to.
        limits: Bounds that the plan must keep, and the weights of a weighted objective.
        rules: Blocks and devices that are tied, forbidden or shared.
        advice: Also find out what limits the plan, and what changes of the cluster would gain.
        branches: The model, to look for an order of its ops in which stages keep up a higher rate; only for
            throughput without rules and lossy codecs, which speak of the chain's own blocks and boundaries.

    Raises:
        NoRoute: No plan can exist; the message names the limit.
        InvalidDocument: The profile does not fit the chain.
        UnknownDevice, UsageError: What was asked for does not fit together, or not the cluster or the chain.
    """
    check_wishes(objective, limits, rules, placed=placement is not None)

    def costs_with(refusals: Refusals) -> Costs:
        return make_costs(
            chain,
            cluster,
            profile,
            max_stages=max_stages,
            codec=codec,
            errors=errors,
            rules=rules,
            refusals=refusals,
        )

    costs = costs_with("avoid" if placement is None else "ignore")
    goal = goal_of(objective, limits, max_error)
    with in_our_words(costs):
        problem = costs.problem
        if placement is not None:
            _check_placement(placement, chain, cluster)
            problem = replace(problem, stages_per_device=None)
            solution = router.place(problem, placement, goal)
        else:
            solver = router.solve_replicated if rules.replicas else router.solve
            try:
                solution = solver(problem, goal)
            except router.NoRoute:
                # A stage that falls back is better than no plan; the operator's own bounds refuse it again.
                costs = costs_with("bear")
                if costs.problem.pins == problem.pins:
                    raise
                problem = costs.problem
                solution = solver(problem, goal)
        plan = to_plan(chain, cluster, costs, solution, objective, limits, by_hand=placement is not None)
        if advice:
            plan = msgspec.structs.replace(plan, advice=_advise(problem, solution, goal, costs, placement))
    free = placement is None and errors is None and rules == NO_RULES
    if branches is None or objective != "throughput" or not free:
        return plan

    def again(other: BlockChain, measured: CostProfile | None) -> Plan:
        return make_plan(
            other,
            cluster,
            measured,
            objective=objective,
            max_stages=max_stages,
            codec=codec,
            limits=limits,
            advice=advice,
        )

    return with_own_order(plan, chain, costs, profile, branches, again)


def goal_of(objective: Objective, limits: Limits, max_error: float = math.inf) -> router.Objective:
    """An objective and its bounds in the router's terms."""
    return router.Objective(
        objective,
        limits.weights,
        max_latency=limits.latency,
        max_period=limits.period,
        max_cost=limits.cost,
        max_energy=limits.energy,
        max_error=max_error,
    )


@contextmanager
def in_our_words(costs: Costs) -> Iterator[None]:
    """The router's errors as ours, with the cluster's own device names."""
    try:
        yield
    except router.RouterError as exc:
        error = translate(exc)
        error.message = costs.told(error.message)
        if isinstance(exc, router.NoRoute) and exc.limit == "memory" and costs.method == "static":
            error.hint += "; what is not measured (`defer profile`) counts with twice its weights"
        raise error from exc


def _advise(
    problem: router.Problem,
    solution: router.Solution,
    goal: router.Objective,
    costs: Costs,
    placement: Placement | None,
) -> PlanAdvice:
    if placement is not None:  # what a change gains with the blocks where the operator wants them
        blocks = {block: stage.device for stage in placement for block in range(stage.start, stage.stop)}
        problem = replace(problem, pins=router.Pins(blocks=blocks), max_stages=len(placement))
    found = router.advise(problem, solution, goal, solver=_solve_replicated if solution.shares else None)
    return PlanAdvice(
        binding=found.binding,
        what_ifs=tuple(
            PlanWhatIf(change=costs.told(each.change), value=each.value, gain=each.gain)
            for each in found.what_ifs
        ),
    )


def _solve_replicated(problem: router.Problem, goal: router.Objective, labels: int) -> router.Solution:
    return router.solve_replicated(problem, goal, labels=labels)


def recode_plan(
    plan: Plan,
    chain: BlockChain,
    cluster: Cluster,
    profile: CostProfile | None,
    errors: Errors,
    max_error: float,
    limits: Limits = NO_LIMITS,
) -> Plan | None:
    """The same stages and paths with other codecs, whose errors add up to at most `max_error`; None where none do.

    Args:
        plan: Made for this chain, cluster and profile.
        chain: The model's blocks.
        cluster: Devices and links.
        profile: What was measured.
        errors: What lossy codecs add at each boundary.
        max_error: The most, in the units of `errors`.
        limits: Bounds that the plan was made under, and its weights.
    """
    costs = make_costs(
        chain, cluster, profile, codec="auto", errors=errors, refusals="ignore" if plan.by_hand else "avoid"
    )
    problem = replace(costs.problem, stages_per_device=None)
    goal = goal_of(plan.objective, limits, max_error)
    route = choose_codecs(problem, to_route(plan, problem), goal)
    if route is None:
        return None
    solution = router.place(problem, route, goal)
    return to_plan(chain, cluster, costs, solution, plan.objective, limits, by_hand=plan.by_hand)


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
