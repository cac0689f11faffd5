"""What several control messages say in the same words: files, tensors, devices, engines, and what a hop does."""

from __future__ import annotations

import msgspec

AUTO_ENGINE = "auto"
"""Engine of a `Load` that takes the first one that the device has."""


class FileRef(msgspec.Struct, frozen=True):
    """A file by content: partition graphs and weights are never known by any other name."""

    sha256: str
    nbytes: int
    suffix: str = ".bin"
    """`.onnx` for a graph, `.bin` for weights; the agent stores it as `<sha256><suffix>`."""


class TensorSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tensor before it exists: a dimension that is free until run time is a string.

    Attributes:
        name: As in the model.
        dtype: Its type on the wire.
        shape: Its dimensions.
        channel_block: Channels per block where it is handed over in blocks, see `node_agent.layouts`; 0: plain.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    channel_block: int = 0


class EngineInfo(msgspec.Struct, frozen=True):
    """An engine that an agent can run, or (with `missing` set) cannot and why."""

    name: str
    version: str = ""
    provider: str = ""
    missing: str = ""


class Offer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a device brings.

    Attributes:
        engines: What can run here, the default first.
        memory_bytes: Memory that partitions may take in all: the operator's limit, or the cgroup's or the
            machine's less what the agent takes itself; 0 where none is known.
        cores: CPU cores that this agent may use, a fraction under a cgroup quota.
        threads: Threads that its engine will use.
        fingerprint: Equal for two agents whose block times may be taken as the same (one machine, one engine,
            the same threads and quota); the cache key of a profile.
        data_port: Port of the data endpoint on the host that the control endpoint was reached at.
        fetch_port: Port where peers that must dial (NAT) fetch this agent's output; see docs/wire.md.
        software: Versions by distribution name.
        encryption_byte_s: Seconds to encrypt or decrypt a byte, where this agent's connections have keys.
        address: `host:port` where an agent that registers by itself can be dialled all the same; empty where nobody can.
        channel_block: Channels per block in which its engine computes convolutions and may be handed their tensors, see
            `TensorSpec.channel_block`; 0 where it takes them plain.
    """

    engines: tuple[EngineInfo, ...]
    memory_bytes: int
    cores: float
    threads: int
    fingerprint: str
    data_port: int
    fetch_port: int
    software: dict[str, str] = {}
    encryption_byte_s: float = 0.0
    address: str = ""
    channel_block: int = 0


class PeerRef(msgspec.Struct, frozen=True):
    """The other end of a data connection.

    Attributes:
        name: Device name of the peer; the dispatcher's is its own.
        endpoint: `tcp://host:port` of the peer; empty where the peer dials us.
    """

    name: str
    endpoint: str = ""


class HopSpec(msgspec.Struct, frozen=True):
    """What an agent does with items of one hop of one epoch.

    Attributes:
        hop: Index of the hop in the plan.
        previous: Who hands the items over.
        next: Who gets the result, as hop + 1.
        graph: The partition to run; None for a relay, which forwards frames undecoded.
        weights: Files that the graph's external data names.
        inputs: The partition's inputs.
        outputs: The partition's outputs.
        send: Names of the tensors to hand on: outputs of this partition, or tensors that came with the item
            and are needed further down (those go on undecoded when their codec is the same).
        codec: Encoding of what this hop hands on.
        warm_up: Shapes for the warm-up run, inputs' free dimensions bound.
        credit: Items that the hop before may have under way to this one; 0 for the agent's default. Few keep memory
            small and caches warm, too few let the stage wait for the link.
        batch: Numbers of requests that may run as one, increasing; empty to run each alone. The agent uses those that
            turn out cheaper.
        batch_delay_s: How long the first request of a batch waits for others, s.
    """

    hop: int
    previous: PeerRef
    next: PeerRef
    graph: FileRef | None = None
    weights: tuple[FileRef, ...] = ()
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    send: tuple[str, ...] = ()
    codec: str = "raw"
    warm_up: tuple[TensorSpec, ...] = ()
    credit: int = 0
    batch: tuple[int, ...] = ()
    batch_delay_s: float = 0.0
