"""The sending side of the data thread: hands results to the next hop as its credit allows.

It has the fetch ROUTER, where downstream peers that must dial come for their items, and a DEALER to the
data-in port of each downstream peer that this agent dials. Items for a peer that is away wait; credit granted
upstream bounds them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import zmq

from node_agent.connection import Handshake, SendingEnd
from node_agent.data_loop import GREETING_S, DataLoop
from node_agent.doors import DATA
from node_agent.encoding import encode
from node_agent.errors import AgentError, FrameError, WireError, said
from node_agent.frames import encode_header, inlined
from node_agent.lending import Lender
from node_agent.limits import CONNECTIONS, DEFAULT, Limits
from node_agent.line import Line
from node_agent.link import Context, Monitor, Sent, Socket, bind, dial, incoming, open_socket, send
from node_agent.messages import DataHeader, Greeting, Item, PeerRef, Refusal
from node_agent.noise import Seldom
from node_agent.tracing import TraceRing
from node_agent.work import Work

log = logging.getLogger(__name__)

STOP_LINGER_MS = 2_000
"""At the end, results that were handed to ZeroMQ get this long to leave."""


@dataclass(slots=True, eq=False)
class _Downstream:
    """A peer that takes items."""

    peer: PeerRef
    end: SendingEnd
    socket: Socket
    identity: bytes | None = None
    monitor: Monitor | None = None
    pending: Line[Work] = field(default_factory=Line)
    greeted: float = 0.0
    """Monotonic time of the last greeting."""
    barred: bool = False
    """Its key, or ours, kept the two apart: it is dialled anew in a while."""


class Sender:
    """See the module. Everything happens in the data thread.

    Args:
        loop: The data thread.
        context: The process's context.
        name: This device's name.
        host: Address to bind to.
        port: Fetch port; 0 for any.
        release: Gives the credit of an item back upstream.
        limits: Bounds on messages.
    """

    def __init__(
        self,
        loop: DataLoop,
        context: Context,
        name: str,
        host: str,
        port: int,
        *,
        release: Callable[[Any, int], None],
        limits: Limits = DEFAULT,
    ) -> None:
        self.port = 0
        self.relayed = 0
        self.traces = TraceRing()
        self._loop = loop
        self._context = context
        self._name = name
        self._bind = (host, port)
        self._release = release
        self._limits = limits
        self._peers: dict[PeerRef, _Downstream] = {}
        self._fetchers: dict[bytes, _Downstream] = {}
        self._noise = Seldom()

    def open(self) -> None:
        """Binds the fetch port."""
        self._router = open_socket(self._context, zmq.ROUTER, purpose="data", limits=self._limits)
        self.port = bind(self._router, *self._bind, door=DATA)
        self._loop.watch(self._router, self._read_router)

    def shut(self) -> None:
        """Closes every socket."""
        for downstream in list(self._peers.values()):
            self._let_go(downstream, STOP_LINGER_MS)
        if hasattr(self, "_router"):
            self._router.close(STOP_LINGER_MS)

    # ----------------------------------------------------------------------------------------------- sending

    def submit(self, work: Work) -> None:
        """Sends an item to the next hop, now or when there is credit."""
        if work.loaded.closed:
            self._drop(work)
            return
        peer = work.loaded.route.spec.next
        downstream = self._peers.get(peer)
        if downstream is None:
            # An item may come before the call that was to connect downstream.
            self.attach(peer)
            downstream = self._peers[peer]
        if downstream.pending or not downstream.end.ready or not self._send(downstream, work):
            downstream.pending.put(work, work.priority)

    def open_to(self, peer: PeerRef) -> _Downstream | None:
        """The connection to a peer if an item may be sent there now, before none that waits; else None."""
        downstream = self._peers.get(peer)
        if downstream is None or downstream.pending:
            return None
        end = downstream.end
        window = end.window  # asked as `SendingEnd.ready` does, in one function less
        ready = end.handshake.state == "ready" and window.items > 0 and window.nbytes > 0
        return downstream if ready else None

    def tell(self, peer: PeerRef, header: DataHeader) -> None:
        """Says what takes no credit to a peer, if it can be said at once."""
        downstream = self._peers.get(peer)
        if downstream is not None and downstream.end.handshake.state == "ready":
            send(downstream.socket, encode_header(header), identity=downstream.identity)

    def _flush(self, downstream: _Downstream) -> None:
        pending = downstream.pending
        while pending and downstream.end.ready:
            if not self._send(downstream, pending.first()):
                return
            pending.take()

    def _send(self, downstream: _Downstream, work: Work) -> bool:
        """Sends one item; False when it must wait."""
        counters = work.loaded.counters
        relay = work.loaded.session is None
        header: DataHeader
        if not work.fail_if_expired(self._name) and work.encoded is None:
            encode(work, self._name)
        frames: list[Any] = []
        nbytes = 0
        if work.failure is not None:
            header = work.failure
        else:
            assert work.encoded is not None
            assert isinstance(work.item, Item)
            tensors, frames = work.encoded
            nbytes = sum(tensor.nbytes for tensor in tensors)
            item = work.item
            left = work.remaining_ns()
            inline = inlined(frames) if downstream.end.handshake.inline else ()
            header = Item(
                item.epoch, item.request, item.hop + 1, left, tensors, item.trace, item.priority, inline
            )
            frames = [] if inline else frames
        handed_ns = time.monotonic_ns() if work.marks is not None else 0
        sent = send(downstream.socket, encode_header(header), frames, downstream.identity)
        if sent is not Sent.YES:
            if sent is Sent.GONE:
                downstream.end.closed()
            return False
        downstream.end.window.take(nbytes)
        if work.failure is None:
            counters.items += 1
            counters.bytes_out += nbytes
            if relay:
                self.relayed += 1
                counters.wait_ns += time.monotonic_ns() - work.arrived_ns
        else:
            counters.failures += 1
        if work.marks is not None:
            self.traces.note(work, nbytes, handed_ns)
        self._release(work.origin, work.nbytes)
        return True

    def _drop(self, work: Work) -> None:
        work.loaded.counters.stale += 1
        self._release(work.origin, work.nbytes)

    # ------------------------------------------------------------------------------------------------- peers

    def attach(self, peer: PeerRef) -> None:
        """Gets ready to send to `peer`."""
        if peer in self._peers:
            return
        if not peer.endpoint:
            self._peers[peer] = _Downstream(peer, self._end(dialled=False), self._router)
            return
        socket = open_socket(self._context, zmq.DEALER, purpose="data", limits=self._limits)
        downstream = _Downstream(peer, self._end(dialled=True), socket)
        self._peers[peer] = downstream
        self._dial(downstream)

    def _dial(self, downstream: _Downstream) -> None:
        peer, socket = downstream.peer, downstream.socket
        downstream.monitor = monitor = Monitor(socket)
        self._loop.watch(socket, lambda: self._read_dialled(downstream))
        self._loop.watch(monitor.socket, lambda: self._watch_dialled(downstream))
        try:
            dial(socket, peer.endpoint, peer.name, downstream.end.handshake.lender)
        except AgentError as error:
            self._bar(downstream, error)

    def _bar(self, downstream: _Downstream, error: AgentError) -> None:
        peer = downstream.peer
        self._complain("%s at %s cannot be sent to: %s", peer.name, peer.endpoint, said(error))
        downstream.end.closed()
        downstream.barred = True
        self._loop.remind()

    def _dial_again(self, downstream: _Downstream) -> None:
        """On a new socket: ZeroMQ gives one up whose key was refused."""
        downstream.barred = False
        self._hang_up(downstream, 0)
        downstream.socket = open_socket(self._context, zmq.DEALER, purpose="data", limits=self._limits)
        self._dial(downstream)

    def _end(self, *, dialled: bool) -> SendingEnd:
        return SendingEnd(Handshake(self._name, dialled, lender=Lender() if dialled else None))

    def retire(self, epoch: int, kept: frozenset[PeerRef]) -> None:
        """Drops what waits for an epoch and lets go of peers that are not among `kept`."""
        for downstream in list(self._peers.values()):
            waiting = downstream.pending
            downstream.pending = Line()
            for work in waiting:
                if work.item.epoch == epoch:
                    self._drop(work)
                else:
                    downstream.pending.put(work, work.priority)
            if downstream.peer not in kept and downstream.peer.endpoint:
                for work in downstream.pending:  # of another epoch that is being taken out of force
                    self._drop(work)
                self._let_go(downstream, STOP_LINGER_MS)

    def _let_go(self, downstream: _Downstream, linger_ms: int) -> None:
        del self._peers[downstream.peer]
        self._hang_up(downstream, linger_ms)

    def _hang_up(self, downstream: _Downstream, linger_ms: int) -> None:
        if downstream.monitor is not None:
            for each in (downstream.socket, downstream.monitor.socket):
                self._loop.unwatch(each)
            downstream.monitor.close()
            downstream.socket.close(linger_ms)

    def greet_again(self, now: float) -> None:
        """See `Part.greet_again`."""
        for downstream in self._peers.values():
            state = downstream.end.handshake.state
            if not downstream.peer.endpoint:
                continue
            if downstream.barred:
                self._dial_again(downstream)
                continue
            if state == "refused" or (state == "greeting" and now - downstream.greeted >= GREETING_S):
                self._greet(downstream)
            elif state == "greeting":
                self._loop.remind()

    def _greet(self, downstream: _Downstream) -> None:
        downstream.greeted = time.monotonic()
        self._say(downstream, downstream.end.opened())
        self._loop.remind()

    def _say(self, downstream: _Downstream, headers: list[DataHeader]) -> None:
        for header in headers:
            send(downstream.socket, encode_header(header), identity=downstream.identity)

    def _watch_dialled(self, downstream: _Downstream) -> None:
        assert downstream.monitor is not None
        for event in downstream.monitor.events():
            if event == "up":
                self._greet(downstream)
            elif event == "down":
                peer = downstream.peer
                log.info("The data connection to %s at %s broke.", peer.name, peer.endpoint)
                downstream.end.closed()
            elif downstream.monitor.refusal is not None and not downstream.barred:
                self._bar(downstream, downstream.monitor.refusal)

    def _read_dialled(self, downstream: _Downstream) -> None:
        self._read(downstream.socket, lambda _, header: self._handle(downstream, header))

    def _read_router(self) -> None:
        self._read(self._router, self._from_fetcher)

    def _read(self, socket: Socket, handle: Callable[[bytes, DataHeader], None]) -> None:
        for identity, header, _ in incoming(socket, routed=socket is self._router, limits=self._limits):
            if isinstance(header, FrameError):
                self._complain("A message on the send socket was refused: %s", header)
                # Credit may have been in it. Both sides begin anew when the one that dialled greets again.
                refusal = Refusal(header.code, str(header))
                if socket is self._router:
                    send(socket, encode_header(refusal), identity=identity)
                handle(identity, refusal)
            else:
                handle(identity, header)

    def _from_fetcher(self, identity: bytes, header: DataHeader) -> None:
        downstream = self._fetchers.get(identity)
        if isinstance(header, Greeting):
            peer = PeerRef(header.name)
            if peer not in self._peers and len(self._peers) >= CONNECTIONS and not self._make_place():
                self._refuse(identity)
                return
            self.attach(peer)
            # Last in line to be forgotten.
            downstream = self._peers[peer] = self._peers.pop(peer)
            if downstream.identity is not None:
                self._fetchers.pop(downstream.identity, None)
            downstream.identity = identity
            downstream.end.opened()
            self._fetchers[identity] = downstream
        if downstream is not None:
            self._handle(downstream, header)

    def _make_place(self) -> bool:
        """Forgets the fetcher that greeted longest ago of those that nothing waits for; whether there was one."""
        for peer, downstream in self._peers.items():
            if not peer.endpoint and not downstream.pending:
                del self._peers[peer]
                if downstream.identity is not None:
                    # A ROUTER does not tell who is gone. Somebody who is there greets again.
                    self._fetchers.pop(downstream.identity, None)
                    self._refuse(downstream.identity)
                return True
        return False

    def _refuse(self, identity: bytes) -> None:
        refusal = Refusal("too-many-peers", f"{CONNECTIONS} peers are connected.")
        send(self._router, encode_header(refusal), identity=identity)

    def _complain(self, text: str, *about: object) -> None:
        more = self._noise.told(time.monotonic())
        if more is not None:
            log.warning(text + "%s", *about, more)

    def _handle(self, downstream: _Downstream, header: DataHeader) -> None:
        try:
            answers = downstream.end.handle(header)
        except WireError as error:
            self._complain("%s: %s", downstream.peer.name, error)
            return
        self._say(downstream, answers)
        if downstream.end.handshake.state == "refused":
            self._complain(
                "Data connection with %s refused: %s", downstream.peer.name, downstream.end.handshake.reason
            )
            self._loop.remind()
        self._flush(downstream)
