"""The thread that says who is let in: ZeroMQ asks it about every handshake with a key (ZAP, RFC 27).

One per context with bound sockets that have keys. It also reads the allow-list again as it changes, and tells once of
each peer that was refused. Without it nobody is let in: sockets are bound with ZMQ_ZAP_ENFORCE_DOMAIN.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from node_agent.inbox import Inbox
from node_agent.noise import Seldom
from node_agent.security import OPEN, Door, Security
from node_agent.threads import Shell

log = logging.getLogger(__name__)

REREAD_S: Final = 0.25
"""How often the allow-list is looked at: what is revoked ends within this time."""

REMEMBERED: Final = 1024
"""Refused peers that are told of once; of more, the one that came longest ago may be told of again."""

_ZAP: Final = "inproc://zeromq.zap.01"
_FAILED: Final = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL


class Gate(Shell):
    """See the module.

    Args:
        context: Whose handshakes it decides.
        security: Has keys.
    """

    def __init__(self, context: zmq.Context[Any], security: Security) -> None:
        super().__init__("zap")
        assert security.keys is not None
        self._keys = security.keys
        self._security = security
        self._context = context
        self._doors: dict[str, Door] = {}
        self._inbox: Inbox[Callable[[], None]] = Inbox()
        self._poller = zmq.Poller()
        self._monitors: dict[Any, tuple[str, Seldom, Callable[[], object]]] = {}
        self._told: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._due = 0.0

    # ------------------------------------------------------------------------------------- from other threads

    def add(self, door: Door, monitor: str, hung_up: Callable[[], object]) -> None:
        """Knows a door from now on, and listens to what `monitor`, an inproc endpoint, says of its socket."""
        self._doors[door.name] = door
        self._inbox.put(lambda: self._listen(door, monitor, hung_up))

    def wake(self) -> None:
        """See `Shell.wake`."""
        self._inbox.put(_nothing)

    def end(self) -> None:
        """Ends the thread; before the context does."""
        self.stop()
        self.join(5.0)
        self._inbox.close()

    # ---------------------------------------------------------------------------------------------- the thread

    def open(self) -> None:
        """See `Shell.open`."""
        self._socket = self._context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(_ZAP)
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._inbox.fd, zmq.POLLIN)
        for problem in self._keys.allowed.problems:
            log.error("%s", problem)

    def shut(self) -> None:
        """See `Shell.shut`."""
        for socket in self._monitors:
            socket.close(0)
        if hasattr(self, "_socket"):
            self._socket.close(0)

    def turn(self) -> None:
        """See `Shell.turn`."""
        wait = max(0.0, self._due - time.monotonic())
        ready = dict(self._poller.poll(int(wait * 1000) + 1))
        if time.monotonic() >= self._due or self._socket in ready:
            # Before an answer too: who was revoked just now is not let in.
            self._due = time.monotonic() + REREAD_S
            for problem in self._keys.refresh():
                log.error("%s", problem)
        for socket in ready:
            if socket == self._inbox.fd:
                for call in self._inbox.take():
                    call()
            elif socket is self._socket:
                self._answer(self._socket.recv_multipart())
            elif socket in self._monitors:
                self._watched(socket)

    def _answer(self, frames: list[bytes]) -> None:
        version, number, domain, address, _, mechanism, *credentials = [*frames, *[b""] * (6 - len(frames))]
        public = z85.encode(credentials[0]).decode() if [len(each) for each in credentials] == [32] else ""
        why = "its mechanism is not CURVE"
        if mechanism == b"CURVE" and public:
            why = self._problem(domain.decode(errors="replace"), public)
        if why:
            self._tell(domain.decode(errors="replace"), address.decode(errors="replace"), public, why)
        status, text = (b"400", b"not authorised") if why else (b"200", b"")
        self._socket.send_multipart([version, number, status, text, b"" if why else public.encode(), b""])

    def _problem(self, domain: str, public: str) -> str:
        """Why the owner of a key is not let in; empty if it is."""
        door = self._doors.get(domain)
        certificate = self._security.who(public)
        if door is None:
            return "this socket lets nobody in"
        if certificate is None:
            return "its key is not authorised"
        own = self._security.own
        if certificate.role in door.roles or (own is not None and public == own.public):
            return ""
        return f"{certificate.name!r} has the role {certificate.role}"

    def _tell(self, domain: str, address: str, public: str, why: str) -> None:
        peer = (domain, public or address)
        if peer not in self._told:
            log.warning(
                "Refused a peer at %s on the %s socket: %s (public key %s).", address, domain, why, public
            )
        self._told[peer] = None
        self._told.move_to_end(peer)
        while len(self._told) > REMEMBERED:
            self._told.popitem(last=False)

    def _listen(self, door: Door, monitor: str, hung_up: Callable[[], object]) -> None:
        socket = self._context.socket(zmq.PAIR)
        socket.setsockopt(zmq.LINGER, 0)
        with contextlib.suppress(zmq.ZMQError):  # the watched socket was closed meanwhile
            socket.connect(monitor)
        self._monitors[socket] = (door.name, Seldom(), hung_up)
        self._poller.register(socket, zmq.POLLIN)

    def _watched(self, socket: Any) -> None:
        """A peer left; or its handshake broke off before ZeroMQ asked: ZAP hears nothing of these."""
        domain, seldom, hung_up = self._monitors[socket]
        event = recv_monitor_message(socket)["event"]
        if event == zmq.EVENT_MONITOR_STOPPED:
            self._poller.unregister(socket)
            del self._monitors[socket]
            socket.close(0)
            return
        if event == zmq.EVENT_DISCONNECTED:
            hung_up()
            return
        more = seldom.told(time.monotonic())
        if more is not None:
            log.warning(
                "A handshake on the %s socket broke off: the peer has no keys, or expects another key here%s.",
                domain,
                more,
            )


class Context(zmq.Context[zmq.Socket[bytes]]):
    """A ZeroMQ context whose sockets are protected as `security` says; see `node_agent.link`.

    Args:
        security: For all of them.
    """

    security: Security = OPEN
    _gate: Gate | None = None
    _guard: threading.Lock | None = None
    _doors: int = 0

    def __init__(self, security: Security = OPEN) -> None:
        super().__init__()
        self.security = security
        self._guard = threading.Lock()

    def admit(self, socket: zmq.Socket[bytes], door: Door, hung_up: Callable[[], object]) -> None:
        """Lets through `door` who may pass it, from now on; before `socket` is bound, in its thread.

        A socket has one monitor, which is taken here: `hung_up` is called, by another thread, when a peer has left.
        """
        assert self._guard is not None
        with self._guard:
            if self._gate is None:
                gate = Gate(self, self.security)
                gate.start()
                self._gate = gate
            self._doors += 1
            monitor = f"inproc://gate-{self._doors}"
        socket.monitor(monitor, _FAILED | zmq.EVENT_DISCONNECTED | zmq.EVENT_MONITOR_STOPPED)
        self._gate.add(door, monitor, hung_up)

    def _end_gate(self) -> None:
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.end()

    def destroy(self, linger: int | None = None) -> None:
        """See pyzmq."""
        self._end_gate()
        super().destroy(linger)

    def term(self) -> None:
        """See pyzmq."""
        self._end_gate()
        super().term()


def _nothing() -> None:
    """Wakes the thread."""
