"""Control messages in which an agent says how it is: its heartbeat, its counters, and when traced requests passed."""

from __future__ import annotations

import msgspec

HEARTBEAT_S = 0.1
"""Seconds between heartbeats."""


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
    processor_s: float = 0.0
    """Processor time of the runs, where the device has a quota of it; 0 elsewhere."""


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
    cores: float = 0.0
    """The quota now, where `HopStatus.processor_s` counts; 0 elsewhere."""


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
