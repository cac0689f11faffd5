"""`plan.json`: which device runs which blocks, over which links and codecs, and what that should cost."""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from defer.documents.base import Document
from defer.errors import InvalidDocument

Objective = Literal["latency", "throughput"]
"""What a plan makes least: seconds of one request, or seconds between two results."""


class PlanStage(msgspec.Struct, frozen=True, kw_only=True):
    """Blocks [start, stop) on one device.

    Attributes:
        device: Where.
        start: First block.
        stop: After the last block.
        ops: Op positions [first, after the last), as `partitioner.split` takes them.
        weight_bytes: Weights of these blocks, shared ones once.
        flops: Floating-point operations of one run.
        seconds: Expected seconds of one run, overhead included.
        memory_bytes: Memory that planning reserved for it.
    """

    device: str
    start: int
    stop: int
    ops: tuple[int, int]
    weight_bytes: int
    flops: int
    seconds: float
    memory_bytes: int = 0


class PlanTransfer(msgspec.Struct, frozen=True, kw_only=True):
    """The tensors of one boundary on their way from one holder to the next.

    Attributes:
        boundary: Which boundary, 0 to L.
        path: Devices from the one that holds them to the one that needs them; a single one where they stay.
        codec: How they travel.
        nbytes: Bytes before encoding.
        seconds: Expected seconds, encoding and decoding included.
        tensors: Their names.
        wire_bytes: Expected bytes on each hop.
    """

    boundary: int
    path: tuple[str, ...]
    codec: str
    nbytes: int
    seconds: float
    tensors: tuple[str, ...]
    wire_bytes: int = 0


class PlanTerm(msgspec.Struct, frozen=True, kw_only=True):
    """One summand of the latency; see `router.explain`."""

    kind: str
    where: str
    seconds: float
    bytes: int = 0


class PlanAlternative(msgspec.Struct, frozen=True, kw_only=True):
    """What the whole model on one device would take."""

    latency_s: float
    period_s: float


class PlanAccuracy(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan's codecs, all together, were measured to do to the output.

    Attributes:
        metric: `relative`: ‖Δoutput‖₂ / ‖output‖₂ of the worst calibration input; `top1`: share of changed classes.
        budget: The most that was allowed.
        error: What was measured.
        requests: Calibration inputs.
        calibration: Where they come from: a file's name, or `generated`.
    """

    metric: Literal["relative", "top1"]
    budget: float
    error: float
    requests: int
    calibration: str


class Plan(Document, frozen=True, kw_only=True):
    """A route of one model through the cluster; `transfers[i]` leads into `stages[i]`, the last to the sink.

    Attributes:
        model: Name of the model.
        digest: Its block chain's digest.
        positions: Op positions of the chain's L + 1 boundaries.
        bindings: Value used for each free dimension when costing.
        objective: What was made least.
        method: `measured` where every device's seconds were measured, else `static`.
        latency_s: Expected seconds of one request through an idle pipeline.
        period_s: Expected seconds between two results of a full pipeline.
        bound_s: No plan has a smaller value of the objective.
        optimal: Whether this one is proven to be the best.
        bottleneck: Device or link that sets the period.
        stages: In order of the blocks.
        transfers: One more than stages.
        terms: Where the latency comes from.
        alternatives: The whole model on each single device that can hold it.
        by_hand: Whether an operator placed the blocks; `optimal` and `bound_s` then hold for that placement.
        notes: What planning assumed or left out, one sentence each.
        accuracy: Where an error budget was given, what its check found; without one no codec changes a value.
    """

    KIND: ClassVar[str] = "plan"
    MADE_BY: ClassVar[str] = "defer plan MODEL --cluster cluster.toml -o plan.json"

    model: str
    digest: str
    positions: tuple[int, ...]
    bindings: dict[str, int] = msgspec.field(default_factory=dict)
    objective: Objective
    method: Literal["measured", "static", "mixed"] = "static"
    latency_s: float
    period_s: float
    bound_s: float
    optimal: bool
    bottleneck: str = ""
    stages: tuple[PlanStage, ...]
    transfers: tuple[PlanTransfer, ...]
    terms: tuple[PlanTerm, ...] = ()
    alternatives: dict[str, PlanAlternative] = msgspec.field(default_factory=dict)
    by_hand: bool = False
    notes: tuple[str, ...] = ()
    accuracy: PlanAccuracy | None = None

    @property
    def cuts(self) -> tuple[int, ...]:
        """Op positions to split the model at."""
        return tuple(stage.ops[0] for stage in self.stages[1:])

    @property
    def longest_s(self) -> float:
        """Seconds of the longest stage or transfer: the scale of a drawing."""
        return max(max(stage.seconds for stage in self.stages), max(each.seconds for each in self.transfers))

    @property
    def value_s(self) -> float:
        """What the objective made least: the latency or the period."""
        return self.latency_s if self.objective == "latency" else self.period_s

    @property
    def best_alternative(self) -> tuple[str, float] | None:
        """The best single device and its value of the objective; None where no device can hold the model."""
        values = {
            name: each.latency_s if self.objective == "latency" else each.period_s
            for name, each in self.alternatives.items()
        }
        return min(values.items(), key=lambda item: item[1]) if values else None

    @property
    def source(self) -> str:
        """Device that requests come from."""
        return self.transfers[0].path[0]

    @property
    def sink(self) -> str:
        """Device that results go to."""
        return self.transfers[-1].path[-1]

    @property
    def devices(self) -> tuple[str, ...]:
        """Every device on the way, computing or relaying, in order of first visit."""
        return tuple(dict.fromkeys(name for transfer in self.transfers for name in transfer.path))

    def problems(self) -> None:
        """Checks that stages cover the chain without a gap and that transfers join them."""
        blocks = len(self.positions) - 1
        if not self.stages:
            raise InvalidDocument("a plan needs at least one stage", where="stages", hint=f"`{self.MADE_BY}`")
        if len(self.transfers) != len(self.stages) + 1:
            raise InvalidDocument(
                f"{len(self.stages)} stages need {len(self.stages) + 1} transfers, not {len(self.transfers)}",
                where="transfers",
                hint=f"`{self.MADE_BY}`",
            )
        at = 0
        for number, stage in enumerate(self.stages):
            if stage.start != at or not stage.start < stage.stop <= blocks:
                raise InvalidDocument(
                    f"blocks {stage.start} to {stage.stop} do not follow on block {at} of {blocks}",
                    where=f"stages[{number}]",
                    hint=f"`{self.MADE_BY}`",
                )
            if stage.ops != (self.positions[stage.start], self.positions[stage.stop]):
                raise InvalidDocument(
                    f"ops {list(stage.ops)} are not those of blocks {stage.start} to {stage.stop}",
                    where=f"stages[{number}].ops",
                    hint=f"`{self.MADE_BY}`",
                )
            at = stage.stop
        if at != blocks:
            raise InvalidDocument(
                f"blocks {at} to {blocks} are not placed", where="stages", hint=f"`{self.MADE_BY}`"
            )
        self._check_transfers()

    def _check_transfers(self) -> None:
        for number, transfer in enumerate(self.transfers):
            last = number == len(self.stages)
            expected = self.stages[-1].stop if last else self.stages[number].start
            start = self.stages[number - 1].device if number else None
            stop = None if last else self.stages[number].device
            path = transfer.path
            if not path or (start and path[0] != start) or (stop and path[-1] != stop):
                ends = f"from {start or 'the source'} to {stop or 'the sink'}"
                raise InvalidDocument(
                    f"the path {' → '.join(path) or '(empty)'} does not lead {ends}",
                    where=f"transfers[{number}].path",
                    hint=f"`{self.MADE_BY}`",
                )
            if transfer.boundary != expected:
                raise InvalidDocument(
                    f"boundary {transfer.boundary} is not where stage {number} begins, which is {expected}",
                    where=f"transfers[{number}].boundary",
                    hint=f"`{self.MADE_BY}`",
                )
