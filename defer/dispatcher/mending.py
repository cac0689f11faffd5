"""What to do about a model, by where it is served and which devices are left. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from defer.documents.cluster import Cluster
from defer.documents.plan import Plan

Remedy = Literal["none", "home", "elsewhere"]


@dataclass(frozen=True, slots=True)
class Serving:
    """A route that serves a model, or should.

    Attributes:
        epoch: Which.
        ready: Whether it takes requests: every device of it is in reach and holds it.
        plan: What it was loaded from, if that is known.
    """

    epoch: int
    ready: bool
    plan: Plan | None


def devices_of_plan(plan: Plan) -> frozenset[str]:
    """Every device that computes or relays for a plan, but the dispatcher's own unless it computes."""
    legs = [leg for _, leg in plan.legs]
    relays = {device for leg in legs for transfer in leg.transfers for device in transfer.path[1:-1]}
    return frozenset(relays | {stage.device for leg in legs for stage in leg.stages})


def where_it_runs(*plans: Plan) -> str:
    """In words: device after device, or all of them where routes share the requests."""
    legs = [leg for plan in plans for _, leg in plan.legs]
    if len(legs) > 1:
        return ", ".join(sorted(frozenset().union(*(devices_of_plan(leg) for leg in legs))))
    return " → ".join(stage.device for leg in legs for stage in leg.stages)


def indispensable(serving: Sequence[Serving], missing: Collection[str]) -> frozenset[str]:
    """Devices without which nothing would serve a model: those of all its routes that are ready and can be relied on.

    Args:
        serving: Its routes.
        missing: Devices that are out of reach, hang, or are not relied on yet.
    """
    ready = [devices_of_plan(each.plan) for each in serving if each.ready and each.plan is not None]
    reliable = [devices for devices in ready if devices.isdisjoint(missing)]
    return frozenset.intersection(*(reliable or ready or [frozenset()]))


def without_agent(plan: Plan, cluster: Cluster) -> frozenset[str]:
    """Devices of a plan that a cluster does not have, or has without an agent: nothing can run there, nor will."""
    return devices_of_plan(plan) - {device.name for device in cluster.agents}


def remedy(home: Plan, serving: Sequence[Serving], missing: Collection[str]) -> Remedy:
    """What a model needs.

    Args:
        home: The plan that it is to follow.
        serving: Its routes.
        missing: Devices that are out of reach, hang, or are not relied on yet.

    Returns:
        `none`: it is served as planned, or as well as can be. `home`: its plan can be loaded (again). `elsewhere`: it is
        not served, and its plan lacks a device.
    """
    legs = [leg for _, leg in home.legs]
    planned = [each for each in serving if each.ready and each.plan in legs]
    if len(planned) == len(legs):
        return "none"
    if not devices_of_plan(home) & set(missing):
        return "home"
    return "none" if any(each.ready for each in serving) else "elsewhere"
