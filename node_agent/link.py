"""Sockets of the data and control connections: options in one place, whole messages in and out.

A socket is made, used and closed by one thread. Connection states and credit windows are in
`node_agent.connection` and `node_agent.flow`, which know no socket.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import zmq
from zmq.utils.monitor import recv_monitor_message

from node_agent.connection import Handshake, ReceivingEnd, SendingEnd
from node_agent.errors import AddressInUseError, AddressInvalidError, FrameError
from node_agent.frames import check_lengths, decode_header
from node_agent.limits import CONTROL_BYTES, COPY_BELOW, DEFAULT, Limits
from node_agent.messages import DataHeader, Item
from node_agent.sockets import MORE_NOW, NOW, post, readable, used

__all__ = [
    "Handshake",
    "Monitor",
    "ReceivingEnd",
    "SendingEnd",
    "Sent",
    "bind",
    "incoming",
    "open_socket",
    "receive",
    "send",
]

Socket = zmq.Socket[bytes]
Context = zmq.Context[Any]


class _Dealer(zmq.Socket[bytes]):
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
    socket: Socket = (
        context.socket(kind, socket_class=_Dealer) if kind == zmq.DEALER else context.socket(kind)
    )
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


def bind(socket: Socket, host: str, port: int) -> int:
    """Binds to `host:port` (port 0: any free one) and returns the port.

    Raises:
        AddressInUseError: Another process listens there.
        AddressInvalidError: This machine has no such address, or it may not be used.
    """
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


def receive(
    socket: Socket, *, routed: bool, limits: Limits = DEFAULT
) -> tuple[bytes, DataHeader | FrameError, list[Any]]:
    """One waiting data message, its header decoded and all sizes checked.

    Tensor frames of at least `COPY_BELOW` bytes are `zmq.Frame`s on libzmq's memory, shorter ones `bytes`.

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
    identity = socket.recv(NOW) if routed else b""
    first = socket.recv(NOW, copy=False)
    if not first.more:
        try:
            header = decode_header(first.buffer, limits)
            check_lengths(getattr(header, "tensors", ()), ())
        except FrameError as error:
            return identity, error, []
        return identity, header, []
    frames: list[Any] = []
    problem: FrameError | None = None
    tensors: Sequence[Any] = ()
    allowed = 1
    try:
        header = decode_header(first.buffer, limits)
        tensors = getattr(header, "tensors", ())
        # A probe alone brings a frame that no tensor header announces.
        allowed = len(tensors) if type(header) is Item or tensors else 1
    except FrameError as error:
        problem = error
    more = True
    count = 0
    while more:
        copy = count < len(tensors) and tensors[count].nbytes < COPY_BELOW
        frame = socket.recv(NOW, copy=copy)
        more = bool(socket.getsockopt(zmq.RCVMORE)) if copy else frame.more
        count += 1
        if problem is None and count <= allowed:
            frames.append(frame)
    if problem is None and count > allowed:
        problem = FrameError(f"A message came with {count} frames after its header; {allowed} are announced.")
    if problem is None and tensors:
        try:
            check_lengths(tensors, frames)
        except FrameError as error:
            problem = error
    return (identity, header, frames) if problem is None else (identity, problem, [])


def incoming(
    socket: Socket, *, routed: bool, limits: Limits = DEFAULT, most: int = 32
) -> Iterator[tuple[bytes, DataHeader | FrameError, list[Any]]]:
    """What waits on a socket, as from `receive`, up to `most` messages: then others get their turn."""
    for _ in range(most):
        try:
            message = receive(socket, routed=routed, limits=limits)
        except zmq.Again:
            return
        yield message
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
    """Sends one message without waiting; frames of at least `COPY_BELOW` bytes are shared, not copied.

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
    try:
        if identity is not None:
            post(socket, identity, MORE_NOW)
        post(socket, header, MORE_NOW if frames else NOW)
        for index, frame in enumerate(frames):
            # A received frame is handed on by reference: no buffer of ours to keep alive, so never a copy.
            copy = len(frame) < COPY_BELOW and not isinstance(frame, zmq.Frame)
            post(socket, frame, NOW if index == last else MORE_NOW, copy)
    except zmq.Again:
        return Sent.LATER
    except zmq.ZMQError as error:
        if error.errno == zmq.EHOSTUNREACH:
            return Sent.GONE
        raise
    return Sent.YES


class Monitor:
    """Tells when the connection of a dialling socket stands and when it breaks."""

    _UP = zmq.EVENT_HANDSHAKE_SUCCEEDED
    _DOWN = zmq.EVENT_DISCONNECTED
    _FAILED = (
        zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
        zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
        zmq.EVENT_HANDSHAKE_FAILED_AUTH,
    )

    def __init__(self, socket: Socket) -> None:
        events = self._UP | self._DOWN
        for failed in self._FAILED:
            events |= failed
        self._watched = socket
        self.socket: Socket = socket.get_monitor_socket(events)

    def events(self) -> list[Literal["up", "down", "failed"]]:
        """What happened since the last call, in order."""
        seen: list[Literal["up", "down", "failed"]] = []
        while int(self.socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            event = recv_monitor_message(self.socket)["event"]
            if event == self._UP:
                seen.append("up")
            elif event == self._DOWN:
                seen.append("down")
            elif event in self._FAILED:
                seen.append("failed")
        return seen

    def close(self) -> None:
        """Stops watching; before the watched socket is closed."""
        self._watched.disable_monitor()
        self.socket.close(0)
