"""ZeroMQ over TCP as the data path meets it: DEALERs dial ROUTERs, connections stand, stall and break.

Stands in for `node_agent.link`. What is kept of the real thing: a DEALER queues only on a connection that stands
(`IMMEDIATE`), dials again by itself and tells its monitor; a ROUTER gives each connection a routing id of its own and
knows when one is gone (`ROUTER_MANDATORY`), perhaps much later than the other side; messages of one connection keep
their order; of those under way when it breaks a prefix arrives; a stalled link delays and loses nothing until TCP
gives up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import zmq

from benchmarks.simulation.world import Process, World
from node_agent.errors import FrameError
from node_agent.frames import check_lengths, decode_header
from node_agent.limits import DEFAULT, Limits
from node_agent.link import Sent
from node_agent.messages import DataHeader, Item, TensorHeader

RECONNECT_S, RECONNECT_LIMIT_S = 0.05, 2.0
GIVE_UP_S = 10.0
"""TCP gives a connection up that has taken nothing for so long (`TCP_MAXRT`, keepalive)."""

Message = tuple[bytes, Any, Sequence[Any]]


class Connection:
    """One TCP connection between a DEALER and a ROUTER.

    Attributes:
        ends: The DEALER and the ROUTER.
        knows: Whether each end takes it for standing.
        standing: Whether it does.
    """

    __slots__ = ("ends", "identity", "knows", "net", "queues", "standing", "unread")

    def __init__(self, net: Network, dealer: Socket, router: Socket, identity: bytes) -> None:
        self.net = net
        self.ends = (dealer, router)
        self.identity = identity
        self.knows = [True, True]
        self.standing = True
        # Per direction (by sender): what is under way with its time of arrival, and what is not read yet.
        self.queues: tuple[deque[tuple[float, Any, Sequence[Any]]], ...] = (deque(), deque())
        self.unread = [0, 0]

    def send(self, side: int, data: Any, frames: Sequence[Any]) -> bool:
        """Put a message on its way; False where the queue is full."""
        queue = self.queues[side]
        if len(queue) + self.unread[side] >= self.ends[side].hwm:
            return False
        if not self.standing:
            return True  # written into the void
        due = self.net.world.now + self.net.delay(self, sum(map(len, frames)) if frames else 0)
        if queue and queue[-1][0] > due:
            due = queue[-1][0]
        queue.append((due, data, frames))
        self.net.world.at(due, self.arrive, side)
        return True

    def arrive(self, side: int) -> None:
        """The oldest message of one direction arrives, if nothing holds it up."""
        queue = self.queues[side]
        if not queue or queue[0][0] > self.net.world.now or self.net.held_up(self):
            return
        _, data, frames = queue.popleft()
        data = self.net.garbled(self, data)
        receiver = self.ends[1 - side]
        if receiver.closed:
            return
        self.unread[side] += 1
        receiver.inbox.append((self, self.identity if side == 0 else b"", data, frames))
        receiver.readable()

    def released(self) -> None:
        """The link is whole again: what was held up arrives."""
        world = self.net.world
        for side in (0, 1):
            for due, _, _ in self.queues[side]:
                world.at(max(world.now, due) + 0.0001, self.arrive, side)

    def cut(self, notice: tuple[float, float]) -> None:
        """Break: a prefix of what is under way arrives, and each end notices after `notice` seconds."""
        if not self.standing:
            return
        self.standing = False
        self.net.connections.pop(self, None)
        world = self.net.world
        stalled = self.net.held_up(self)
        last = world.now
        for side in (0, 1):
            queue = self.queues[side]
            kept = 0 if stalled else world.random.randint(0, len(queue))
            while len(queue) > kept:
                queue.pop()
            if queue:
                last = max(last, queue[-1][0])
        for side in (0, 1):
            # The end of the stream comes behind what was in it.
            world.at(max(last, world.now + notice[side]), self._noticed, side)

    def _noticed(self, side: int) -> None:
        if self.knows[side]:
            self.knows[side] = False
            self.ends[side].lost(self)


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


class Network:
    """Hosts, the links between them, and every connection.

    Args:
        world: The clock.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.bound: dict[str, Socket] = {}
        self.connections: dict[Connection, None] = {}
        self.slow: dict[frozenset[str], float] = {}
        self.cut_links: dict[frozenset[str], None] = {}
        self.to_garble = 0
        self._identities = 0

    def stand(self, dealer: Socket, router: Socket) -> Connection:
        """A connection is made."""
        self._identities += 1
        identity = b"\0" + self._identities.to_bytes(4, "big")
        connection = Connection(self, dealer, router, identity)
        router.peers[identity] = connection
        self.connections[connection] = None
        return connection

    def latency(self, one: str, other: str) -> float:
        """Seconds of one message of no bytes."""
        usual = 0.0002 + 0.0015 * self.world.random.random()
        return usual * self.slow.get(frozenset((one, other)), 1.0) if self.slow else usual

    def delay(self, connection: Connection, nbytes: int) -> float:
        """Seconds of one message."""
        one, other = connection.ends
        return self.latency(one.process.name, other.process.name) * (1 + nbytes / 2000)

    def blocked(self, one: str, other: str) -> bool:
        """Whether nothing passes between two hosts."""
        return bool(self.cut_links) and frozenset((one, other)) in self.cut_links

    def held_up(self, connection: Connection) -> bool:
        """Whether nothing passes on a connection."""
        return self.blocked(connection.ends[0].process.name, connection.ends[1].process.name)

    def partition(self, one: str, other: str) -> None:
        """Let nothing pass between two hosts; TCP gives up what is stalled for long."""
        pair = frozenset((one, other))
        self.cut_links[pair] = None
        self.world.after(GIVE_UP_S, self._give_up, pair, self.world.now)

    def _give_up(self, pair: frozenset[str], since: float) -> None:
        if pair in self.cut_links and self.world.now - since >= GIVE_UP_S - 1e-9:
            for connection in self.between(pair):
                connection.cut((0.0, self.world.random.random() * 2))

    def heal(self, one: str, other: str) -> None:
        """Let everything pass again."""
        pair = frozenset((one, other))
        self.cut_links.pop(pair, None)
        for connection in self.between(pair):
            connection.released()

    def between(self, pair: frozenset[str]) -> list[Connection]:
        """The connections between two hosts."""
        return [
            connection
            for connection in self.connections
            if frozenset(end.process.name for end in connection.ends) == pair
        ]

    def garbled(self, connection: Connection, data: Any) -> Any:
        """A header on its way, spoiled where one is to be."""
        if self.to_garble and isinstance(data, bytes) and connection.ends[0].process.name != "@c":
            self.to_garble -= 1
            self.world.note(
                "net", "garbled", connection.ends[0].process.name, connection.ends[1].process.name
            )
            return b"\xc1" + data[1:]  # what would still read as a message, no check but a key's would notice
        return data

    def process_ended(self, context: Context) -> None:
        """A process is killed: its kernel closes what it had open, what was sent still leaves."""
        for socket in list(context.sockets):
            for connection in [*socket.peers.values(), *([socket.connection] if socket.connection else [])]:
                side = connection.ends.index(socket)
                connection.knows[side] = False
                other = self.world.random.choice((0.0005, 0.0005, 0.05))
                connection.cut((other, other))
            socket.connection = None
            socket.peers.clear()
            socket.close()


def host_of(endpoint: str) -> str:
    """The host in `tcp://host:port`."""
    return endpoint.removeprefix("tcp://").rpartition(":")[0]


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
        tensors: Sequence[TensorHeader] = getattr(header, "tensors", ())
        if type(header) is Item or tensors:
            check_lengths(tensors, frames)
    except FrameError as error:
        return identity, error, []
    return identity, header, list(frames)
