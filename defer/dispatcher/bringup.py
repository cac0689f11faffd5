"""From a model's file to a plan and its partitions: measured on the agents from here, computed by another process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast, get_args

from defer.accuracy import Budget
from defer.agents import AgentPool
from defer.batching import with_batching
from defer.blocks import PLANNING_BLOCKS
from defer.dispatcher import questions as q
from defer.dispatcher.questions import Foreseen
from defer.dispatcher.standing import Mode
from defer.dispatcher.withdrawal import Withdrawal
from defer.documents.cluster import Cluster
from defer.documents.plan import Objective, Plan, PlanBatching
from defer.documents.profile import CostProfile
from defer.errors import InvalidDocument, UsageError
from defer.hops import Place
from defer.pieces import Pieces

if TYPE_CHECKING:
    from defer.dispatcher.planner import Conversation

MOST_CUTS: Final = 16
"""Routes whose partitions are remembered for one model; the oldest go first."""

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
        replicas: Whether several devices may share a stage's requests in it.
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
        asked: Digest of what the command line last asked for under this name; empty where it never did.
        at: When it was ordered, in seconds since 1970; 0 where that is not known.
        withdrawal: Says whether it is still wanted.
    """

    name: str
    model: Path
    plan: Plan | None = None
    profile: CostProfile | None = None
    objective: Objective = "latency"
    replicas: bool = False
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
    asked: str = ""
    at: float = 0.0
    withdrawal: Withdrawal = field(default_factory=Withdrawal, compare=False, repr=False)

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
    pool: AgentPool,
    cluster: Cluster,
    order: Order,
    places: Places,
    planning: Conversation,
    on_progress: OnProgress,
) -> tuple[Plan, CostProfile | None]:
    """Have the model analysed and, where the order brings no plan, measure it and have it planned.

    Args:
        pool: Connections to the agents.
        cluster: The devices.
        order: What is to be served.
        places: Where measurements lie, and where agents reach the dispatcher.
        planning: Asked what computes for long.
        on_progress: Told what is being done.

    Raises:
        InvalidModel, InvalidDocument, NoRoute: What the order asks for cannot be.
        AgentFault, AgentUnreachable: A device did not let itself be measured.
    """
    brought = order.profile
    if brought is not None:
        from defer.profiling import as_offered

        brought = as_offered(brought, pool)
    topic = q.Topic.of(order, places.parts)
    on_progress("analysing the model", 0.0)
    analysed = planning.ask(q.Analyse(topic), q.Analysed, on_progress)
    inputs, _, _ = analysed.signature
    if order.plan is not None:
        if order.plan.digest != analysed.digest:
            raise InvalidDocument(
                f"the plan is for another model ({order.plan.model!r}, digest {order.plan.digest[:12]}), "
                f"not for {order.model.name} with digest {analysed.digest[:12]}",
                hint="make a plan for this model with `defer plan`",
            )
        return with_batching(order.plan, inputs, order.batching), brought
    measured = brought or measure_all(pool, cluster, topic, places, planning, on_progress)
    on_progress("planning", 0.0)
    budget = str(order.budget) if order.budget is not None else ""
    wanted = q.MakePlan(topic, cluster, measured, order.objective, budget, order.replicas)
    plan = planning.ask(wanted, Plan, on_progress)
    return with_batching(plan, inputs, order.batching), measured


def measure_all(
    pool: AgentPool,
    cluster: Cluster,
    topic: q.Topic,
    places: Places,
    planning: Conversation,
    on_progress: OnProgress = lambda _what, _fraction: None,
    known: CostProfile | None = None,
) -> CostProfile:
    """Measure a model on a cluster's devices: its planning blocks, or those of a profile that is known.

    Arguments as in `make_ready`.

    Raises:
        AgentFault, AgentUnreachable: A device did not let itself be measured.
        UnsupportedPrecision: The model cannot be written in a device's precision.
    """
    from defer.profiling import measure

    described = planning.ask(q.Describe(topic, known), q.Described, on_progress)

    def write(precisions: Sequence[str]) -> dict[str, Pieces]:
        on_progress("cutting the model to measure it", 0.0)
        return planning.ask(q.Piece(topic, tuple(precisions), known), dict[str, Pieces], on_progress)

    return measure(
        pool,
        cluster,
        described.chain,
        write,
        described.client,
        dispatcher=places.dispatcher,
        work=places.parts,
        cache=places.profiles,
        on_step=lambda where, what, fraction: on_progress(f"{where}: {what}", fraction),
    )


class Cuts:
    """Partitions of plans' routes: cut once, and had again for as long as their files lie where they were written.

    Args:
        parts: The directory.
    """

    def __init__(self, parts: Path) -> None:
        self._parts = parts
        self._known: dict[str, dict[object, Foreseen]] = {}

    def of(
        self,
        order: Order,
        leg: Plan,
        precisions: tuple[str, ...],
        planning: Conversation,
        on_progress: OnProgress,
    ) -> Foreseen:
        """The partitions of one route, in the precisions of its stages.

        Raises:
            DeferError: The model cannot be cut that way.
        """
        of_order = str(order.model), tuple(sorted(order.shapes.items())), _content_of(order.calibration)
        key = of_order, leg.digest, leg.cuts, leg.order, precisions
        known = self._known.setdefault(order.name, {})
        found = known.get(key)
        if found is not None and all(path.is_file() for path in self._paths(found)):
            return found
        on_progress("cutting the model", 0.0)
        wanted = q.Cut(q.Topic.of(order, self._parts), leg, precisions)
        found = planning.ask(wanted, Foreseen, on_progress)
        known[key] = found
        while len(known) > MOST_CUTS:
            del known[next(iter(known))]
        return found

    def forget(self, name: str) -> None:
        """A model is not served any more."""
        self._known.pop(name, None)

    def _paths(self, found: Foreseen) -> Iterator[Path]:
        return (path for part in found.written(self._parts) for path in part.files.values())


def _content_of(calibration: Path | None) -> object:
    """What tells one calibration from another, which may have its name: a device that quantises has ranges of it."""
    if calibration is None:
        return None
    try:
        found = calibration.stat()
    except OSError:
        return str(calibration)
    return str(calibration), found.st_size, found.st_mtime_ns
