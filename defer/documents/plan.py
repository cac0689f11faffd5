"""`plan.json`: which device runs which blocks, over which links and codecs, and what that should cost."""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from defer.documents.base import Document
from defer.documents.plan_checks import check_plan

Objective = Literal["latency", "throughput", "cost", "energy", "weighted"]
"""What a plan makes least: seconds of one request, seconds between two results, money or joules per request, or a
weighted sum of these."""


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
        encode_s: Of the seconds, those of the device that sends them.
        decode_s: Of the seconds, those of the device that takes them in.
        encrypt_s: Of the seconds, those of encrypting and decrypting, by device.
    """

    boundary: int
    path: tuple[str, ...]
    codec: str
    nbytes: int
    seconds: float
    tensors: tuple[str, ...]
    wire_bytes: int = 0
    encode_s: float = 0.0
    decode_s: float = 0.0
    encrypt_s: dict[str, float] = msgspec.field(default_factory=dict)


class PlanTerm(msgspec.Struct, frozen=True, kw_only=True):
    """One summand of the latency; see `router.explain`."""

    kind: str
    where: str
    seconds: float
    bytes: int = 0


class PlanAlternative(msgspec.Struct, frozen=True, kw_only=True):
    """What the whole model on one device would take: seconds, money and joules."""

    latency_s: float
    period_s: float
    cost: float = 0.0
    energy_j: float = 0.0


class PlanDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A device of the cluster and what the plan asks of it.

    Attributes:
        name: Which.
        computes: Whether it may run stages.
        memory_bytes: What partitions may take there; None where nothing limits it.
        used_bytes: What planning reserved.
        busy_s: Seconds of work per request.
    """

    name: str
    computes: bool = True
    memory_bytes: int | None = None
    used_bytes: int = 0
    busy_s: float = 0.0


class PlanLink(msgspec.Struct, frozen=True, kw_only=True):
    """A link that the plan uses or the cluster file names, and what crosses it.

    Attributes:
        source: From here.
        target: To here.
        bytes_per_s: Bandwidth.
        delay_s: Propagation delay.
        medium: Capacity that it shares, if any.
        wire_bytes: Bytes per request.
        busy_s: Seconds that they take per request.
    """

    source: str
    target: str
    bytes_per_s: float
    delay_s: float = 0.0
    medium: str | None = None
    wire_bytes: int = 0
    busy_s: float = 0.0


class PlanShare(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the requests and the route that they take, where stages have replicas."""

    fraction: float
    stages: tuple[PlanStage, ...]
    transfers: tuple[PlanTransfer, ...]


class PlanWhatIf(msgspec.Struct, frozen=True, kw_only=True):
    """One change of the cluster, the objective's value under the best plan then, and the relative gain."""

    change: str
    value: float
    gain: float


class PlanAdvice(msgspec.Struct, frozen=True, kw_only=True):
    """What limits the plan.

    Attributes:
        binding: Limits without which a better plan would exist.
        what_ifs: Changes that were tried, the most useful first.
    """

    binding: tuple[str, ...] = ()
    what_ifs: tuple[PlanWhatIf, ...] = ()


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


class PlanBatching(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Requests that stages may run together.

    Attributes:
        sizes: Numbers of requests that run as one, increasing; each stage uses those that are cheaper there.
        delay_s: How long the first request of a batch waits for others, at the first stage.
    """

    sizes: tuple[int, ...]
    delay_s: float = 0.0

    def problem(self) -> str:
        """What is wrong with it; empty where nothing is."""
        if not self.sizes or list(self.sizes) != sorted({*self.sizes}):
            return f"sizes must increase, not be {list(self.sizes)}"
        if self.sizes[0] < 2 or self.sizes[-1] > 256:
            return f"sizes are from 2 to 256, not {self.sizes[0]} to {self.sizes[-1]}"
        return "" if 0 <= self.delay_s <= 10 else f"a delay is from 0 to 10 s, not {self.delay_s:g} s"


class Plan(Document, frozen=True, kw_only=True):
    """A route of one model through the cluster; `transfers[i]` leads into `stages[i]`, the last to the sink.

    Attributes:
        model: Name of the model.
        digest: Its block chain's digest.
        positions: Op positions of the chain's L + 1 boundaries.
        order: The order of the ops in which positions count, as positions of the model's own order; empty where it is
            that one. `optimal` and `bound` hold for this order.
        bindings: Value used for each free dimension when costing.
        objective: What was made least.
        method: `measured` where every device's seconds were measured, else `static`.
        latency_s: Expected seconds of one request through an idle pipeline.
        period_s: Expected seconds between two results of a full pipeline.
        cost: Expected money per request.
        energy_j: Expected joules per request.
        error: What the codecs should add to the error, as planned; `accuracy` is what was measured.
        weights: Factor of each quantity in a weighted objective.
        limits: Bounds that were asked for: `latency` and `period` in seconds, `cost`, `energy` in joules.
        value: What the objective made least; always that of the predictions above.
        bound: No plan has a smaller value of the objective.
        optimal: Whether this one is proven to be the best.
        bottleneck: Device or link that sets the period.
        stages: In order of the blocks.
        transfers: One more than stages.
        terms: Where the latency comes from.
        alternatives: The whole model on each single device that can hold it.
        by_hand: Whether an operator placed the blocks; `optimal` and `bound` then hold for that placement.
        notes: What planning assumed or left out, one sentence each.
        accuracy: Where an error budget was given, what its check found; without one no codec changes a value.
        shares: Where stages have replicas, every route and its part of the requests; `stages` and `transfers` are
            those of the largest.
        device_loads: Every device of the cluster.
        link_loads: The links on the way, and those that the cluster file names.
        advice: What limits the plan, where it was asked for.
        batching: How stages put requests together; None where each runs alone.
    """

    KIND: ClassVar[str] = "plan"
    MADE_BY: ClassVar[str] = "defer plan MODEL --cluster cluster.toml -o plan.json"

    model: str
    digest: str
    positions: tuple[int, ...]
    order: tuple[int, ...] = ()
    bindings: dict[str, int] = msgspec.field(default_factory=dict)
    objective: Objective
    method: Literal["measured", "static", "mixed"] = "static"
    latency_s: float
    period_s: float
    cost: float = 0.0
    energy_j: float = 0.0
    error: float = 0.0
    weights: dict[str, float] = msgspec.field(default_factory=dict)
    limits: dict[str, float] = msgspec.field(default_factory=dict)
    value: float = 0.0
    bound: float
    optimal: bool
    bottleneck: str = ""
    stages: tuple[PlanStage, ...]
    transfers: tuple[PlanTransfer, ...]
    terms: tuple[PlanTerm, ...] = ()
    alternatives: dict[str, PlanAlternative] = msgspec.field(default_factory=dict)
    by_hand: bool = False
    notes: tuple[str, ...] = ()
    accuracy: PlanAccuracy | None = None
    shares: tuple[PlanShare, ...] = ()
    device_loads: tuple[PlanDevice, ...] = ()
    link_loads: tuple[PlanLink, ...] = ()
    advice: PlanAdvice | None = None
    batching: PlanBatching | None = None

    def __post_init__(self) -> None:
        # In the file for its readers; here it follows from the predictions, so that it cannot contradict them.
        value = self.valued(self.latency_s, self.period_s, self.cost, self.energy_j)
        msgspec.structs.force_setattr(self, "value", value)

    def valued(self, latency: float, period: float, cost: float, energy: float) -> float:
        """What the plan's objective makes of four predictions, in seconds, money and joules."""
        found = {"latency": latency, "period": period, "cost": cost, "energy": energy}
        if self.objective == "weighted":
            return sum(weight * found[name] for name, weight in self.weights.items())
        return found["period" if self.objective == "throughput" else self.objective]

    @property
    def legs(self) -> tuple[tuple[float, Plan], ...]:
        """Each route as a plan of its own, with its part of the requests; the plan itself where there is one."""
        if not self.shares:
            return ((1.0, self),)
        return tuple(
            (
                share.fraction,
                msgspec.structs.replace(self, stages=share.stages, transfers=share.transfers, shares=()),
            )
            for share in self.shares
        )

    @property
    def cuts(self) -> tuple[int, ...]:
        """Op positions to split the model at."""
        return tuple(stage.ops[0] for stage in self.stages[1:])

    @property
    def longest_s(self) -> float:
        """Seconds of the longest stage or transfer: the scale of a drawing."""
        return max(max(stage.seconds for stage in self.stages), max(each.seconds for each in self.transfers))

    @property
    def best_alternative(self) -> tuple[str, float] | None:
        """The best single device and its value of the objective; None where no device can hold the model."""
        values = {
            name: self.valued(each.latency_s, each.period_s, each.cost, each.energy_j)
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
        """Checks what types cannot say; see `Document.problems`."""
        check_plan(self)
