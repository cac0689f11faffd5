"""A plan for fewer devices that moves only what was on the lost ones, where that is nearly as good as the best. Pure.

Agents share a partition that they hold already, so a plan that leaves the other stages where they are takes the memory
and the loading of the moved ones alone.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Final

import msgspec

import router
from defer.documents.cluster import Cluster
from defer.documents.plan import Plan
from defer.documents.profile import CostProfile
from defer.errors import DeferError
from defer.planning import make_plan

if TYPE_CHECKING:
    from partitioner import BlockChain

NEARLY: Final = 0.1
"""How much worse than the best a plan may be that loads less: it serves until the lost device is back, or one joins."""


def staying(
    best: Plan,
    running: Plan,
    chain: BlockChain,
    cluster: Cluster,
    profile: CostProfile | None,
    lost: Collection[str],
    nearly: float = NEARLY,
) -> Plan:
    """The running plan with the stages of lost devices on another device, or the best plan.

    Args:
        best: The best plan for what is left.
        running: What serves.
        chain: The model's blocks, as both were planned with.
        cluster: What is left.
        profile: What was measured.
        lost: Devices that are gone.
        nearly: How much worse than the best the result may be, relatively.
    """
    here = tuple(boundary.position for boundary in chain.boundaries)
    moved = {stage.device for stage in running.stages} & set(lost)
    if running.shares or running.order or best.order or running.positions != here or len(moved) != 1:
        return best
    kept = {stage.device for stage in running.stages}
    found = best
    limit = best.value * (1 + nearly)
    for device in cluster.devices:
        if not (device.computes and device.has_agent) or device.name in kept:
            continue
        placement = tuple(
            router.Stage(device.name if stage.device in moved else stage.device, stage.start, stage.stop)
            for stage in running.stages
        )
        try:
            plan = make_plan(chain, cluster, profile, objective=best.objective, placement=placement)
        except DeferError:
            continue  # it cannot hold the stage, or is not reached
        if plan.value <= limit:
            found, limit = plan, plan.value
    # Nobody placed it by hand: it gives way to a better one like any other plan.
    return found if found is best else msgspec.structs.replace(found, by_hand=False, optimal=False)
