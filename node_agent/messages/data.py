"""What passes on data sockets between hops, and between the hops and the dispatcher: items, failures, credit, probes.

An `Item` is followed by one frame per tensor, `Probe` by one of its own; nothing else is followed by any.
"""

from __future__ import annotations

import msgspec

NO_DEADLINE = -1
"""`remaining_ns` of a request that may take for ever."""

USUAL_PRIORITY = 10
"""Priority of a request that names none; 1 is the highest."""

LOWEST_PRIORITY = 1 << 31
"""The largest number that a request may have as its priority."""


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
        inline: Whether it takes items that bring short frames in their header.
    """

    minimum: int
    version: int
    name: str
    lends: Offered | None = None
    inline: bool = False


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
        inline: The tensor frames, where they are short and the peer takes them so; then none follows.
    """

    epoch: int
    request: int
    hop: int
    remaining_ns: int
    tensors: tuple[TensorHeader, ...]
    trace: str = ""
    priority: int = 0
    inline: tuple[bytes, ...] = ()


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
    """The answer to `Probe`, without its bytes.

    Attributes:
        id: The probe's.
        cpu_s: Processor seconds that the answering process has used so far; 0 where it does not tell.
    """

    id: int
    cpu_s: float = 0.0


class Refusal(msgspec.Struct, frozen=True, array_like=True, tag="refuse"):
    """Why this peer will not talk: another protocol version, a malformed message."""

    code: str
    message: str
