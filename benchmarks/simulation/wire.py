"""ZeroMQ's sockets as the data path meets them: DEALERs dial ROUTERs over the simulated network.

Stands in for `node_agent.link`. What is kept of the real thing: a DEALER queues only on a connection that stands
(`IMMEDIATE`), dials again by itself and tells its monitor; a ROUTER gives each connection a routing id of its own and
knows when one is gone (`ROUTER_MANDATORY`), perhaps much later than the other side.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import zmq

from benchmarks.simulation.network import Connection, Network, host_of
from benchmarks.simulation.world import Process
from node_agent.errors import FrameError
from node_agent.frames import check_lengths, decode_header
from node_agent.limits import DEFAULT, Limits
from node_agent.link import Sent
from node_agent.messages import DataHeader, Item, TensorHeader

RECONNECT_S, RECONNECT_LIMIT_S = 0.05, 2.0

Message = tuple[bytes, Any, Sequence[Any]]


class Socket:
    """A ROUTER or DEALER as `node_agent.link.open_socket` makes it."""

    def __init__(self, context: Context, kind: int) -> None:
        self.process = context.process
        self.net = context.net
        self.kind = kind
        self.hwm = 1000
        self.closed = False
        self.inbox: deque[tuple[Connection, bytes, Any, Sequence[Any]]] = deque()
        self.on_readable: Callable[[], None] | None = None
        self.connection: Connection | None = None
        self.peers: dict[bytes, Connection] = {}
        self.monitor: Monitor | None = None
        self._target = ""
        self._tries = 0
        context.sockets.append(self)

    def setsockopt(self, option: int, value: Any) -> None:
        """Only the bound of a peer's queue matters here."""
        if option == zmq.SNDHWM:
            self.hwm = value

    def readable(self) -> None:
        """Something waits."""
        if self.on_readable is not None:
            self.on_readable()

    def connect(self, endpoint: str) -> None:
        """Dial, and again until it stands."""
        self._target = endpoint
        self.net.world.after(self.net.latency(self.process.name, host_of(endpoint)), self._attempt)

    def _attempt(self) -> None:
        if self.closed or not self.process.alive or self.connection is not None:
            return
        router = self.net.bound.get(self._target)
        reachable = (
            router is not None
            and router.process.alive
            and not router.process.paused
            and not self.process.paused
            and not self.net.blocked(self.process.name, router.process.name)
        )
        if router is None or not reachable:
            pause = min(RECONNECT_LIMIT_S, RECONNECT_S * 2**self._tries)
            self._tries = min(self._tries + 1, 8)
            self.net.world.after(pause, self._attempt)
            return
        self._tries = 0
        self.connection = self.net.stand(self, router)
        self.tell("up")

    def lost(self, connection: Connection) -> None:
        """This end learns that a connection is gone."""
        if self.kind == zmq.ROUTER:
            self.peers.pop(connection.identity, None)
            return
        if self.connection is connection and not self.closed:
            self.connection = None
            self.tell("down")
            self.net.world.after(RECONNECT_S, self._attempt)

    def tell(self, event: Literal["up", "down", "failed"]) -> None:
        """Tell the monitor."""
        if self.monitor is not None:
            self.monitor.socket.inbox.append(event)
            self.monitor.socket.readable()

    def close(self, linger: int = 0) -> None:
        """Hang up; `linger` milliseconds for what is under way."""
        if self.closed:
            return
        self.closed = True
        self.inbox.clear()
        self.on_readable = None
        for connection in [*self.peers.values(), *([self.connection] if self.connection else [])]:
            side = connection.ends.index(self)
            connection.knows[side] = False
            delays = (0.0, 0.0005)
            if linger and not self.net.held_up(connection):
                queue = connection.queues[side]
                last = queue[-1][0] - self.net.world.now if queue else 0.0
                self.net.world.after(max(0.0, last) + 0.0001, connection.cut, delays)
            else:
                connection.cut(delays)
        self.peers.clear()
        self.connection = None
        for endpoint, socket in list(self.net.bound.items()):
            if socket is self:
                del self.net.bound[endpoint]


Event = Literal["up", "down", "failed"]


class _Signal:
    """A monitor's own socket."""

    def __init__(self) -> None:
        self.on_readable: Callable[[], None] | None = None
        self.inbox: list[Event] = []

    def readable(self) -> None:
        if self.on_readable is not None:
            self.on_readable()


class Monitor:
    """See `node_agent.link.Monitor`."""

    def __init__(self, socket: Socket) -> None:
        self.socket = _Signal()
        self.refusal: None = None
        self._watched = socket
        socket.monitor = self

    def events(self) -> list[Event]:
        """What happened since the last call."""
        seen, self.socket.inbox = self.socket.inbox, []
        return seen

    def close(self) -> None:
        """Watch no more."""
        self._watched.monitor = None
        self.socket.on_readable = None


class Context:
    """A process's ZeroMQ context."""

    def __init__(self, net: Network, process: Process) -> None:
        self.net = net
        self.process = process
        self.sockets: list[Socket] = []


# ----------------------------------------------------------------------------- in place of node_agent.link's


def open_socket(context: Context, kind: int, **_: Any) -> Socket:
    """See `node_agent.link.open_socket`."""
    return Socket(context, kind)


def bind(socket: Socket, host: str, port: int, *_: Any, **__: Any) -> int:
    """See `node_agent.link.bind`; a process chooses its own free ports."""
    while not port or f"tcp://{host}:{port}" in socket.net.bound:
        port = (port or 20000) + 1
    socket.net.bound[f"tcp://{host}:{port}"] = socket
    return port


def dial(socket: Socket, endpoint: str, *_: Any) -> None:
    """See `node_agent.link.dial`; whoever answers there is who is meant."""
    socket.connect(endpoint)


def send(socket: Socket, header: Any, frames: Sequence[Any] = (), identity: bytes | None = None) -> Sent:
    """See `node_agent.link.send`."""
    if identity is not None:
        connection = socket.peers.get(identity)
        if connection is None:
            return Sent.GONE
        return Sent.YES if connection.send(1, header, frames) else Sent.LATER
    connection = socket.connection
    if connection is None or not connection.send(0, header, frames):
        return Sent.LATER
    return Sent.YES


def take(socket: Socket) -> Message | None:
    """The oldest unread message as routing id, data and frames; None where nothing waits."""
    if not socket.inbox:
        return None
    connection, identity, data, frames = socket.inbox.popleft()
    connection.unread[0 if identity else 1] -= 1
    return identity, data, frames


def incoming(
    socket: Socket, *, routed: bool, limits: Limits = DEFAULT, most: int = 32
) -> Iterator[tuple[bytes, DataHeader | FrameError, list[Any]]]:
    """See `node_agent.link.incoming`."""
    for _ in range(most):
        if not socket.inbox:
            return
        try:
            yield receive(socket, routed=routed, limits=limits)
        except zmq.Again:
            return
        if socket.closed:
            return


def receive(
    socket: Socket, *, routed: bool, limits: Limits = DEFAULT
) -> tuple[bytes, DataHeader | FrameError, list[Any]]:
    """See `node_agent.link.receive`."""
    message = take(socket)
    if message is None:
        raise zmq.Again
    identity, data, frames = message
    identity = identity if routed else b""
    try:
        header = decode_header(data, limits)
        if type(header) is Item and header.inline:
            frames = header.inline
        tensors: Sequence[TensorHeader] = getattr(header, "tensors", ())
        if type(header) is Item or tensors:
            check_lengths(tensors, frames)
    except FrameError as error:
        return identity, error, []
    return identity, header, list(frames)
