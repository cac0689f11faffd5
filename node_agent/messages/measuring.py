"""Control messages by which planning learns what a block costs on a device, and what a link carries."""

from __future__ import annotations

import msgspec

from node_agent.messages.values import AUTO_ENGINE, FileRef, PeerRef, TensorSpec


class Measure(msgspec.Struct, frozen=True, tag="measure", tag_field="t"):
    """Time one block on this device, on real activations.

    The blocks of a model are measured in order under one `session`: the outputs of each are kept and are the
    inputs of the next, so that times and codec ratios are taken on what the model really produces. Inputs
    that the session does not hold are generated from a seed. A new session name, or `Done` with it, drops
    what is held.

    Attributes:
        graph: The block as a partition.
        inputs: Its inputs, every dimension bound.
        keep: Names to keep for later blocks; everything else is dropped after the run.
        repeats: Runs to time after one warm-up.
        budget_s: Stop repeating after this many seconds.
        codecs: Whether to try every codec on what the block makes.
    """

    id: int
    session: str
    graph: FileRef
    weights: tuple[FileRef, ...]
    inputs: tuple[TensorSpec, ...]
    keep: tuple[str, ...]
    repeats: int = 10
    budget_s: float = 1.0
    engine: str = AUTO_ENGINE
    options: dict[str, str] = {}
    """Options of the engine."""
    codecs: bool = True


class TensorStats(msgspec.Struct, frozen=True):
    """A tensor that a measured block produced, and what each codec makes of it on this device."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    codecs: dict[str, tuple[int, float, float]] = {}
    """Per codec: encoded bytes, encode seconds, decode seconds."""


class Measured(msgspec.Struct, frozen=True, tag="measured", tag_field="t"):
    """Answers `Measure`.

    Attributes:
        seconds: Of each timed run, as if it went on and on: under a quota, processor time over the share.
        load_seconds: Wall seconds of loading the block.
        resident_bytes: Memory that the session took.
        outputs: What the block produced, and inputs that the session did not hold.
        item_s: What receiving and sending one item costs this device beside its run; 0 where not measured.
        byte_s: The same per byte of the item.
        engine: What ran the block, where that is another engine than the one that was asked for.
        unsupported: Why an engine that compiles (TensorRT) cannot run the block; empty where it can.
        apart: Whether a stage that holds such a block runs the rest of it on that engine all the same.
    """

    id: int
    seconds: tuple[float, ...]
    load_seconds: float
    resident_bytes: int
    outputs: tuple[TensorStats, ...] = ()
    item_s: float = 0.0
    byte_s: float = 0.0
    engine: str = ""
    unsupported: str = ""
    apart: bool = False


class MeasureLink(msgspec.Struct, frozen=True, tag="measure_link", tag_field="t"):
    """Time the link from this device to `peer` with `Probe` messages on its data socket."""

    id: int
    peer: PeerRef
    nbytes: int = 4 * 1024 * 1024
    budget_s: float = 1.0
    patience_s: float = 0.0
    """How long the peer may take to accept the connection, and for each answer; 0 for what suits a measurement."""


class LinkMeasured(msgspec.Struct, frozen=True, tag="link_measured", tag_field="t"):
    """Answers `MeasureLink`.

    Attributes:
        bandwidth: Bytes per second one way.
        delay: Seconds one way, half the least round trip.
        send_byte_s: Processor seconds per byte that sending took this process; 0 where it is not known.
        receive_byte_s: The same of the peer that received.
    """

    id: int
    bandwidth: float
    delay: float
    send_byte_s: float = 0.0
    receive_byte_s: float = 0.0
