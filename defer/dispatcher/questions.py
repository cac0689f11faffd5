"""What the dispatcher asks the process that plans for it (`planner`, `planner_process`), and what that answers.

Analysing a model, planning and cutting take seconds of pure computation, in which a thread of the dispatcher's own would
delay every request. Only what talks to agents is done there.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from defer.documents.blocks import BlocksDocument
from defer.documents.cluster import Cluster
from defer.documents.plan import Objective, Plan
from defer.documents.profile import CodecProfile, CostProfile
from defer.errors import DeferError, from_code
from defer.hops import Part, Signature
from node_agent.messages import FileRef

if TYPE_CHECKING:
    from defer.dispatcher.bringup import Order
    from defer.parts import WrittenPart

# ------------------------------------------------------------------------------------------------------- questions


class Topic(msgspec.Struct, frozen=True, kw_only=True):
    """The model that a question is about.

    Attributes:
        model: The ONNX file.
        shapes: Input shapes that bind free dimensions.
        blocks: Most blocks to plan with.
        calibration: Requests on which ranges and errors are measured; empty where none were given.
        parts: Directory for partitions.
    """

    model: str
    shapes: dict[str, tuple[int, ...]]
    blocks: int
    calibration: str
    parts: str

    @classmethod
    def of(cls, order: Order, parts: Path) -> Topic:
        """What an order is about."""
        return cls(
            model=str(order.model),
            shapes=dict(order.shapes),
            blocks=order.blocks,
            calibration=str(order.calibration) if order.calibration is not None else "",
            parts=str(parts),
        )


class Analyse(msgspec.Struct, frozen=True, tag=True):
    """What the model takes and gives; answered by `Analysed`."""

    topic: Topic


class Describe(msgspec.Struct, frozen=True, tag=True):
    """The blocks that planning works with, those of a profile if there is one; answered by `Described`."""

    topic: Topic
    profile: CostProfile | None = None


class Piece(msgspec.Struct, frozen=True, tag=True):
    """Cut the model for measuring, in each of these precisions; answered by `defer.profiling.Pieces` for each."""

    topic: Topic
    precisions: tuple[str, ...]
    profile: CostProfile | None = None


class MakePlan(msgspec.Struct, frozen=True, tag=True):
    """The best plan, under an error budget (as `str(Budget)`) and with replicas, if so; answered by a `Plan`."""

    topic: Topic
    cluster: Cluster
    profile: CostProfile
    objective: Objective
    budget: str = ""
    replicas: bool = False


class Cut(msgspec.Struct, frozen=True, tag=True):
    """Cut the model by one route of a plan; answered by `Foreseen`.

    Attributes:
        topic: The model.
        plan: The route.
        precisions: Of each stage's device.
    """

    topic: Topic
    plan: Plan
    precisions: tuple[str, ...]


class Foresee(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Plan for what is left without some devices, and cut the model; answered by `Foreseen` for each of `without`.

    Attributes:
        topic: The model.
        cluster: All devices.
        profile: Costs, if they were measured.
        objective: What is made least.
        without: Sets of devices that are lost; one plan is made for each.
        running: The plan that serves, where a new one is only wanted if it pays to change to it; None wants one anyway.
        rate: Requests per second that it would serve.
        horizon: Seconds for which it would.
        threshold: Least relative gain.
        staying: The plan that serves, where one that moves little of it is wanted if it is nearly as good as the best.
        replicas: Whether several devices may share a stage's requests in a plan that takes the place of `running`.
    """

    topic: Topic
    cluster: Cluster
    profile: CostProfile | None
    objective: Objective
    without: tuple[tuple[str, ...], ...]
    running: Plan | None = None
    rate: float = 1.0
    horizon: float = 600.0
    threshold: float = 0.05
    staying: Plan | None = None
    replicas: bool = False


class WhatIf(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The plan if the cluster were another one (`defer.live.what_if`); answered by a `Plan` for each change.

    Attributes:
        topic: The model.
        running: The plan that serves.
        cluster: As it is.
        profile: What was measured.
        objective: What is made least.
        changes: Devices that are left out, and links with what their bandwidth is multiplied by.
        lost: Devices that do not answer.
    """

    topic: Topic
    running: Plan
    cluster: Cluster
    profile: CostProfile | None
    objective: Objective
    changes: tuple[tuple[tuple[str, ...], tuple[tuple[str, str, float], ...]], ...]
    lost: tuple[str, ...]


Question = Analyse | Describe | Piece | MakePlan | Cut | Foresee | WhatIf

# --------------------------------------------------------------------------------------------------------- answers


class Analysed(msgspec.Struct, frozen=True):
    """A model's identity, its inputs, its outputs, and its inputs with every dimension bound."""

    digest: str
    signature: Signature


class Described(msgspec.Struct, frozen=True):
    """The blocks that planning works with, and what codecs cost clients."""

    chain: BlocksDocument
    client: dict[str, CodecProfile]


class Foreseen(msgspec.Struct, frozen=True):
    """A plan and its stages' partitions, in order, all on disk; or why there is none, as code and sentence.

    `reason` says, where it was weighed against a running plan, why that gives way or, without a plan, is kept.
    `signature` has the model's inputs, its outputs, and its inputs with every dimension bound.
    """

    plan: Plan | None = None
    parts: tuple[Part, ...] = ()
    code: str = ""
    problem: str = ""
    reason: str = ""
    signature: Signature = ((), (), ())

    @property
    def files(self) -> tuple[FileRef, ...]:
        """Every file of its partitions."""
        return tuple(ref for part in self.parts for ref in (part.graph, *part.weights))

    def written(self, directory: Path) -> tuple[WrittenPart, ...]:
        """The partitions, and where their files lie."""
        from defer.parts import written_in

        return written_in(directory, self.parts)


# ---------------------------------------------------------------------------------------------------------- frames


class Progress(msgspec.Struct, frozen=True, tag=True):
    """What the other process does, and how far that is, 0 to 1; any number of them go before an answer."""

    what: str
    fraction: float


class Answer(msgspec.Struct, frozen=True, tag=True):
    """The answer."""

    body: msgspec.Raw


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The question has no answer; the error with all that it would have said here, and where it was raised."""

    code: str
    message: str
    hint: str
    where: str
    trace: str

    def error(self) -> DeferError:
        """The same error here."""
        error = from_code(self.code, self.message, self.hint, self.where)
        error.hint = self.hint  # what came over the wire without one is given the usual one
        error.add_note(self.trace)
        return error


Reply = Progress | Answer | Failed
