"""The control thread: takes orders, keeps the heart beating, and never does anything that takes long."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import zmq

from node_agent import events as ev
from node_agent.actions import Actions
from node_agent.controllers import REMIND_S
from node_agent.core import AgentCore
from node_agent.doors import CONTROL
from node_agent.errors import AgentError, FrameError, NotAllowedError, said
from node_agent.frames import decode_control, encode_control
from node_agent.inbox import Inbox
from node_agent.link import Context, Monitor, Sent, Socket, bind, dial, open_socket, refused, send
from node_agent.messages import HEARTBEAT_S, Chunk
from node_agent.noise import Seldom
from node_agent.notify import Notifier
from node_agent.security import DISPATCHER
from node_agent.threads import Shell

log = logging.getLogger(__name__)

LISTEN = "listen"
"""Where connections come from that dispatchers opened."""

STOP_LINGER_MS = 1_000
"""The last answers get this long to leave."""

DIAL_AGAIN_S = 2.0
"""Pause before a dispatcher is dialled again that refused this agent's key."""

HANG_S = 300.0
"""An item older than this with nothing finished since is a hang, and a service manager's watchdog may act on it."""

_BURST = 32
"""Messages taken from one socket before the others get their turn."""


def dialled(endpoint: str) -> ev.Connection:
    """The name of the connection that this agent opens to `endpoint`."""
    return (endpoint, b"")


class Control(Shell):
    """See the module.

    Args:
        context: The process's context.
        host: Address to bind to.
        port: Control port; 0 for any.
        dials: Endpoints of dispatchers to register with.
        core: Decides.
        actions: Carries out what is not about a control socket.
        on_end: Called when the core says stop.
        notifier: Tells the service manager that the agent is alive.
    """

    def __init__(
        self,
        context: Context,
        host: str,
        port: int,
        dials: tuple[str, ...],
        *,
        core: AgentCore,
        actions: Actions,
        on_end: Callable[[], None],
        notifier: Notifier | None = None,
    ) -> None:
        super().__init__("control")
        self._notifier = Notifier({}) if notifier is None else notifier
        self.inbox: Inbox[ev.Event] = Inbox()
        self.port = 0
        self._context = context
        self._bind = (host, port)
        self._dials = dials
        self._core = core
        self._actions = actions
        self._on_end = on_end
        self._sockets: dict[str, Socket] = {}
        self._sources: dict[Any, str] = {}
        self._monitors: dict[Any, tuple[str, Monitor]] = {}
        self._poller = zmq.Poller()
        self._next_tick = 0.0
        self._barred: dict[str, float] = {}
        self._explained: dict[str, tuple[str, float]] = {}
        self._noise = Seldom()

    @property
    def state(self) -> str:
        """`serving` or `draining`; from any thread."""
        return self._core.state

    def wake(self) -> None:
        """See `Shell.wake`."""
        self.inbox.put(ev.Tick(self._actions.gauge()))

    def open(self) -> None:
        """See `Shell.open`."""
        router = open_socket(self._context, zmq.ROUTER, purpose="control")
        self._watch(LISTEN, router)
        self.port = bind(router, *self._bind, door=CONTROL)
        self._poller.register(self.inbox.fd, zmq.POLLIN)
        for endpoint in self._dials:
            self._dial(endpoint)
        self._next_tick = time.monotonic() + HEARTBEAT_S

    def shut(self) -> None:
        """See `Shell.shut`."""
        for _, monitor in self._monitors.values():
            monitor.close()
        for socket in self._sockets.values():
            socket.close(STOP_LINGER_MS)

    def _dial(self, endpoint: str) -> None:
        # libzmq reconnects for ever, waiting longer each time up to its RECONNECT_IVL_MAX.
        socket = open_socket(self._context, zmq.DEALER, purpose="control")
        self._watch(endpoint, socket)
        monitor = Monitor(socket)
        self._monitors[monitor.socket] = (endpoint, monitor)
        self._poller.register(monitor.socket, zmq.POLLIN)
        try:
            dial(socket, endpoint, DISPATCHER)
        except AgentError as error:
            self._bar(endpoint, f"The dispatcher at {endpoint}: {said(error)}")

    def _bar(self, endpoint: str, why: str) -> None:
        """Something keeps this agent from a dispatcher: it may be put right, so it is dialled anew in a while."""
        if endpoint not in self._barred:
            self._barred[endpoint] = time.monotonic() + DIAL_AGAIN_S
            self._explain(endpoint, why)

    def _explain(self, endpoint: str, why: str) -> None:
        now = time.monotonic()
        self._core.controllers.explained(dialled(endpoint), now)
        before, again = self._explained.get(endpoint, ("", 0.0))
        if why == before and now < again:
            return
        more = self._noise.told(now)
        if more is not None:
            self._explained[endpoint] = (why, now + REMIND_S)
            log.error("%s%s", why, more)

    def _dial_again(self, endpoint: str) -> None:
        """On a new socket: libzmq gives one up whose key was refused."""
        del self._barred[endpoint]
        socket = self._sockets.pop(endpoint)
        for watched, (whose, monitor) in list(self._monitors.items()):
            if whose == endpoint:
                self._poller.unregister(watched)
                del self._monitors[watched]
                monitor.close()
        self._poller.unregister(socket)
        del self._sources[socket]
        socket.close(0)
        self._dial(endpoint)

    def _watch(self, source: str, socket: Socket) -> None:
        self._sockets[source] = socket
        self._sources[socket] = source
        self._poller.register(socket, zmq.POLLIN)

    def turn(self) -> None:
        """See `Shell.turn`."""
        wait = max(0.0, self._next_tick - time.monotonic())
        for ready, _ in self._poller.poll(int(wait * 1000) + 1):
            if ready == self.inbox.fd:
                for event in self.inbox.take():
                    self._handle(event)
            elif ready in self._monitors:
                self._connection_changed(*self._monitors[ready])
            else:
                self._read(self._sources[ready], ready)
        now = time.monotonic()
        for endpoint in [endpoint for endpoint, at in self._barred.items() if now >= at]:
            self._dial_again(endpoint)
        if now >= self._next_tick:
            # After a pause of the whole machine one heartbeat is enough: those that were missed tell nothing.
            self._next_tick = max(self._next_tick + HEARTBEAT_S, now)
            self._beat(now)

    def _beat(self, now: float) -> None:
        gauge = self._actions.gauge()
        self._notifier.alive(now, gauge.progress, gauge.item_age_s, HANG_S)
        if not self._core.calm:
            self._handle(ev.Tick(gauge))
            return
        # The short way: a small box pays for ten of these a second, on cold caches, as much as for many items.
        data = encode_control(self._core.beat(gauge))
        for connection in self._core.controllers.connections:
            self._post(connection, data)

    def _connection_changed(self, endpoint: str, monitor: Monitor) -> None:
        for change in monitor.events():
            if change == "up":
                self._explained.pop(endpoint, None)
                self._handle(ev.Dialled(dialled(endpoint)))
            elif change == "down":
                self._handle(ev.Lost(dialled(endpoint)))
            else:
                refusal = monitor.refusal
                if refusal is not None:
                    self._bar(endpoint, f"The dispatcher at {endpoint}: {said(refusal)}")
                else:
                    why = f"{endpoint} is not a dispatcher of a matching build, or refused the handshake."
                    (self._bar if monitor.dead else self._explain)(endpoint, why)

    def _read(self, source: str, socket: Socket) -> None:
        try:
            for _ in range(_BURST):
                identity = socket.recv(zmq.NOBLOCK) if source == LISTEN else b""
                first = socket.recv(zmq.NOBLOCK, copy=False)
                payload: Any = None
                parts, more = 0, first.more
                while more:
                    frame = socket.recv(zmq.NOBLOCK, copy=False)
                    parts, more = parts + 1, frame.more
                    payload = frame if parts == 1 else None
                event = self._event((source, identity), first, payload, parts)
                self._handle(event)
                if isinstance(event, ev.Unreadable) and event.code == NotAllowedError.code:
                    # Nor does it hear this agent's heart any more.
                    self._handle(ev.Lost(event.connection))
        except zmq.Again:
            return

    def _event(self, connection: ev.Connection, first: Any, payload: Any, parts: int) -> ev.Event:
        try:
            message = decode_control(first.buffer)
            if (
                connection[0] == LISTEN
                and (refusal := refused(self._sockets[LISTEN], first, message)) is not None
            ):
                raise refusal
            if parts > int(isinstance(message, Chunk)):
                raise FrameError(f"{type(message).__name__} came with {parts} frames after it.")
        except FrameError as error:
            return ev.Unreadable(connection, error.code, str(error))
        return ev.Received(connection, message, payload)

    def _handle(self, event: ev.Event) -> None:
        for instruction in self._core.handle(event, time.monotonic()):
            if isinstance(instruction, ev.Say):
                self._say(instruction)
            elif isinstance(instruction, ev.Stop):
                self._on_end()
            else:
                self._actions.carry_out(instruction)

    def _say(self, instruction: ev.Say) -> None:
        self._post(instruction.connection, encode_control(instruction.message))

    def _post(self, connection: ev.Connection, data: bytes) -> None:
        source, identity = connection
        sent = send(self._sockets[source], data, identity=identity if source == LISTEN else None)
        # A connection that stands but takes nothing is full of heartbeats that nobody reads: give it up as
        # well.
        if sent is Sent.GONE or (sent is Sent.LATER and source == LISTEN):
            self._handle(ev.Lost(connection))
