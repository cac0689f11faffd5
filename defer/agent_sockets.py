"""The control sockets: one DEALER per agent that is dialled, one ROUTER for agents that dial and callers of the api.

What they bring goes to `defer.agents_core`; what that decides is the pool's to execute (`defer.agents`). All of it is
for the control thread.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from functools import partial
from typing import Literal

import zmq

from defer.agent_keys import AgentKeys
from defer.agents_core import AgentsCore, Instruction, Notify
from defer.documents.address import Address, parse_address
from defer.doors import API, message_at_api
from defer.errors import DeferError, UnknownDevice
from defer.socket_loop import SocketLoop
from node_agent import messages as m
from node_agent.errors import AgentError, sentences
from node_agent.frames import decode_control, encode_control
from node_agent.link import Monitor, bind, dial, open_socket, refused
from node_agent.security import Security
from node_agent.sockets import say

FAREWELL_MS = 200
"""How long the last messages to an agent may take to leave when its connection is closed."""

NAME_LETTERS = 64
"""As much of a name that somebody gives itself is told."""

BURST = 64
"""Messages read from one socket at a time: a flood there does not starve the others."""

ApiHandler = Callable[[bytes, list[bytes]], None]

Admit = Callable[[m.Hello], str]
"""Whether an agent may register: where the cluster file has that device, empty for one that registers; or raises."""


class AgentSockets:
    """The control connections, by device name.

    Args:
        loop: The control thread's.
        core: What hears of everything that happens to them.
        execute: Takes what the core decides.
        on_api: Takes the messages on the ROUTER that are not from a registered agent.
        security: How connections are protected.
        on_gone: Told the identity of a caller of the api that is gone when it is to be answered.
        admit: Whether an agent may register; all may where nobody says.
    """

    def __init__(
        self,
        loop: SocketLoop,
        core: AgentsCore,
        execute: Callable[[list[Instruction]], None],
        on_api: ApiHandler | None,
        security: Security,
        on_gone: Callable[[bytes], None] | None = None,
        admit: Admit | None = None,
    ) -> None:
        self._admit = admit
        self._loop, self._core, self._execute, self._on_api = loop, core, execute, on_api
        self._on_gone = on_gone
        self._curve = security.curve
        self._keys = AgentKeys(security)
        self._dealers: dict[str, zmq.Socket[bytes]] = {}
        self._monitors: dict[str, Monitor] = {}
        self._identities: dict[str, bytes] = {}
        self._router: zmq.Socket[bytes] | None = None
        self._router_monitor: Monitor | None = None

    def bind(self, endpoint: str) -> str:
        """Open the ROUTER at `tcp://host:port`; returns the endpoint with the port resolved.

        Raises:
            AgentError: The address cannot be bound.
        """
        address = parse_address(endpoint.removeprefix("tcp://"))
        router = open_socket(self._loop.context, zmq.ROUTER, purpose="control")
        try:
            port = bind(router, address.host, address.port, API, self._peer_left)
        except BaseException:
            router.close()
            raise
        self._router = router
        drain = self._drain_checked if self._curve else partial(_drain, self._heard_on_router)
        self._loop.watch(router, partial(drain, router))
        if not self._curve:
            monitor = self._router_monitor = Monitor(router)
            self._loop.watch(monitor.socket, lambda: self._left(monitor))
        return Address(address.host, port).endpoint()

    def dial(self, name: str, endpoint: str) -> None:
        """Reach an agent at `tcp://host:port`, wherever it was before."""
        known = self._core.agents.get(name)
        if known is not None and known.endpoint == endpoint and name in self._dealers:
            return
        if name in self._dealers:
            self._execute(self._core.forget(name))
            self._hang_up(name)
        self._execute(self._core.dial(name, endpoint, time.monotonic()))
        self._open_dealer(name, endpoint)

    def send(self, name: str, message: m.ControlMessage, frame: bytes | memoryview | None = None) -> None:
        """Say something to an agent; lost where there is no connection, or it does not read."""
        body = [encode_control(message)] if frame is None else [encode_control(message), frame]
        # EAGAIN: its queue is full because it does not read; the question then ends at its deadline.
        with contextlib.suppress(zmq.ZMQError):
            if name in self._dealers:
                say(self._dealers[name], body)
            elif name in self._identities and self._router is not None:
                say(self._router, [self._identities[name], *body])

    def adopt(self, name: str, identity: bytes) -> None:
        """An agent has registered on a connection of the ROUTER."""
        self._identities[name] = identity

    def route(self, identity: bytes, frames: list[bytes]) -> None:
        """Answer a caller of the api; lost where it has gone."""
        if self._router is None:
            return
        try:
            say(self._router, [identity, *frames])
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH and self._on_gone is not None:
                self._on_gone(identity)

    def turned(self, now: float) -> None:
        """Hang up where an agent's key has changed since it was dialled, and dial again."""
        for name in self._keys.changed(now):
            self._execute(self._core.disconnected(name, now, "its key was revoked, or is another one now"))
        for name in self._keys.due(now):
            known = self._core.agents.get(name)
            if known is not None and name in self._dealers:
                self._hang_up(name)
                self._open_dealer(name, known.endpoint)

    def close(self) -> None:
        """Hang up everywhere; the ROUTER ends with the loop."""
        for name in list(self._dealers):
            self._hang_up(name)
        if self._router_monitor is not None:
            self._loop.unwatch(self._router_monitor.socket)
            self._router_monitor.close()

    def _open_dealer(self, name: str, endpoint: str) -> None:
        dealer = open_socket(self._loop.context, zmq.DEALER, purpose="control")
        monitor = Monitor(dealer)
        self._dealers[name], self._monitors[name] = dealer, monitor
        self._loop.watch(dealer, lambda: _drain(partial(self._heard, name), dealer))
        self._loop.watch(monitor.socket, lambda: self._noticed(name, monitor))
        try:
            dial(dealer, endpoint, name)
            self._keys.dialled(name)
        except AgentError as error:
            self._bar(name, error)

    def _hang_up(self, name: str) -> None:
        dealer, monitor = self._dealers.pop(name), self._monitors.pop(name)
        self._keys.hung_up(name)
        self._loop.unwatch(dealer)
        self._loop.unwatch(monitor.socket)
        monitor.close()
        dealer.close(linger=FAREWELL_MS)

    def _bar(self, name: str, error: AgentError) -> None:
        now = time.monotonic()
        self._keys.barred(name, now)
        self._execute(self._core.barred(name, "; ".join(filter(None, (str(error).rstrip("."), error.hint)))))

    def _noticed(self, name: str, monitor: Monitor) -> None:
        for event in monitor.events():
            if event == "failed" and monitor.refusal is not None:
                self._bar(name, monitor.refusal)
                continue
            act = self._core.connected if event == "up" else self._core.disconnected
            self._execute(act(name, time.monotonic()))

    def _peer_left(self) -> None:
        """A connection with a key has ended; from the thread that checks keys."""
        self._loop.enqueue(lambda: self._core.hung_up(time.monotonic()))

    def _left(self, monitor: Monitor) -> None:
        if "down" in monitor.events():
            self._core.hung_up(time.monotonic())

    def _drain_checked(self, router: zmq.Socket[bytes]) -> None:
        """As `_drain`, but what a caller's key does not allow is refused."""
        for _ in range(BURST):
            try:
                received: list[zmq.Frame] = router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            identity, *frames = [frame.bytes for frame in received]
            asked = message_at_api(frames[0]) if frames else None
            refusal = refused(router, received[1], asked) if frames else None
            if refusal is None:
                self._heard_on_router([identity, *frames])
            else:
                fault = m.Fault(getattr(asked, "id", 0), refusal.code, str(refusal))
                self.route(identity, [encode_control(fault)])
                if isinstance(asked, m.Hello) and asked.role == "agent":
                    self._execute([Notify("turned-away", asked.name[:NAME_LETTERS], str(refusal))])

    def _heard(self, name: str, frames: list[bytes]) -> None:
        message = _decode(frames)
        if message is not None:
            self._execute(self._core.received(name, message, time.monotonic()))

    def _heard_on_router(self, frames: list[bytes]) -> None:
        identity, *rest = frames
        message = _decode(rest)
        if isinstance(message, m.Hello) and message.role == "agent":
            self._register(identity, message)
            return
        name = next((n for n, known in self._identities.items() if known == identity), None)
        if name is not None and message is not None:
            self._execute(self._core.received(name, message, time.monotonic()))
        elif name is None and self._on_api is not None:
            self._on_api(identity, rest)

    def _register(self, identity: bytes, hello: m.Hello) -> None:
        try:
            at = self._admit(hello) if self._admit is not None else ""
        except DeferError as error:
            self.route(identity, [encode_control(m.Fault(hello.id, error.code, str(error), error.hint))])
            kind: Literal["unknown", "turned-away"]
            kind = "unknown" if isinstance(error, UnknownDevice) else "turned-away"
            self._execute([Notify(kind, hello.name[:NAME_LETTERS], sentences(str(error), error.hint))])
            return
        self._execute(self._core.registered(hello, time.monotonic(), identity, at))


def _drain(handle: Callable[[list[bytes]], None], socket: zmq.Socket[bytes]) -> None:
    for _ in range(BURST):
        try:
            frames = socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
        handle(frames)


def _decode(frames: list[bytes]) -> m.ControlMessage | None:
    try:
        return decode_control(frames[0])
    except Exception:  # whatever a peer sends, the thread that watches the others goes on
        return None
