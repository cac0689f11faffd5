"""The send thread: encodes results and hands them to the next hop as its credit allows.

It owns the fetch ROUTER, where downstream peers that must dial come for their items, and a DEALER to the
data-in port of each downstream peer that this agent dials. Items for a peer that is away wait; credit granted
upstream bounds them.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import zmq

from node_agent.connection import Handshake, SendingEnd
from node_agent.errors import AgentError, FrameError, WireError, code_of
from node_agent.frames import encode_header, pack_tensor, unpack_tensor
from node_agent.inbox import Inbox
from node_agent.limits import CONNECTIONS, DEFAULT, Limits
from node_agent.link import Context, Monitor, Sent, Socket, bind, open_socket, receive, send
from node_agent.messages import DataHeader, Greeting, Item, PeerRef, Refusal, TensorHeader
from node_agent.noise import Seldom
from node_agent.threads import Shell
from node_agent.work import Work

log = logging.getLogger(__name__)

GREET_AGAIN_MS = 2_000
"""A downstream peer that refused is asked again this often: it may have been updated or have forgotten."""

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
    pending: deque[Work] = field(default_factory=deque)


class Sender(Shell):
    """See the module.

    Args:
        context: The process's context.
        name: This device's name.
        host: Address to bind to.
        port: Fetch port; 0 for any.
        release: Gives the credit of an item back upstream.
        limits: Bounds on messages.
    """

    def __init__(
        self,
        context: Context,
        name: str,
        host: str,
        port: int,
        *,
        release: Callable[[Any, int], None],
        limits: Limits = DEFAULT,
    ) -> None:
        super().__init__("send")
        self.inbox: Inbox[Work | Callable[[], None]] = Inbox()
        self.port = 0
        self.relayed = 0
        self._context = context
        self._name = name
        self._bind = (host, port)
        self._release = release
        self._limits = limits
        self._peers: dict[PeerRef, _Downstream] = {}
        self._fetchers: dict[bytes, _Downstream] = {}
        self._dialled: dict[Any, _Downstream] = {}
        self._noise = Seldom()
        self._poller = zmq.Poller()

    # -------------------------------------------------------------------------------------- from other thread

    def attach(self, peer: PeerRef) -> None:
        """Gets ready to send to `peer`."""
        self.inbox.put(lambda: self._attach(peer))

    def retire(self, epoch: int, keep: Callable[[], frozenset[PeerRef]], done: Callable[[], None]) -> None:
        """Drops what waits for an epoch and lets go of peers that are not among `keep()`; then calls `done`."""
        self.inbox.put(lambda: self._retire(epoch, keep, done))

    def wake(self) -> None:
        """See `Shell.wake`."""
        self.inbox.put(lambda: None)

    # ---------------------------------------------------------------------------------------------- the threa

    def open(self) -> None:
        """See `Shell.open`."""
        self._router = open_socket(self._context, zmq.ROUTER, purpose="data", limits=self._limits)
        self.port = bind(self._router, *self._bind)
        self._poller.register(self._router, zmq.POLLIN)
        self._poller.register(self.inbox.fd, zmq.POLLIN)

    def turn(self) -> None:
        """See `Shell.turn`."""
        refused = any(each.end.handshake.state == "refused" for each in self._dialled.values())
        ready = self._poller.poll(GREET_AGAIN_MS if refused else None)
        if not ready:
            self._greet_again()
        for socket, _ in ready:
            if socket == self.inbox.fd:
                for entry in self.inbox.take():
                    if isinstance(entry, Work):
                        self._submit(entry)
                    else:
                        entry()
            elif socket is self._router:
                self._read_router()
            else:
                self._read_dialled(socket)

    def shut(self) -> None:
        """See `Shell.shut`."""
        for downstream in list(self._peers.values()):
            self._let_go(downstream, STOP_LINGER_MS)
        self._router.close(STOP_LINGER_MS)

    # ----------------------------------------------------------------------------------------------- sending

    def _submit(self, work: Work) -> None:
        downstream = self._peers.get(work.loaded.route.spec.next)
        if downstream is None or work.loaded.closed:
            self._drop(work)
        elif downstream.pending or not downstream.end.ready or not self._send(downstream, work):
            downstream.pending.append(work)

    def _flush(self, downstream: _Downstream) -> None:
        pending = downstream.pending
        while pending and downstream.end.ready:
            if not self._send(downstream, pending[0]):
                return
            pending.popleft()

    def _send(self, downstream: _Downstream, work: Work) -> bool:
        """Sends one item; False when it must wait."""
        counters = work.loaded.counters
        relay = work.loaded.session is None
        header: DataHeader
        if not work.fail_if_expired(self._name) and work.encoded is None:
            begun = time.monotonic_ns()
            try:
                work.encoded = self._encode(work)
            except AgentError as error:
                work.fail(code_of(error), f"{error} {error.hint}".strip(), self._name)
            counters.encode_ns += time.monotonic_ns() - begun
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
            header = Item(item.epoch, item.request, item.hop + 1, work.remaining_ns(), tensors, item.trace)
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
        self._release(work.origin, work.nbytes)
        return True

    def _encode(self, work: Work) -> tuple[tuple[TensorHeader, ...], list[Any]]:
        assert isinstance(work.item, Item)
        tensors, route = work.item.tensors, work.loaded.route
        if work.outputs is None:
            return tensors, work.frames
        headers: list[TensorHeader] = []
        frames: list[Any] = []
        codec = route.spec.codec
        carried = {tensors[index].name: index for index in work.forward}
        for name in route.spec.send:
            if name in carried:
                index = carried[name]
                header, frame = tensors[index], work.frames[index]
                if header.codec not in (codec, "raw") or (header.codec == "raw" != codec):
                    header, frame = pack_tensor(name, unpack_tensor(header, frame), codec, header.dtype)
            else:
                header, frame = pack_tensor(name, work.outputs[name], codec, route.bits.get(name))
            headers.append(header)
            frames.append(frame)
        work.outputs = None
        return tuple(headers), frames

    def _drop(self, work: Work) -> None:
        work.loaded.counters.stale += 1
        self._release(work.origin, work.nbytes)

    # ------------------------------------------------------------------------------------------------- peers

    def _attach(self, peer: PeerRef) -> None:
        if peer in self._peers:
            return
        if not peer.endpoint:
            self._peers[peer] = _Downstream(peer, self._end(dialled=False), self._router)
            return
        socket = open_socket(self._context, zmq.DEALER, purpose="data", limits=self._limits)
        monitor = Monitor(socket)
        socket.connect(peer.endpoint)
        downstream = _Downstream(peer, self._end(dialled=True), socket, monitor=monitor)
        self._peers[peer] = downstream
        for each in (socket, monitor.socket):
            self._dialled[each] = downstream
            self._poller.register(each, zmq.POLLIN)

    def _end(self, *, dialled: bool) -> SendingEnd:
        return SendingEnd(Handshake(self._name, dialled))

    def _retire(self, epoch: int, keep: Callable[[], frozenset[PeerRef]], done: Callable[[], None]) -> None:
        kept = keep()
        for downstream in list(self._peers.values()):
            waiting = downstream.pending
            downstream.pending = deque(work for work in waiting if work.item.epoch != epoch)
            for work in waiting:
                if work.item.epoch == epoch:
                    self._drop(work)
            if downstream.peer not in kept and downstream.peer.endpoint:
                self._let_go(downstream, STOP_LINGER_MS)
        done()

    def _let_go(self, downstream: _Downstream, linger_ms: int) -> None:
        del self._peers[downstream.peer]
        if downstream.monitor is not None:
            for each in (downstream.socket, downstream.monitor.socket):
                self._poller.unregister(each)
                del self._dialled[each]
            downstream.monitor.close()
            downstream.socket.close(linger_ms)

    def _greet_again(self) -> None:
        for downstream in self._dialled.values():
            if downstream.end.handshake.state == "refused":
                self._say(downstream, downstream.end.opened())

    def _say(self, downstream: _Downstream, headers: list[DataHeader]) -> None:
        for header in headers:
            send(downstream.socket, encode_header(header), identity=downstream.identity)

    def _read_dialled(self, ready: Any) -> None:
        downstream = self._dialled.get(ready)
        if downstream is None:
            return
        if downstream.monitor is not None and ready is downstream.monitor.socket:
            for event in downstream.monitor.events():
                if event == "up":
                    self._say(downstream, downstream.end.opened())
                elif event == "down":
                    log.info(
                        "The data connection to %s at %s broke.",
                        downstream.peer.name,
                        downstream.peer.endpoint,
                    )
                    downstream.end.closed()
            return
        self._read(downstream.socket, lambda _, header: self._handle(downstream, header))

    def _read_router(self) -> None:
        self._read(self._router, self._from_fetcher)

    def _read(self, socket: Socket, handle: Callable[[bytes, DataHeader], None]) -> None:
        try:
            while True:
                identity, header, _ = receive(socket, routed=socket is self._router, limits=self._limits)
                if isinstance(header, FrameError):
                    self._complain("A message on the send socket was refused: %s", header)
                else:
                    handle(identity, header)
        except zmq.Again:
            return

    def _from_fetcher(self, identity: bytes, header: DataHeader) -> None:
        downstream = self._fetchers.get(identity)
        if isinstance(header, Greeting):
            peer = PeerRef(header.name)
            if peer not in self._peers and len(self._peers) >= CONNECTIONS:
                refusal = Refusal("too-many-peers", f"{CONNECTIONS} peers are connected.")
                send(self._router, encode_header(refusal), identity=identity)
                return
            self._attach(peer)
            downstream = self._peers[peer]
            if downstream.identity is not None:
                self._fetchers.pop(downstream.identity, None)
            downstream.identity = identity
            downstream.end.opened()
            self._fetchers[identity] = downstream
        if downstream is not None:
            self._handle(downstream, header)

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
        self._flush(downstream)
