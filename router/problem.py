"""The planning problem: one model on one cluster, in seconds, bytes, joules and money."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from router.cluster import Cluster
from router.errors import InvalidProblem

OBJECTIVES = ("latency", "throughput", "cost", "energy", "weighted")


@dataclass(frozen=True, slots=True)
class CodecCost:
    """What one codec does to the tensors of each boundary.

    Attributes:
        name: as the agents know it.
        ratio: bytes before / bytes on the wire; one number, or one per boundary.
        encode: seconds per device and boundary. Empty: free everywhere. A device missing from a non-empty
            table cannot use the codec.
        decode: as `encode`.
        error: what it adds to the error budget; one number, or one per boundary.
    """

    name: str
    ratio: float | Sequence[float] = 1.0
    encode: Mapping[str, Sequence[float]] = field(default_factory=dict)
    decode: Mapping[str, Sequence[float]] = field(default_factory=dict)
    error: float | Sequence[float] = 0.0


RAW = CodecCost("raw")


@dataclass(frozen=True, slots=True)
class Buffers:
    """Copies of a stage's boundary tensors that it holds in memory.

    Attributes:
        receive: copies of the input that wait for the stage; not counted for the stage that starts at block
            0.
        send: copies of the output that wait to leave.
        input: copies of the input in work. output: copies of the output in work.
    """

    receive: int = 0
    send: int = 0
    input: int = 0
    output: int = 0


@dataclass(frozen=True, slots=True)
class Pins:
    """An operator's wishes.

    Attributes:
        blocks: block → the device that must run it.
        forbidden: pairs (block, device) that must not be.
        excluded: devices that must run nothing (they may still relay).
        banned: devices that must not be touched at all, not even to relay.
    """

    blocks: Mapping[int, str] = field(default_factory=dict)
    forbidden: Iterable[tuple[int, str]] = ()
    excluded: Iterable[str] = ()
    banned: Iterable[str] = ()


@dataclass(frozen=True, slots=True)
class Load:
    """What other work already does to the cluster.

    Attributes:
        device_wait: seconds a stage waits before it starts, per device.
        link_wait: seconds a transfer waits before a hop, per link.
        device_busy: part of a device that is taken, 0 ≤ part < 1. link_busy, medium_busy: the same.
    """

    device_wait: Mapping[str, float] = field(default_factory=dict)
    link_wait: Mapping[tuple[str, str], float] = field(default_factory=dict)
    device_busy: Mapping[str, float] = field(default_factory=dict)
    link_busy: Mapping[tuple[str, str], float] = field(default_factory=dict)
    medium_busy: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Objective:
    """What to minimise, and what must not be exceeded.

    Attributes:
        name: one of `OBJECTIVES`; `throughput` minimises the period, in seconds.
        weights: for `weighted`: factors of `latency`, `period`, `cost` and `energy` in the sum.
        max_latency, max_period: seconds. max_cost: money. max_energy: joules. max_error: the error budget.
    """

    name: str = "latency"
    weights: Mapping[str, float] = field(default_factory=dict)
    max_latency: float = math.inf
    max_period: float = math.inf
    max_cost: float = math.inf
    max_energy: float = math.inf
    max_error: float = math.inf

    def __post_init__(self) -> None:
        if self.name not in OBJECTIVES:
            raise InvalidProblem(f"unknown objective {self.name!r}", hint="one of " + ", ".join(OBJECTIVES))
        if (self.name == "weighted") != bool(self.weights):
            raise InvalidProblem("the objective 'weighted', and no other, needs weights")
        for key, value in self.weights.items():
            if key not in ("latency", "period", "cost", "energy") or not (
                math.isfinite(value) and value >= 0
            ):
                raise InvalidProblem(
                    f"weight {key!r}: {value!r} is not a non-negative weight of a known quantity"
                )


@dataclass(frozen=True, slots=True)
class Problem:
    """One model, one cluster, one request's way from source to sink.

    L is the number of blocks. Numbers are checked when the problem is compiled, once per solve.

    Attributes:
        cluster: devices and links.
        source: device that holds the inputs (boundary 0).
        sink: device that wants the outputs (boundary L).
        block_seconds: device → L seconds per block; `math.inf` = cannot run it; missing device = runs
            nothing.
        boundary_bytes: L + 1 sizes of what is alive between blocks; a tensor with several consumers counts
            once.
        block_memory: L sizes of what a block keeps loaded (weights); empty = nothing.
        block_activation: L peaks of what a block needs while it runs; a stage needs the largest of its
            blocks.
        stage_memory: bytes of the runtime per stage.
        buffers: copies of boundary tensors that a stage holds.
        stage_overhead: device → seconds per stage and request (dispatch, copies).
        codecs: what may be used on the wire, exactly these.
        max_stages: at most so many stages; None = any number.
        stages_per_device: at most so many stages on one device; None = any number (the layered graph as
            published).
        pins: operator's wishes.
        load: other work on the cluster.
    """

    cluster: Cluster
    source: str
    sink: str
    block_seconds: Mapping[str, Sequence[float]]
    boundary_bytes: Sequence[float]
    block_memory: Sequence[float] = ()
    block_activation: Sequence[float] = ()
    stage_memory: int = 0
    buffers: Buffers = Buffers()
    stage_overhead: Mapping[str, float] = field(default_factory=dict)
    codecs: Sequence[CodecCost] = (RAW,)
    max_stages: int | None = None
    stages_per_device: int | None = 1
    pins: Pins = field(default_factory=Pins)
    load: Load = field(default_factory=Load)

    @property
    def blocks(self) -> int:
        """Number of blocks, L."""
        return len(self.boundary_bytes) - 1
