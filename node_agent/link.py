"""Sockets of the data and control connections: options and keys in one place, whole messages in and out.

`bind` and `dial` are the only ways to an address. They apply the `Security` of the socket's context: without keys no
address beyond this machine, unless that was asked for; with keys, CURVE on every connection.

A socket is made, used and closed by one thread. Connection states and credit windows are in
`node_agent.connection` and `node_agent.flow`, which know no socket.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import zmq

from node_agent.connection import Handshake, ReceivingEnd, SendingEnd
from node_agent.errors import (
    AddressInUseError,
    AddressInvalidError,
    FrameError,
    NotAllowedError,
)
from node_agent.frames import check_lengths, decode_header
from node_agent.gate import Context as SecureContext
from node_agent.lending import Borrowing, Lender, unlent
from node_agent.limits import CONTROL_BYTES, COPY_BELOW, DEFAULT, Limits
from node_agent.messages import DataHeader, Greeting, Item, Probe
from node_agent.monitor import Monitor
from node_agent.security import OPEN, Door, Security, host_of, security_of
from node_agent.sockets import MORE_NOW, NOW, fetch, post, readable, used

__all__ = [
    "Handshake",
    "Monitor",
    "ReceivingEnd",
    "SendingEnd",
    "Sent",
    "bind",
    "dial",
    "incoming",
    "new_context",
    "open_socket",
    "receive",
    "refused",
    "send",
]

Socket = zmq.Socket[bytes]
Context = zmq.Context[Any]


@dataclass(frozen=True, slots=True)
class Guard:
    """Looks at each message that came in by a bound socket with keys."""

    security: Security
    door: Door

    def refusal(self, frame: Any, message: Any) -> NotAllowedError | None:
        """What forbids a message; None if nothing.

        Args:
            frame: Its first frame after the routing id, received without a copy: it knows its sender's key.
            message: What it says.
        """
        try:
            public = str(frame.get("User-Id"))
        except zmq.ZMQError:
            public = ""
        return self.door.refusal(self.security, public, message)


def new_context(security: Security = OPEN) -> Context:
    """A context whose sockets follow `security`."""
    return SecureContext(security)


class _Socket(zmq.Socket[bytes]):
    """A socket that may have somebody who looks at what comes in, and memory that its peers lend, or it."""

    guard: Guard | None = None
    lender: Lender | None = None
    borrowing: Borrowing | None = None

    def close(self, linger: int | None = None) -> None:
        """See pyzmq."""
        if self.borrowing is not None:
            self.borrowing.close()
        super().close(linger)


class _Dealer(_Socket):
    """A socket that dials IPv6 addresses as well, in brackets as in a URL."""

    def connect(self, addr: str) -> Any:
        """See pyzmq."""
        if "[" in addr:
            # Not for names: with this option ZeroMQ takes a name's IPv6 address alone, and would never reach
            # a listener on IPv4 of a host that has both.
            self.setsockopt(zmq.IPV6, 1)
        return super().connect(addr)


def open_socket(
    context: Context, kind: int, *, purpose: Literal["control", "data"], limits: Limits = DEFAULT
) -> Socket:
    """A socket with every option that this project's connections need; not yet bound or connected.

    Args:
        context: The process's context.
        kind: `zmq.ROUTER` or `zmq.DEALER`.
        purpose: Which family of messages it carries.
        limits: Bounds on data messages.
    """
    socket: Socket = context.socket(kind, socket_class=_Dealer if kind == zmq.DEALER else _Socket)
    options = {
        # Nothing that is still queued at the end is worth waiting for: requests are replayed by the
        # dispatcher.
        zmq.LINGER: 0,
        zmq.MAXMSGSIZE: CONTROL_BYTES if purpose == "control" else limits.frame_bytes,
        # These count messages. Credits bound the data sockets far below; for peers that ignore credits TCP
        # does.
        zmq.SNDHWM: 1000,
        zmq.RCVHWM: 1000 if purpose == "control" else 128,
        zmq.HANDSHAKE_IVL: 5_000,
        zmq.CONNECT_TIMEOUT: 5_000,
        zmq.RECONNECT_IVL: 50,
        zmq.RECONNECT_IVL_MAX: 2_000,
        # Not ZMTP's own heartbeat: its answer waits behind a tensor that takes long on a slow link, and the
        # connection would be cut for it. The kernel's keepalive does not wait behind data.
        zmq.TCP_KEEPALIVE: 1,
        zmq.TCP_KEEPALIVE_IDLE: 5,
        zmq.TCP_KEEPALIVE_INTVL: 2,
        zmq.TCP_KEEPALIVE_CNT: 3,
        zmq.TCP_MAXRT: 10_000,
    }
    if kind == zmq.ROUTER:
        # A message for a peer that is gone is an error to handle, not to lose silently.
        options[zmq.ROUTER_MANDATORY] = 1
    else:
        # Queue only to connections that stand, so that a new one starts with its greeting.
        options[zmq.IMMEDIATE] = 1
    for option, value in options.items():
        socket.setsockopt(option, value)
    return socket


def borrow(
    socket: Socket, watch: Callable[[int, Callable[[], None]], None], unwatch: Callable[[int], None]
) -> None:
    """Has a ROUTER take items from peers on this machine out of memory that they lend.

    Args:
        socket: Receives items.
        watch: Calls back in the socket's thread when a descriptor can be read.
        unwatch: Ends that.
    """
    if isinstance(socket, _Socket):
        socket.borrowing = Borrowing(watch, unwatch)


def dial(socket: Socket, endpoint: str, to: str, lender: Lender | None = None) -> None:
    """Connects a DEALER, with keys where its context has them.

    Args:
        socket: Not yet connected.
        endpoint: `tcp://host:port`.
        to: Whom: a device, or a name that begins with `@dispatcher`. Whoever answers must have the key of that name.
        lender: Lends what is sent over this socket to a peer on this machine.

    Raises:
        InsecureListenError: The address is beyond this machine, there are no keys, and nobody asked for that.
        UnauthorisedError: No key of that name is known here.
    """
    if isinstance(socket, _Socket):
        socket.lender = lender
    security = security_of(socket)
    security.check(host_of(endpoint), "Connecting to")
    if security.own is not None and security.curve:
        socket.setsockopt(zmq.CURVE_SERVERKEY, security.server_key(to).encode())
        socket.setsockopt(zmq.CURVE_PUBLICKEY, security.own.public.encode())
        socket.setsockopt(zmq.CURVE_SECRETKEY, security.own.secret.encode())
    socket.connect(endpoint)


def _guard(socket: Socket, door: Door, hung_up: Callable[[], object]) -> None:
    """Has a bound socket demand keys, and only those that may pass its door."""
    security = security_of(socket)
    own = security.own
    assert own is not None
    assert isinstance(socket.context, SecureContext)
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, own.public.encode())
    socket.setsockopt(zmq.CURVE_SECRETKEY, own.secret.encode())
    # Without somebody to ask, libzmq would let in whoever has any key at all.
    socket.setsockopt(zmq.ZAP_DOMAIN, door.name.encode())
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    socket.context.admit(socket, door, hung_up)
    if isinstance(socket, _Socket):
        socket.guard = Guard(security, door)


def _ignored() -> None:
    pass


def bind(
    socket: Socket, host: str, port: int, door: Door | None = None, hung_up: Callable[[], object] = _ignored
) -> int:
    """Binds to `host:port` (port 0: any free one) and returns the port.

    Args:
        socket: Not yet bound.
        host: Address of this machine.
        port: 0 for any free one.
        door: Who may come in, where the socket's context has keys; it must be given there.
        hung_up: Called by another thread when a peer has left, where the socket's context has keys; where it has none,
            a `Monitor` tells.

    Raises:
        AddressInUseError: Another process listens there.
        AddressInvalidError: This machine has no such address, or it may not be used.
        InsecureListenError: The address is beyond this machine, there are no keys, and nobody asked for that.
    """
    security = security_of(socket)
    security.check(host, "Listening on")
    if security.curve:
        if door is None:
            raise ValueError("a socket with keys needs to know whom it lets in")
        _guard(socket, door, hung_up)
    bracketed = f"[{host}]" if ":" in host else host
    if ":" in host:
        socket.setsockopt(zmq.IPV6, 1)
    try:
        socket.bind(f"tcp://{bracketed}:{port or '*'}")
    except zmq.ZMQError as error:
        if error.errno == zmq.EADDRINUSE:
            raise AddressInUseError(
                f"Port {port} on {host} is in use by another process.",
                hint="Stop it, or choose another port with --listen HOST:PORT (port 0 takes any free one).",
            ) from None
        raise AddressInvalidError(
            f"Cannot listen on {host}:{port}: {error.strerror or error}.",
            hint="Give an address of this machine with --listen HOST:PORT.",
        ) from None
    endpoint: bytes = socket.getsockopt(zmq.LAST_ENDPOINT)  # type: ignore[assignment]
    return int(str(endpoint, "ascii").rstrip("\0").rsplit(":", 1)[1])


def refused(socket: Socket, frame: Any, message: Any) -> NotAllowedError | None:
    """What forbids a message that came in by a bound socket; None if nothing, and always where there are no keys.

    Args:
        socket: As `bind` left it.
        frame: The message's first frame after the routing id, received without a copy.
        message: What it says.
    """
    guard: Guard | None = getattr(socket, "guard", None)
    return guard.refusal(frame, message) if guard is not None else None


def receive(
    socket: Socket, *, routed: bool, limits: Limits = DEFAULT
) -> tuple[bytes, DataHeader | FrameError, list[Any]]:
    """One waiting data message, its header decoded and all sizes checked.

    Tensor frames of at least `COPY_BELOW` bytes are `zmq.Frame`s on libzmq's memory, or `memoryview`s of what a peer
    lends, shorter ones `bytes`.

    Args:
        socket: Has a message waiting.
        routed: Whether it is a ROUTER, whose messages start with the sender's routing id.
        limits: Bounds on the message.

    Returns:
        The routing id (empty if not routed), the header or what is wrong with the message, and the tensor
        frames.

    Raises:
        zmq.Again: Nothing waits.
    """
    identity = fetch(socket, NOW) if routed else b""
    first = fetch(socket, NOW, False)
    problem: FrameError | None = None
    header: Any = None
    try:
        header = decode_header(first.buffer, limits)
        guard: Guard | None = getattr(socket, "guard", None)
        if guard is not None:
            problem = guard.refusal(first, header)
    except FrameError as error:
        problem = error
    more = first.more
    tensors: Sequence[Any] = getattr(header, "tensors", ())
    # A probe alone brings a frame that no tensor header announces.
    most = 1 if type(header) is Probe else len(tensors)
    frames: list[Any] = []
    inline = header.inline if type(header) is Item else ()
    if inline:
        frames, most = list(inline), 0
    while more:
        frame = fetch(socket, NOW, False)
        more = frame.more
        if len(frames) < most:
            frames.append(frame.bytes if len(frame) < COPY_BELOW else frame)
        elif problem is None:
            problem = FrameError(
                f"A message came with more frames after its header than the {most} announced."
            )
    borrowing: Borrowing | None = getattr(socket, "borrowing", None)
    if problem is None and routed and type(header) is Greeting:
        header = borrowing.greeted(identity, header) if borrowing is not None else unlent(header)
    if problem is None and (tensors or inline):
        try:
            if borrowing is not None:
                borrowing.resolve(identity, tensors, frames)
            check_lengths(tensors, frames)
        except FrameError as error:
            problem = error
    return (identity, header, frames) if problem is None else (identity, problem, [])


def incoming(
    socket: Socket, *, routed: bool, limits: Limits = DEFAULT, most: int = 32
) -> Iterator[tuple[bytes, DataHeader | FrameError, list[Any]]]:
    """What waits on a socket, as from `receive`, up to `most` messages: then others get their turn."""
    for left in reversed(range(most)):
        try:
            message = receive(socket, routed=routed, limits=limits)
        except zmq.Again:
            return
        yield message
        if not left:
            return
        # Asking is cheaper than the exception of a socket that has nothing.
        if socket.closed or not readable(socket):
            return


class Sent(enum.Enum):
    """What became of a message."""

    YES = "yes"
    LATER = "later"
    """No connection stands, or its queue is full."""
    GONE = "gone"
    """A ROUTER knows no such peer any more."""


def send(socket: Socket, header: bytes, frames: Sequence[Any] = (), identity: bytes | None = None) -> Sent:
    """Sends one message without waiting; frames of at least `COPY_BELOW` bytes are shared, or lent, not copied.

    Whoever owns a shared frame's memory must leave it alone afterwards; it is kept alive until ZeroMQ is
    done.

    Args:
        socket: ROUTER (with `identity`) or DEALER.
        header: The encoded header.
        frames: Tensor frames: `bytes`, `memoryview` or `zmq.Frame`.
        identity: Routing id of the peer on a ROUTER.
    """
    used(socket)
    last = len(frames) - 1
    lender: Lender | None = getattr(socket, "lender", None) if frames else None
    if lender is not None and lender.active:
        frames = lender.lent(frames)
    try:
        if identity is not None:
            post(socket, identity, MORE_NOW)
        post(socket, header, MORE_NOW if frames else NOW)
        for index, frame in enumerate(frames):
            # A received frame is handed on by reference: no buffer of ours to keep alive, so never a copy.
            copy = len(frame) < COPY_BELOW and not isinstance(frame, zmq.Frame)
            post(socket, frame, NOW if index == last else MORE_NOW, copy)
    except zmq.Again:
        if lender is not None:
            lender.take_back()
        return Sent.LATER
    except zmq.ZMQError as error:
        if error.errno == zmq.EHOSTUNREACH:
            return Sent.GONE
        raise
    return Sent.YES
