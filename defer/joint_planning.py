"""Several models on one cluster, each with a rate: one plan per model, made together. Pure.

Admission comes first: where no routes at all could carry the rates, nothing is planned, and the error names what is
used up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

import router
from defer.costs import Costs, make_costs
from defer.documents.cluster import Cluster
from defer.documents.plan import Plan
from defer.documents.profile import CostProfile
from defer.errors import UsageError
from defer.planning import in_our_words
from defer.route_plans import to_plan

if TYPE_CHECKING:
    from partitioner import BlockChain


@dataclass(frozen=True, slots=True)
class Job:
    """A model and how often it is asked.

    Attributes:
        name: For people; each job its own.
        chain: The model's blocks.
        rate: Requests per second.
        profile: What was measured; None takes static costs.
    """

    name: str
    chain: BlockChain
    rate: float
    profile: CostProfile | None = None


@dataclass(frozen=True, slots=True)
class JointPlans:
    """One plan per job.

    Attributes:
        plans: In the order of the jobs; latencies count the waiting for the other jobs' requests.
        utilisation: Share of its time that the busiest device or link works.
        busiest: Its name.
        bound: No plans, with any number of routes per job, have a smaller utilisation.
        growth: Factor by which all rates could still grow, whatever the routes.
    """

    plans: tuple[Plan, ...]
    utilisation: float
    busiest: str
    bound: float
    growth: float


def plan_jobs(jobs: Sequence[Job], cluster: Cluster, *, codec: str | None = None) -> JointPlans:
    """Plan models that share a cluster.

    Args:
        jobs: The models, with their rates.
        cluster: Devices and links.
        codec: The one codec between stages, or `auto`; None takes the cluster file's.

    Raises:
        NoRoute: The cluster cannot carry the rates, or not hold the models; the message names what is short.
        UsageError: No jobs, two of one name, or a rate that is none.
        InvalidDocument: A profile does not fit its model.
    """
    names = [job.name for job in jobs]
    if not jobs or len(set(names)) < len(names):
        raise UsageError(
            "give one job or more, each with its own name", hint="for example --job resnet50.onnx=20"
        )
    all_costs = _on_one_cluster([make_costs(job.chain, cluster, job.profile, codec=codec) for job in jobs])
    asked = [
        router.Job(job.name, costs.problem, job.rate) for job, costs in zip(jobs, all_costs, strict=True)
    ]
    with in_our_words(all_costs[0]):
        growth = router.admit(asked)
        found = router.plan_jobs(asked)
        plans = []
        for job, costs, solution in zip(jobs, all_costs, found.solutions, strict=True):
            others = ", ".join(name for name in names if name != job.name)
            plan = to_plan(job.chain, cluster, costs, solution, "throughput")
            note = f"planned for {job.rate:g} requests/s" + (f" beside {others}" if others else "")
            plans.append(msgspec.structs.replace(plan, notes=(*plan.notes, note)))
    return JointPlans(
        tuple(plans),
        float(found.utilisation),
        all_costs[0].told(found.busiest),
        float(found.bound),
        float(growth),
    )


def _on_one_cluster(all_costs: Sequence[Costs]) -> list[Costs]:
    """The same devices and links for all: each profile has measured its own, of which the least memory counts."""
    first = all_costs[0].problem.cluster
    clusters = [costs.problem.cluster for costs in all_costs]
    devices = []
    for device in first.devices:
        limits = [found for each in clusters if (found := each.device(device.name).memory) is not None]
        devices.append(replace(device, memory=min(limits, default=None)))
    common = router.Cluster(devices, first.links)
    return [replace(costs, problem=replace(costs.problem, cluster=common)) for costs in all_costs]
