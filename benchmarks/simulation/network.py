"""Hosts and the TCP between them: connections stand, stall and break, and their ends notice that late or never.

Messages of one connection keep their order; of those under way when it breaks a prefix arrives; a stalled link delays
and loses nothing until TCP gives up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.simulation.world import World

if TYPE_CHECKING:
    from benchmarks.simulation.wire import Context, Socket

GIVE_UP_S = 10.0
"""TCP gives a connection up that has taken nothing for so long (`TCP_MAXRT`, keepalive)."""


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
