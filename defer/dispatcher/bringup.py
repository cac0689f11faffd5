"""From a model's file to a loaded deployment: analyse, measure, plan, cut, ship, load. Needs the planner's packages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from defer.accuracy import Budget
from defer.agents import AgentPool
from defer.blocks import PLANNING_BLOCKS, planning_chain
from defer.dispatcher.standing import Mode
from defer.documents.cluster import Cluster
from defer.documents.plan import Objective, Plan, PlanBatching
from defer.documents.profile import CostProfile
from defer.errors import InvalidDocument, UsageError
from defer.hops import Place

if TYPE_CHECKING:
    from defer.deployer import Deployment
    from defer.dispatcher.foresight import Foreseen
    from partitioner import BlockChain

OnProgress = Callable[[str, float], None]
"""Told what is being done and how far it is, 0 to 1; from several threads."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be served.

    Attributes:
        name: Name to serve it under.
        model: The ONNX file.
        plan: A plan to follow, or None to make one.
        profile: Costs to plan with, or None to measure.
        objective: What a new plan makes least.
        shapes: Input shapes that bind free dimensions.
        blocks: Most blocks to measure and plan with.
        budget: How far lossy codecs may move the output; None uses none.
        calibration: Requests (.npz) on which that is measured; None makes some up.
        sample: Share of the requests that are compared with the lossless pipeline, where the plan has lossy codecs.
        batching: Requests that stages may run together; None leaves it to the plan.
        source: `serve` where the dispatcher's command line asks for it, `deploy` where an admin does.
        digest: Of what was asked for, before a plan was made; see `restoring.digest_of`.
        given: Whether whoever asks for it brought the plan.
        standby: What is prepared for the loss of a device, a `standing.Mode`; empty for the usual.
    """

    name: str
    model: Path
    plan: Plan | None = None
    profile: CostProfile | None = None
    objective: Objective = "latency"
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    blocks: int = PLANNING_BLOCKS
    budget: Budget | None = None
    calibration: Path | None = None
    sample: float = 0.0
    batching: PlanBatching | None = None
    source: str = "deploy"
    digest: str = ""
    given: bool = False
    standby: str = ""

    @property
    def standby_mode(self) -> Mode:
        """What is prepared for the loss of a device."""
        return cast(Mode, self.standby) if self.standby in get_args(Mode) else "auto"


def check_standby(standby: str) -> str:
    """What is asked to be prepared for the loss of a device, where that can be asked; empty for the usual.

    Raises:
        UsageError: It names nothing that could be.
    """
    modes = get_args(Mode)
    if standby and standby not in modes:
        raise UsageError(f"standby is {standby!r}", hint=f"say one of {', '.join(modes)}")
    return standby


@dataclass(frozen=True, slots=True)
class Places:
    """Where a dispatcher keeps what it makes, and where it is reached."""

    dispatcher: Place
    parts: Path
    profiles: Path


def make_ready(
    pool: AgentPool, cluster: Cluster, order: Order, places: Places, on_progress: OnProgress
) -> tuple[BlockChain, Plan, CostProfile | None]:
    """Analyse the model and, where the order brings no plan, measure and plan.

    Raises:
        InvalidModel, InvalidDocument, NoRoute: What the order asks for cannot be.
        AgentFault, AgentUnreachable: A device did not let itself be measured.
    """
    import partitioner
    from defer.batching import with_batching
    from defer.branches import branches_of
    from defer.guarded_planning import Wish, plan_on_calibration
    from defer.planning import make_plan
    from defer.precision import ranges_for
    from defer.profiling import profile

    on_progress("analysing the model", 0.0)
    chain = partitioner.analyze(order.model, order.shapes or None)
    if order.plan is not None:
        if order.plan.digest != chain.digest:
            raise InvalidDocument(
                f"the plan is for another model ({order.plan.model!r}, digest {order.plan.digest[:12]}), "
                f"not for {order.model.name} with digest {chain.digest[:12]}",
                hint="make a plan for this model with `defer plan`",
            )
        return chain, with_batching(order.plan, chain.inputs, order.batching), order.profile
    blocks = planning_chain(chain, order.blocks, order.profile)
    measured = order.profile
    if measured is None:
        measured = profile(
            pool,
            cluster,
            order.model,
            blocks,
            dispatcher=places.dispatcher,
            work=places.parts,
            cache=places.profiles,
            on_step=lambda where, what, fraction: on_progress(f"{where}: {what}", fraction),
            ranges=ranges_for(
                (device.precision for device in cluster.devices),
                order.model,
                chain,
                places.parts,
                order.calibration,
            ),
        )
    on_progress("planning", 0.0)
    if order.budget is None:
        plan = make_plan(
            blocks,
            cluster,
            measured,
            objective=order.objective,
            branches=branches_of(order.model, order.shapes),
        )
        return chain, with_batching(plan, chain.inputs, order.batching), measured
    plan = plan_on_calibration(
        order.model,
        blocks,
        cluster,
        measured,
        order.budget,
        Wish(order.objective),
        calibration=order.calibration,
        parts=places.parts,
        on_step=on_progress,
    )
    return chain, with_batching(plan, chain.inputs, order.batching), measured


def load(
    pool: AgentPool,
    cluster: Cluster,
    order: Order,
    chain: Callable[[], BlockChain],
    plan: Plan,
    places: Places,
    *,
    epoch: int,
    on_progress: OnProgress,
    foreseen: Foreseen | None = None,
    patient: bool = False,
    noted: Callable[[], None] = lambda: None,
) -> Deployment:
    """Cut the model by the plan, unless that was done, and load it on the agents; the rest as in `deployer.deploy`.

    `chain` is asked for the model's analysis where that is needed: not for a plan that was made ahead.
    """
    from defer.deployer import deploy
    from defer.parts import signature_of, write_parts
    from defer.precision import precisions_of, ranges_for

    if foreseen is not None:
        parts = foreseen.written(places.parts)
    else:
        on_progress("cutting the model", 0.0)
        cuts = tuple(stage.ops[1] for stage in plan.stages[:-1])
        precisions = precisions_of(cluster, (stage.device for stage in plan.stages))
        ranges = ranges_for(precisions, order.model, chain(), places.parts, order.calibration)
        parts = write_parts(order.model, chain(), cuts, places.parts, precisions, ranges, plan.order)
    signature = (
        foreseen.signature if foreseen is not None and any(foreseen.signature) else signature_of(chain())
    )
    return deploy(
        pool,
        cluster,
        plan,
        parts,
        signature,
        places.dispatcher,
        epoch=epoch,
        name=order.name,
        on_step=lambda where, what, fraction: on_progress(f"{where}: {what}", fraction),
        patient=patient,
        noted=noted,
    )
