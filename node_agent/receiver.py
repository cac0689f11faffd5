"""The receiving side of the data thread: takes items in, checks them, and grants credit.

It has the data-in ROUTER, where upstream peers dial in, and a DEALER to the fetch port of each upstream peer
that this agent dials.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import zmq

from node_agent.connection import Handshake, ReceivingEnd
from node_agent.data_loop import GREETING_S, DataLoop
from node_agent.doors import DATA
from node_agent.errors import AgentError, FlowError, FrameError, WireError
from node_agent.flow import Window
from node_agent.frames import encode_header
from node_agent.limits import CONNECTIONS, DEFAULT, Limits
from node_agent.link import Context, Monitor, Socket, bind, borrow, dial, incoming, open_socket, receive, send
from node_agent.messages import (
    Cancel,
    DataHeader,
    Failure,
    Greeting,
    Item,
    PeerRef,
    Probe,
    ProbeEcho,
    Refusal,
)
from node_agent.noise import Seldom
from node_agent.tracing import Marks
from node_agent.work import Known, LoadedRoute, Origin, Work

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Upstream:
    """A peer whose fetch port this agent dials."""

    origin: Origin
    monitor: Monitor
    greeted: float = 0.0
    """Monotonic time of the last greeting."""


class Receiver:
    """See the module. Everything happens in the data thread, but where another is named.

    Args:
        loop: The data thread.
        context: The process's context.
        name: This device's name.
        host: Address to bind to.
        port: Data-in port; 0 for any.
        admit: Takes items that have a partition to run.
        forward: Takes items that go straight on.
        window: What each upstream connection may have under way.
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
        admit: Callable[[Work], None],
        forward: Callable[[Work], None],
        window: Window,
        limits: Limits = DEFAULT,
    ) -> None:
        self.routes: dict[tuple[int, int], LoadedRoute] = {}
        """Replaced as a whole by the control thread."""
        self.stale = 0
        self.held = 0
        """Items that this agent holds."""
        self.port = 0
        self.short_way: Callable[[LoadedRoute, Known, Item, list[Any], Origin, int], bool] = _closed
        """Takes items that are like the one before, if it can; see `node_agent.short_way`."""
        self.tell: Callable[[PeerRef, DataHeader], object] = _closed
        """Says what takes no credit to the next hop; see `Sender.tell`."""
        self._loop = loop
        self._context = context
        self._name = name
        self._bind = (host, port)
        self._admit = admit
        self._forward = forward
        self._default = window
        self._windows: dict[str, Window] = {}
        self._limits = limits
        self._origins: dict[bytes, Origin] = {}
        self._upstreams: dict[PeerRef, _Upstream] = {}
        self._spoiled: set[PeerRef] = set()
        self._noise = Seldom()
        self._paused = False

    def open(self) -> None:
        """Binds the data-in port."""
        self._router = open_socket(self._context, zmq.ROUTER, purpose="data", limits=self._limits)
        self.port = bind(self._router, *self._bind, door=DATA)
        borrow(self._router, self._loop.watch, self._loop.unwatch)
        self._loop.watch(self._router, self._read_router)

    def shut(self) -> None:
        """Closes every socket."""
        for peer in list(self._upstreams):
            self._hang_up(peer)
        if hasattr(self, "_router"):
            self._router.close()

    def release(self, origin: Origin, nbytes: int) -> None:
        """An item from `origin` is no longer held."""
        self.held -= 1
        credit = origin.end.window.release(nbytes)
        # A connection that is gone took its credit with it: the one after it began with a whole window.
        if credit is not None and origin.end.ready:
            send(origin.socket, encode_header(credit), identity=origin.identity)

    def _read_router(self) -> None:
        # One message a call: the loop asks all its sockets for more at once.
        try:
            identity, header, frames = receive(self._router, routed=True, limits=self._limits)
        except zmq.Again:
            return
        kind = type(header)
        if kind is Item or kind is Failure:
            origin = self._origins.get(identity)
            if origin is None:
                self._refuse(self._router, identity, "no-greeting", "Say Greeting before sending items.")
            else:
                self._take(origin, header, frames)  # type: ignore[arg-type]
        else:
            self._other(identity, header)

    def _other(self, identity: bytes, header: DataHeader | FrameError) -> None:
        if isinstance(header, Probe):
            send(self._router, encode_header(ProbeEcho(header.id, time.process_time())), identity=identity)
            return
        if isinstance(header, FrameError):
            self._complain("A message on the data socket was refused: %s", header)
            self._forget(identity)
            self._refuse(self._router, identity, header.code, str(header))
            return
        origin = self._origins.get(identity)
        if isinstance(header, Cancel):
            if origin is not None:
                self._cancel(header)
            return
        if not isinstance(header, Greeting):
            if origin is not None:
                self._answer(origin, header)
            return
        self._forget_older(identity, header.name)
        if origin is None:
            if len(self._origins) >= CONNECTIONS:
                # A ROUTER does not tell who is gone. Somebody who is there greets again.
                oldest = next(iter(self._origins))
                self._forget(oldest)
                self._refuse(self._router, oldest, "too-many-peers", f"{CONNECTIONS} peers are connected.")
            origin = self._origin(self._router, identity)
            origin.end.opened()
        # Last in line to be forgotten.
        self._origins.pop(identity, None)
        self._origins[identity] = origin
        self._answer(origin, header)

    def _forget(self, identity: bytes) -> None:
        origin = self._origins.pop(identity, None)
        if origin is not None:
            origin.end.closed()

    def _forget_older(self, identity: bytes, name: str) -> None:
        """A ROUTER does not tell when a peer is gone; a peer that greets again has left its old connection."""
        for other, origin in list(self._origins.items()):
            if other != identity and origin.end.handshake.peer == name:
                self._forget(other)

    def _answer(self, origin: Origin, header: DataHeader) -> None:
        state = origin.end.handshake.state
        try:
            answers = origin.end.handle(header)
        except WireError as error:
            log.debug("Ignored on the data socket: %s", error)
            return
        for answer in answers:
            send(origin.socket, encode_header(answer), identity=origin.identity)
        self._fit(origin)
        handshake = origin.end.handshake
        if handshake.state == "refused" and state != "refused":
            self._complain(
                "Data connection with %s refused: %s", handshake.peer or "a peer", handshake.reason
            )
            if origin.identity is not None:
                self._forget(origin.identity)
            else:
                self._loop.remind()

    def _take(self, origin: Origin, header: Item | Failure, frames: list[Any]) -> bool:
        """Takes an item; False if its sender had no credit for it, and is heard no more."""
        arrived = time.monotonic_ns()
        loaded = self.routes.get((header.epoch, header.hop))
        known = loaded.known if loaded is not None and type(header) is Item else None
        # The same object: `decode_header` remembers tensor headers.
        if known is not None and known.tensors is header.tensors:  # type: ignore[union-attr]
            nbytes = known.nbytes
        else:
            known = None
            nbytes = sum(tensor.nbytes for tensor in header.tensors) if type(header) is Item else 0
        try:
            origin.end.window.receive(nbytes)
        except FlowError as error:
            self._complain("%s broke the flow rules: %s", origin.end.handshake.peer, error)
            if origin.identity is not None:
                self._forget(origin.identity)
            origin.end.closed()
            self._refuse(origin.socket, origin.identity, error.code, str(error))
            return False
        self.held += 1
        if loaded is None:
            self.stale += 1
            self.release(origin, nbytes)
            return True
        counters = loaded.counters
        counters.arrived += 1
        counters.bytes_in += nbytes
        if known is not None and self.short_way(loaded, known, header, frames, origin, arrived):  # type: ignore[arg-type]
            return True
        work = Work(loaded, header, frames, origin, nbytes, arrived)
        if type(header) is Item and header.trace:
            work.marks = Marks()
        if isinstance(header, Failure):
            work.fail(header.code, header.message, header.where)
            self._forward(work)
        elif loaded.session is None:
            work.forward = list(range(len(frames)))
            self._forward(work)
        else:
            self._admit(work)
        return True

    def _cancel(self, header: Cancel) -> None:
        """Ends a request here, or wherever it has gone."""
        loaded = self.routes.get((header.epoch, header.hop))
        if loaded is not None:
            loaded.cancel(header.request)
            self.tell(loaded.route.spec.next, Cancel(header.epoch, header.request, header.hop + 1))

    def _complain(self, text: str, *about: object) -> None:
        more = self._noise.told(time.monotonic())
        if more is not None:
            log.warning(text + "%s", *about, more)

    def _refuse(self, socket: Socket, identity: bytes | None, code: str, text: str) -> None:
        send(socket, encode_header(Refusal(code, text)), identity=identity)

    def _origin(self, socket: Socket, identity: bytes | None) -> Origin:
        end = ReceivingEnd(Handshake(self._name, dialled=identity is None), self._default)
        origin = Origin(end, socket, identity)
        if self._paused:
            end.window.pause()
        return origin

    # ----------------------------------------------------------------------------------- peers that are diall

    def dial(self, peer: PeerRef) -> None:
        """Fetches items from `peer`."""
        if peer in self._upstreams:
            return
        self._spoiled.discard(peer)
        socket = open_socket(self._context, zmq.DEALER, purpose="data", limits=self._limits)
        monitor = Monitor(socket)
        try:
            dial(socket, peer.endpoint, peer.name)
        except AgentError as error:
            self._complain("%s at %s cannot be dialled: %s %s", peer.name, peer.endpoint, error, error.hint)
            monitor.close()
            socket.close()
            self._spoiled.add(peer)
            self._loop.remind()
            return
        self._upstreams[peer] = _Upstream(self._origin(socket, None), monitor)
        self._loop.watch(socket, lambda: self._read_dialled(peer))
        self._loop.watch(monitor.socket, lambda: self._watch_dialled(peer))

    def _watch_dialled(self, peer: PeerRef) -> None:
        upstream = self._upstreams[peer]
        for event in upstream.monitor.events():
            if event == "up":
                self._greet(upstream)
            elif event == "down":
                log.info("The data connection to %s at %s broke.", peer.name, peer.endpoint)
                upstream.origin.end.closed()
            elif upstream.monitor.refusal is not None:
                self._complain("%s at %s: %s", peer.name, peer.endpoint, upstream.monitor.refusal)
                self._spoil(peer)
                return

    def _greet(self, upstream: _Upstream) -> None:
        """Begins from the greeting: what was held before owes credit to nobody."""
        upstream.origin.end.closed()
        upstream.origin = self._origin(upstream.origin.socket, None)
        upstream.greeted = time.monotonic()
        for header in upstream.origin.end.opened():
            send(upstream.origin.socket, encode_header(header))
        self._loop.remind()

    def greet_again(self, now: float) -> None:
        """See `Part.greet_again`."""
        for peer in list(self._spoiled):
            self.dial(peer)
        for upstream in self._upstreams.values():
            state = upstream.origin.end.handshake.state
            if state == "refused" or (state == "greeting" and now - upstream.greeted >= GREETING_S):
                self._greet(upstream)
            elif state == "greeting":
                self._loop.remind()

    def _read_dialled(self, peer: PeerRef) -> None:
        upstream = self._upstreams[peer]
        origin = upstream.origin
        for _, got, frames in incoming(origin.socket, routed=False, limits=self._limits):
            if isinstance(got, FrameError):
                self._complain("A message from %s was refused: %s", peer.name, got)
                self._spoil(peer)
                return
            if isinstance(got, Cancel):
                self._cancel(got)
            elif not isinstance(got, Item | Failure):
                self._answer(origin, got)
            elif origin.end.ready and not self._take(origin, got, frames):
                self._spoil(peer)
                return

    def _spoil(self, peer: PeerRef) -> None:
        """What both sides know of their credit differs from now on: hangs up, and dials again in a while."""
        self._hang_up(peer)
        self._spoiled.add(peer)
        self._loop.remind()

    def size(self, windows: Mapping[str, Window]) -> None:
        """Sets what peers, by name, may have under way; others have the default."""
        self._windows = dict(windows)
        for origin in [*self._origins.values(), *(upstream.origin for upstream in self._upstreams.values())]:
            self._fit(origin)

    def _fit(self, origin: Origin) -> None:
        """Gives a greeted connection the window of its peer."""
        end = origin.end
        wanted = self._windows.get(end.handshake.peer, self._default)
        if end.ready and end.window.window != wanted:
            credit = end.window.resize(wanted)
            if credit is not None:
                send(origin.socket, encode_header(credit), identity=origin.identity)

    def keep(self, peers: frozenset[PeerRef]) -> None:
        """Hangs up on upstream peers that are not among `peers`."""
        self._spoiled &= peers
        for peer in [peer for peer in self._upstreams if peer not in peers]:
            self._hang_up(peer)

    def _hang_up(self, peer: PeerRef) -> None:
        upstream = self._upstreams.pop(peer)
        upstream.origin.end.closed()
        for each in (upstream.origin.socket, upstream.monitor.socket):
            self._loop.unwatch(each)
        upstream.monitor.close()
        upstream.origin.socket.close()

    def pause(self) -> None:
        """Grants no more credit."""
        self._paused = True
        for origin in [*self._origins.values(), *(upstream.origin for upstream in self._upstreams.values())]:
            origin.end.window.pause()


def _closed(*_: object) -> bool:
    """Nothing takes the short way."""
    return False
