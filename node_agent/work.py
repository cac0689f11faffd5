"""What travels between the threads of the data path, and what is counted on the way."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from node_agent.batching import Batching
from node_agent.connection import ReceivingEnd
from node_agent.engines.base import Arrays, OverlappingSession, Session, overlapping
from node_agent.errors import DEADLINE_EXCEEDED
from node_agent.messages import NO_DEADLINE, USUAL_PRIORITY, Failure, HopStatus, Item, TensorHeader
from node_agent.routing import Route
from node_agent.tracing import Marks

LONG_NS = 20_000_000
"""A run above this is no short one that something interrupted, and if it is, little is lost."""

CANCELLED = 256
"""Requests of a hop that are remembered as cancelled; more than are here at a time by the usual credit."""


@dataclass(slots=True)
class HopCounters:
    """Sums since a hop was loaded; each field is written by one thread, named in brackets."""

    bytes_in: int = 0
    """[data]"""
    arrived: int = 0
    """[data]"""
    decode_ns: int = 0
    """[decode, or data where the codec is raw]"""
    wait_ns: int = 0
    """[run, or data for a relay]"""
    run_ns: int = 0
    """[run]"""
    runs: int = 0
    """[run, or data where that runs it]"""
    processor_ns: int = 0
    """[run, or data where that runs it]"""
    dropped: int = 0
    """[run]"""
    items: int = 0
    """[data]"""
    failures: int = 0
    """[data]"""
    stale: int = 0
    """[data]"""
    encode_ns: int = 0
    """[encode, or data where the codec is raw]"""
    bytes_out: int = 0
    """[data]"""


@dataclass(frozen=True, slots=True)
class Known:
    """What items with one set of headers have in common on a hop, all of them raw: see `node_agent.short_way`.

    Attributes:
        tensors: The headers that come.
        nbytes: Bytes of their frames.
        inputs: Name, frame, type and shape of each tensor that the partition takes.
        sent: The headers that go on.
        sent_bytes: Bytes of their frames.
        made: For each of them its name, the frame that goes on as it came (-1 for an output of the partition), and
            the output's type and shape.
    """

    tensors: tuple[TensorHeader, ...]
    nbytes: int
    inputs: tuple[tuple[str, int, np.dtype[Any], tuple[int, ...]], ...]
    sent: tuple[TensorHeader, ...]
    sent_bytes: int
    made: tuple[tuple[str, int, np.dtype[Any] | None, tuple[int, ...]], ...]


@dataclass(slots=True, eq=False)
class LoadedRoute:
    """A route in force, with its partition.

    Attributes:
        route: What to do.
        session: The partition; None for a relay.
        counters: What has been done.
        closed: Its epoch is being unloaded: what still waits for it is dropped.
        run_ns: About how long a run takes (the median); 0 before the first.
        sent: Latest headers of outputs that went on raw.
        seen: Headers of the latest item that was admitted.
        admitted: Which of them the partition takes and which go on.
        coded: Whether the partition takes one that is not raw.
        batching: How its requests run as batches; None where each runs alone.
        batch_note: What was found about that, one sentence.
        known: What the latest items that took the short way had in common.
        cancelled: Latest requests that nobody waits for, the oldest first; most have gone on already.
        overlapping: The session, where several of its runs may be in flight.
    """

    route: Route
    session: Session | None
    counters: HopCounters = field(default_factory=HopCounters)
    closed: bool = False
    run_ns: int = 0
    seen: tuple[TensorHeader, ...] | None = None
    admitted: tuple[Sequence[int], Sequence[int]] = ((), ())
    coded: bool = False
    batching: Batching | None = None
    batch_note: str = ""
    sent: dict[str, TensorHeader] = field(default_factory=dict)
    known: Known | None = None
    cancelled: dict[int, None] = field(default_factory=dict)
    overlapping: OverlappingSession | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.overlapping = overlapping(self.session)

    def cancel(self, request: int) -> None:
        """Nobody waits for a request any more: it ends before its next step, if it is here. In the data thread."""
        if len(self.cancelled) >= CANCELLED:
            del self.cancelled[next(iter(self.cancelled))]
        self.cancelled[request] = None

    def ran(self, took_ns: int) -> None:
        """Notes a run and how long it took."""
        self.counters.run_ns += took_ns
        self.counters.runs += 1
        # Moves by an eighth towards what was measured, so that one interrupted run counts no more than another.
        step = self.run_ns >> 3
        self.run_ns = (self.run_ns + (step if took_ns > self.run_ns else -step)) or took_ns
        if took_ns > LONG_NS:
            # That long no other thread may be kept by it: the next one is not taken for short.
            self.run_ns = max(self.run_ns, took_ns >> 3)

    def status(self) -> HopStatus:
        """The counters as other processes see them."""
        c = self.counters
        return HopStatus(
            epoch=self.route.epoch,
            hop=self.route.spec.hop,
            model=self.route.model,
            kind=self.route.kind,
            items=c.items,
            failures=c.failures,
            stale=c.stale + c.dropped,
            queued=max(0, c.arrived - c.items - c.failures - c.stale - c.dropped),
            wait_s=c.wait_ns / 1e9,
            decode_s=c.decode_ns / 1e9,
            run_s=c.run_ns / 1e9,
            encode_s=c.encode_ns / 1e9,
            bytes_in=c.bytes_in,
            bytes_out=c.bytes_out,
            engine=getattr(self.session, "engine", ""),
            notes=(*getattr(self.session, "notes", ()), *([self.batch_note] if self.batch_note else [])),
            runs=c.runs,
            processor_s=c.processor_ns / 1e9,
        )


@dataclass(slots=True, eq=False)
class Origin:
    """An upstream connection: where an item came from and its credit goes back to.

    Attributes:
        end: Greeting and credit.
        socket: The receive thread's socket.
        identity: Routing id there; None on a socket that this side dialled.
    """

    end: ReceivingEnd
    socket: Any
    identity: bytes | None


@dataclass(slots=True, eq=False)
class Work:
    """One item on its way through this agent.

    Attributes:
        loaded: Its route.
        item: Its header.
        frames: Its tensor frames, undecoded.
        origin: Where it came from.
        nbytes: Bytes of its frames: the credit to give back.
        arrived_ns: Monotonic time of its arrival.
        decode: Indices of the tensors that the partition takes.
        forward: Indices of the tensors that go on undecoded.
        inputs: The partition's inputs, until it has run.
        outputs: The partition's outputs, once it has run.
        failure: Why it has none.
        encoded: Headers and frames to send, once encoded.
        marks: Where the times of a traced request are noted; None for the others.
    """

    loaded: LoadedRoute
    item: Item | Failure
    frames: list[Any]
    origin: Origin
    nbytes: int
    arrived_ns: int
    decode: Sequence[int] = ()
    forward: Sequence[int] = ()
    inputs: Arrays | None = None
    outputs: Arrays | None = None
    failure: Failure | None = None
    encoded: tuple[tuple[Any, ...], list[Any]] | None = None
    marks: Marks | None = None

    @property
    def priority(self) -> int:
        """Of what waits here, the smallest goes first; see `node_agent.line`."""
        return (self.item.priority or USUAL_PRIORITY) if type(self.item) is Item else USUAL_PRIORITY

    def deadline_ns(self) -> int | None:
        """When it must have ended, on the monotonic clock; None for never."""
        granted = self.item.remaining_ns if type(self.item) is Item else NO_DEADLINE
        return None if granted == NO_DEADLINE else self.arrived_ns + granted

    def remaining_ns(self) -> int:
        """Time left, less the time spent here; `NO_DEADLINE` for none."""
        granted = self.item.remaining_ns if type(self.item) is Item else NO_DEADLINE
        if granted == NO_DEADLINE:
            return NO_DEADLINE
        return max(0, granted - (time.monotonic_ns() - self.arrived_ns))

    def fail(self, code: str, message: str, device: str) -> None:
        """Ends the request without a result; what it held is let go."""
        self.failure = Failure(
            self.item.epoch, self.item.request, self.loaded.route.spec.hop + 1, code, message, device
        )
        self.frames = []
        self.inputs = self.outputs = self.encoded = None

    def fail_if_expired(self, device: str) -> bool:
        """Whether the deadline has passed, or nobody waits any more; if so the request has failed."""
        if self.failure is None and self.item.request in self.loaded.cancelled:
            self.fail("cancelled", "it was cancelled", device)
        if self.failure is None and self.remaining_ns() == 0:
            self.fail(DEADLINE_EXCEEDED, "its deadline passed", device)
        return self.failure is not None
