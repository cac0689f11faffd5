"""The far ends of the dispatcher's ROUTERs: stages that fetch items, stages that bring results, clients."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from node_agent.connection import Handshake, ReceivingEnd
from node_agent.link import Sent, Socket, send

PEERS = 1024
"""Greeted peers that a ROUTER remembers; the one that greeted longest ago goes first."""

QUEUED = 32
"""Messages that ZeroMQ holds for one peer (of the data-in ROUTER) before they wait in the outbox, where bytes count. An
agent is owed fewer credits than this."""


@dataclass(slots=True)
class Inbound:
    """Peers that dialled a ROUTER and hand items over, by routing id, each with its window.

    Args:
        name: How this side introduces itself.
    """

    name: str
    peers: OrderedDict[bytes, ReceivingEnd] = field(default_factory=OrderedDict)
    _named: dict[str, bytes] = field(default_factory=dict)

    def greet(self, identity: bytes, peer: str) -> tuple[ReceivingEnd, bool]:
        """The end for a peer that greets, and whether it came by another connection before."""
        end = self.peers.pop(identity, None)
        if end is None:
            end = ReceivingEnd(Handshake(self.name, dialled=False))
            end.opened()
        else:
            self._unname(identity, end)
        # The connection before may have broken, and what came over it may still wait here: it is not forgotten.
        elsewhere = peer in self._named
        self.peers[identity] = end
        self._named[peer] = identity
        if len(self.peers) > PEERS:
            self._unname(*self.peers.popitem(last=False))
        return end, elsewhere

    def _unname(self, identity: bytes, end: ReceivingEnd) -> None:
        if self._named.get(end.handshake.peer) == identity:
            del self._named[end.handshake.peer]


@dataclass(slots=True)
class Fetchers:
    """First stages that dialled the fetch ROUTER, by link and by routing id; bounded, the quietest goes first."""

    _identities: OrderedDict[str, bytes] = field(default_factory=OrderedDict)
    _links: dict[bytes, str] = field(default_factory=dict)

    def greet(self, link: str, identity: bytes) -> list[str]:
        """Note who fetches for `link` from now on; returns the links that are down for it."""
        down = [name for name in (link, self._links.get(identity)) if name is not None and self.drop(name)]
        self._identities[link], self._links[identity] = identity, link
        if len(self._identities) > PEERS:
            quietest = next(iter(self._identities))
            self.drop(quietest)
            down.append(quietest)
        return down

    def drop(self, link: str) -> bool:
        """Forget who fetches for `link`; whether anyone did."""
        identity = self._identities.pop(link, None)
        if identity is None:
            return False
        del self._links[identity]
        return True

    def at(self, link: str) -> bytes | None:
        """The routing id of who fetches for `link`."""
        return self._identities.get(link)

    def link(self, identity: bytes) -> str | None:
        """What a peer that grants credit fetches for."""
        link = self._links.get(identity)
        if link is not None:
            self._identities.move_to_end(link)
        return link


@dataclass(slots=True)
class Outbox:
    """Answers to clients whose queues are full, until they read again; bounded for each client and in all.

    Beyond the bounds the oldest answer of the client that has most is dropped: it can ask again.

    Attributes:
        count: Messages kept for one client at most.
        client_bytes: Bytes kept for one client at most, or one message.
        nbytes: Bytes kept for all clients at most, or one message.
        waiting: Messages by routing id, the oldest first.
        dropped: Messages that were given up: the client had gone, or did not read for too long.
    """

    count: int
    client_bytes: int
    nbytes: int
    waiting: dict[bytes, deque[tuple[bytes, Sequence[Any]]]] = field(default_factory=dict)
    dropped: int = 0
    _held: dict[bytes, int] = field(default_factory=dict)
    _total: int = 0

    def send(self, socket: Socket, identity: bytes, header: bytes, frames: Sequence[Any]) -> None:
        """Send now, or keep the message where the client's queue is full."""
        queue = self.waiting.get(identity)
        if queue is None:
            match send(socket, header, frames, identity):
                case Sent.YES:
                    return
                case Sent.GONE:
                    self.dropped += 1
                    return
            queue = self.waiting[identity] = deque()
            self._held[identity] = 0
        queue.append((header, frames))
        self._count(identity, _size(header, frames))
        while len(queue) > self.count or (len(queue) > 1 and self._held[identity] > self.client_bytes):
            self._drop(identity)
        while self._total > self.nbytes and (len(self.waiting) > 1 or len(queue) > 1):
            self._drop(max(self._held, key=self._held.__getitem__))

    def retry(self, socket: Socket) -> None:
        """Send what can be sent now."""
        for identity, queue in list(self.waiting.items()):
            while queue:
                header, frames = queue[0]
                sent = send(socket, header, frames, identity)
                if sent is Sent.LATER:
                    break
                if sent is Sent.GONE:
                    self.dropped += len(queue)
                    queue.clear()
                    break
                queue.popleft()
                self._count(identity, -_size(header, frames))
            if not queue:
                self._end(identity)

    def _drop(self, identity: bytes) -> None:
        """Give the oldest message of a client up."""
        queue = self.waiting[identity]
        self._count(identity, -_size(*queue.popleft()))
        self.dropped += 1
        if not queue:
            self._end(identity)

    def _count(self, identity: bytes, size: int) -> None:
        self._held[identity] += size
        self._total += size

    def _end(self, identity: bytes) -> None:
        del self.waiting[identity]
        self._total -= self._held.pop(identity)


def _size(header: bytes, frames: Sequence[Any]) -> int:
    return len(header) + sum(len(frame) for frame in frames)
