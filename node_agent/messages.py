"""Every message that defer's processes exchange, as typed values. One place; both ends import it.

Two families share one rule for growing: a new field goes last and has a default, so that a peer one protocol
version older reads what it knows and leaves the rest (msgspec skips unknown fields and fills missing ones).

* **Data headers** (`Item`, `Failure`, `Credit`, …) are the first frame of a message on a data socket; an
  `Item` is followed by one frame per tensor. They are encoded as msgpack arrays: small and fast.
* **Control messages** (`Hello`, `Load`, `Heartbeat`, …) travel on control sockets as msgpack maps. A request
  carries an `id`; its answer carries the same. `Chunk` alone is followed by one raw frame.

See docs/wire.md for the sockets and the order in which these are said. This module is longer than most
because a wire has one description.
"""

from __future__ import annotations

import msgspec

PROTOCOL_VERSION = 1
"""The newest protocol version that this build speaks."""

PROTOCOL_MINIMUM = 1
"""The oldest one that it still understands."""

AUTO_ENGINE = "auto"
"""Engine of a `Load` that takes the first one that the device has."""

NO_DEADLINE = -1
"""`remaining_ns` of a request that may take for ever."""

USUAL_PRIORITY = 10
"""Priority of a request that names none; 1 is the highest."""


# ------------------------------------------------------------------------------------------------ data socket


class TensorHeader(msgspec.Struct, frozen=True, array_like=True):
    """What one tensor frame holds.

    Attributes:
        name: The tensor's name in the model.
        dtype: NumPy's name of the element type; `bfloat16` and the `float8_*` types travel as their raw bits.
        shape: Its dimensions, all known.
        codec: How the frame is encoded; `raw` is the array's bytes in C order, little endian.
        nbytes: Length of the encoded frame in bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    codec: str
    nbytes: int


class Offered(msgspec.Struct, frozen=True, array_like=True):
    """A memory that a sender of items lends to a receiver on its own machine; see `node_agent.lending`.

    Attributes:
        pid: The sender's process.
        fd: Its descriptor of the memory.
        nbytes: Size of the memory.
        nonce: 16 random bytes with which the memory begins.
        network: The sender's network namespace.
    """

    pid: int
    fd: int
    nbytes: int
    nonce: bytes
    network: str


class Greeting(msgspec.Struct, frozen=True, array_like=True, tag="greet"):
    """First message on a data connection, from the side that dialled; the other side answers with its own.

    Attributes:
        minimum: Oldest protocol version that it understands.
        version: Newest one.
        name: Who it is.
        lends: What it offers to lend; in an answer, what of that has been opened.
    """

    minimum: int
    version: int
    name: str
    lends: Offered | None = None


class Item(msgspec.Struct, frozen=True, array_like=True, tag="item"):
    """One request's tensors on their way to hop `hop` of the plan with epoch `epoch`.

    Attributes:
        epoch: Deployment this request runs under; an agent that does not hold it drops the item.
        request: The dispatcher's number for the request, unique under its epoch.
        hop: Index into the plan's hops; the last hop + 1 is the dispatcher itself.
        remaining_ns: Time left until the deadline when this was sent; `NO_DEADLINE` for none. Each process
            subtracts its own monotonic time, because clocks on edge boxes are wrong.
        tensors: One header per tensor frame that follows, in order.
        trace: W3C trace context, empty when the request is not traced.
        priority: Of the items that wait in one place, those with the smallest go first: see `node_agent.line`. 0 stands
            for `USUAL_PRIORITY`.
    """

    epoch: int
    request: int
    hop: int
    remaining_ns: int
    tensors: tuple[TensorHeader, ...]
    trace: str = ""
    priority: int = 0


class Failure(msgspec.Struct, frozen=True, array_like=True, tag="fail"):
    """A request that ended without a result; travels on to the dispatcher in the item's place."""

    epoch: int
    request: int
    hop: int
    code: str
    message: str
    where: str


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag="cancel"):
    """Nobody waits for a request any more: follows its `Item` from hop to hop, takes no credit, is never answered.

    Where the item still is it ends as `Failure` before its next step; where it is not this is handed on to the next
    hop. One that comes too late, or never, costs work and nothing else.

    Attributes:
        epoch: As in the `Item`.
        request: As in the `Item`.
        hop: Index of the hop that it is said to.
    """

    epoch: int
    request: int
    hop: int


class Credit(msgspec.Struct, frozen=True, array_like=True, tag="credit"):
    """Permission to send `items` more items and `nbytes` more tensor bytes on this connection; both add up.

    An `Item` or `Failure` takes one item credit and as many byte credits as its tensor frames have bytes; it
    may be sent while both are above zero. See node_agent/flow.py.
    """

    items: int
    nbytes: int


class Probe(msgspec.Struct, frozen=True, array_like=True, tag="probe"):
    """A measurement of the link: followed by one frame of `nbytes`, answered by `ProbeEcho`, never queued.

    It takes no credit and needs no greeting; every data-in ROUTER answers it.
    """

    id: int
    nbytes: int


class ProbeEcho(msgspec.Struct, frozen=True, array_like=True, tag="echo"):
    """The answer to `Probe`, without its bytes."""

    id: int


class Refusal(msgspec.Struct, frozen=True, array_like=True, tag="refuse"):
    """Why this peer will not talk: another protocol version, a malformed message."""

    code: str
    message: str


class Infer(msgspec.Struct, frozen=True, array_like=True, tag="infer"):
    """A client's request to the dispatcher; tensor frames follow.

    Attributes:
        request: The client's own id, 16 bytes; a resend with the same id never runs twice.
        model: Name of the deployment; empty where there is only one.
        remaining_ns: Time left until the deadline, or `NO_DEADLINE`.
        tensors: One header per tensor frame that follows.
        outputs: Which outputs are wanted; empty for all.
        trace: W3C trace context.
        durable: Keep the request in the dispatcher's store until it is answered, and its answer for a while; answered
            by `Accepted` when it is there.
        priority: Of the requests that wait, those with the smallest go first, from 1 on; 0 stands for `USUAL_PRIORITY`.
    """

    request: bytes
    model: str
    remaining_ns: int
    tensors: tuple[TensorHeader, ...]
    outputs: tuple[str, ...] = ()
    trace: str = ""
    durable: bool = False
    priority: int = 0


class Recall(msgspec.Struct, frozen=True, array_like=True, tag="recall"):
    """A client asks for the answer to a request that it sent before, by the id alone; answered like `Infer`."""

    request: bytes


class GiveUp(msgspec.Struct, frozen=True, array_like=True, tag="give-up"):
    """A client does not want the answer to a request of its own any more; answered by `Rejection`, if by anything."""

    request: bytes


class Accepted(msgspec.Struct, frozen=True, array_like=True, tag="accept"):
    """A durable request is in the dispatcher's store: it will be answered, whether or not it is sent again."""

    request: bytes


class Result(msgspec.Struct, frozen=True, array_like=True, tag="result"):
    """The dispatcher's answer to `Infer`: tensor frames follow."""

    request: bytes
    tensors: tuple[TensorHeader, ...]
    seconds: float = 0.0


class Rejection(msgspec.Struct, frozen=True, array_like=True, tag="reject"):
    """The dispatcher's answer to an `Infer` without a result: one code from the error table, one sentence."""

    request: bytes
    code: str
    message: str


DataHeader = (
    Greeting
    | Item
    | Failure
    | Credit
    | Probe
    | ProbeEcho
    | Refusal
    | Infer
    | Result
    | Rejection
    | Recall
    | Accepted
    | Cancel
    | GiveUp
)


# --------------------------------------------------------------------------------------------- control socket


class FileRef(msgspec.Struct, frozen=True):
    """A file by content: partition graphs and weights are never known by any other name."""

    sha256: str
    nbytes: int
    suffix: str = ".bin"
    """`.onnx` for a graph, `.bin` for weights; the agent stores it as `<sha256><suffix>`."""


class TensorSpec(msgspec.Struct, frozen=True):
    """A tensor before it exists: a dimension that is free until run time is a string."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


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
        memory_bytes: Memory that partitions may take in all: the operator's limit, the cgroup's, or the
            machine's; 0 where none is known.
        cores: CPU cores that this agent may use, a fraction under a cgroup quota.
        threads: Threads that its engine will use.
        fingerprint: Equal for two agents whose block times may be taken as the same (one machine, one engine,
            the same threads and quota); the cache key of a profile.
        data_port: Port of the data endpoint on the host that the control endpoint was reached at.
        fetch_port: Port where peers that must dial (NAT) fetch this agent's output; see docs/wire.md.
        software: Versions by distribution name.
        encryption_byte_s: Seconds to encrypt or decrypt a byte, where this agent's connections have keys.
        address: `host:port` where an agent that registers by itself can be dialled all the same; empty where nobody can.
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


class Hello(msgspec.Struct, frozen=True, tag="hello", tag_field="t"):
    """Opens a control connection; from the dispatcher, or from an agent that dials out.

    Attributes:
        minimum: Oldest protocol version that the sender understands.
        version: Newest one.
        name: Who it is: a device's name, or the dispatcher's.
        role: `dispatcher` or `agent`.
        register: The offer of an agent that dials out.
        boot: Changes with each start of the sender's process.
        realm: Name of the state that several dispatchers share; empty for a dispatcher that shares none.
        term: Number of the leadership under which the dispatcher leads its realm: each leader has a higher one.
    """

    id: int
    minimum: int
    version: int
    name: str
    role: str
    register: Offer | None = None
    boot: str = ""
    realm: str = ""
    term: int = 0


class Welcome(msgspec.Struct, frozen=True, tag="welcome", tag_field="t"):
    """Answers `Hello`: the version both will speak, who answers, which start of its process, its offer."""

    id: int
    version: int
    name: str
    boot: str
    offer: Offer | None = None


class Fault(msgspec.Struct, frozen=True, tag="fault", tag_field="t"):
    """Answers any request that failed: a code from the error table, what was wrong, and what to do."""

    id: int
    code: str
    message: str
    hint: str = ""


class Want(msgspec.Struct, frozen=True, tag="want", tag_field="t"):
    """Asks which bytes of these files the agent lacks."""

    id: int
    files: tuple[FileRef, ...]


class Have(msgspec.Struct, frozen=True, tag="have", tag_field="t"):
    """Answers `Want`: per file the offset to send from; its size when the file is complete and verified."""

    id: int
    offsets: tuple[int, ...]


class Chunk(msgspec.Struct, frozen=True, tag="chunk", tag_field="t"):
    """A piece of a file, in the frame that follows; the last one is checked against the sha256.

    At most `CHUNK_BYTES` each, and at most `CHUNK_WINDOW` unanswered on a connection.
    """

    id: int
    file: FileRef
    offset: int


class Taken(msgspec.Struct, frozen=True, tag="taken", tag_field="t"):
    """Answers `Chunk`: the file is now held up to `offset`."""

    id: int
    offset: int


class Load(msgspec.Struct, frozen=True, tag="load", tag_field="t"):
    """Load partitions and take part in a plan. Answered by `Loaded` once every partition is warm."""

    id: int
    epoch: int
    model: str
    hops: tuple[HopSpec, ...]
    engine: str = "auto"
    options: dict[str, str] = {}


class Progress(msgspec.Struct, frozen=True, tag="progress", tag_field="t"):
    """Before the answer to a long request: what is being done and how far it is, 0 to 1."""

    id: int
    what: str
    fraction: float


class Loaded(msgspec.Struct, frozen=True, tag="loaded", tag_field="t"):
    """Answers `Load`."""

    id: int
    epoch: int
    seconds: float
    resident_bytes: int
    engine: str = ""
    notes: tuple[str, ...] = ()
    """Why other engines were not taken, one sentence each."""


class Unload(msgspec.Struct, frozen=True, tag="unload", tag_field="t"):
    """Forget an epoch: finish the item in work, drop the rest, free the memory. Answered by `Done`."""

    id: int
    epoch: int


class Done(msgspec.Struct, frozen=True, tag="done", tag_field="t"):
    """Answers a request that has nothing else to say."""

    id: int


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
    engine: str = "auto"
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
    """Answers `MeasureLink`: bytes per second one way, and one-way delay (s), half the least round trip."""

    id: int
    bandwidth: float
    delay: float


class StatusRequest(msgspec.Struct, frozen=True, tag="status", tag_field="t"):
    """Asks for `AgentStatus`."""

    id: int


class HopStatus(msgspec.Struct, frozen=True):
    """Counters of one hop since it was loaded. Times are sums in seconds; divide by `items`."""

    epoch: int
    hop: int
    model: str
    kind: str
    """`run` or `relay`."""
    items: int = 0
    failures: int = 0
    stale: int = 0
    queued: int = 0
    wait_s: float = 0.0
    decode_s: float = 0.0
    run_s: float = 0.0
    encode_s: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    engine: str = ""
    """What runs the partition; empty for a relay."""
    notes: tuple[str, ...] = ()
    """Why other engines were not taken and what batching gains, one sentence each."""
    runs: int = 0
    """Runs of the partition: fewer than items where requests ran as batches."""


class AgentStatus(msgspec.Struct, frozen=True, tag="agent_status", tag_field="t"):
    """Answers `StatusRequest`."""

    id: int
    name: str
    boot: str
    state: str
    """`serving`, `draining`."""
    uptime_s: float
    resident_bytes: int
    memory_bytes: int
    store_bytes: int
    hops: tuple[HopStatus, ...] = ()
    stale: int = 0
    """Items dropped since the start because their epoch or hop was not loaded."""
    sensors: dict[str, float] = {}
    """Readings by name, as `gpu0.power_w`; what the device has no sensor for is not in it."""
    wall_s: float = 0.0
    """The device's clock, seconds since 1970 in UTC; 0 from a build that does not tell."""
    loads: int = 0
    """Partitions loaded since the start; one that several epochs share counts once."""


class HopTrace(msgspec.Struct, frozen=True, array_like=True):
    """When one traced request was where in one agent; all times are ns on that agent's monotonic clock.

    A pair is (begun, ended), and (0, 0) for what did not happen there: a relay neither decodes nor runs, and raw tensors
    are decoded and encoded in no time.

    Attributes:
        trace: The request's trace context.
        epoch: Its deployment.
        request: The dispatcher's number for it.
        hop: Which hop this was.
        arrived_ns: Its last frame was read from the socket.
        sent_ns: Its successor was about to be handed to ZeroMQ; before that it may have waited for credit.
        decode: Making the partition's inputs.
        run: The partition's run, that of the whole batch where it ran in one.
        encode: Making the frames to send.
        bytes_in: Tensor bytes that came.
        bytes_out: Tensor bytes that went on.
        failed: Code of the error that ended it here; empty where it went on.
        batch: Requests in the run.
    """

    trace: str
    epoch: int
    request: int
    hop: int
    arrived_ns: int
    sent_ns: int
    decode: tuple[int, int] = (0, 0)
    run: tuple[int, int] = (0, 0)
    encode: tuple[int, int] = (0, 0)
    bytes_in: int = 0
    bytes_out: int = 0
    failed: str = ""
    batch: int = 1


class TraceRequest(msgspec.Struct, frozen=True, tag="trace", tag_field="t"):
    """Asks for what is known of these traces; without any it reads the clock. Answered at once by `TraceReport`."""

    id: int
    traces: tuple[str, ...] = ()


class TraceReport(msgspec.Struct, frozen=True, tag="trace_report", tag_field="t"):
    """Answers `TraceRequest`: the agent's monotonic clock when it was read, and the traced requests' times."""

    id: int
    clock_ns: int
    hops: tuple[HopTrace, ...] = ()


class Drain(msgspec.Struct, frozen=True, tag="drain", tag_field="t"):
    """Take no new load, finish what is queued. Answered by `Done` when nothing is left."""

    id: int


class Heartbeat(msgspec.Struct, frozen=True, tag="heartbeat", tag_field="t"):
    """Unasked, every `HEARTBEAT_S` from the control thread to every controller that said `Hello`.

    Attributes:
        boot: Changes when the process restarts: what was loaded before is gone.
        progress: Items finished since the start; it stands still when the worker hangs.
        item_age_s: Age of the item in work; 0 when idle.
        queued: Items that wait here.
        epochs: Epochs that are loaded.
        run_cpu_s: Seconds in which the thread with the item in work has had a processor, or wanted one: they grow while
            a slow run works, and not while it hangs. 0 when idle, and where the system does not tell.
    """

    boot: str
    progress: int
    item_age_s: float
    queued: int
    state: str
    resident_bytes: int = 0
    epochs: tuple[int, ...] = ()
    run_cpu_s: float = 0.0


HEARTBEAT_S = 0.1
"""Seconds between heartbeats."""

CHUNK_BYTES = 1024 * 1024
"""Most bytes of a file in one `Chunk`."""

CHUNK_WINDOW = 16
"""Most `Chunk`s that may be unanswered on one connection; more are answered with `Fault`."""

ControlMessage = (
    Hello
    | Welcome
    | Fault
    | Want
    | Have
    | Chunk
    | Taken
    | Load
    | Progress
    | Loaded
    | Unload
    | Done
    | Measure
    | Measured
    | MeasureLink
    | LinkMeasured
    | StatusRequest
    | AgentStatus
    | Drain
    | Heartbeat
    | TraceRequest
    | TraceReport
)
