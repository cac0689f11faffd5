"""The control connections to the agents: one thread, one DEALER per agent that is dialled, one ROUTER for the rest.

`AgentPool` executes what `defer.agents_core` decides. Its public methods may be called from any thread; they put a
command on a queue, wake the control thread, and wait on a future, always with a deadline.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial
from types import TracebackType
from typing import Self

import zmq

from defer.agent_keys import AgentKeys
from defer.agents_core import (
    AgentsCore,
    Instruction,
    Liveness,
    Notify,
    Report,
    Send,
    Settle,
    unreachable,
    with_id,
)
from defer.documents.address import Address, parse_address
from defer.doors import API, message_at_api
from defer.errors import AgentUnreachable, from_code
from defer.socket_loop import SocketLoop
from node_agent import messages as m
from node_agent.errors import AgentError
from node_agent.frames import decode_control, encode_control
from node_agent.link import Monitor, bind, dial, open_socket, refused
from node_agent.security import OPEN, Security
from node_agent.sockets import say

LOST_HINT = "Its log says more; a box or a link that is too busy to say that it lives is taken for lost."

TICK_S = 0.1
"""Longest that the control thread sleeps, and so the grain of every deadline it watches."""

FAREWELL_MS = 200
"""How long the last messages may take to leave when the pool closes."""

ApiHandler = Callable[[bytes, list[bytes]], None]
EventHandler = Callable[[str, str, str], None]
ProgressHandler = Callable[[m.Progress], None]


class AgentPool:
    """The agents of one dispatcher, by device name.

    Args:
        name: How the dispatcher introduces itself.
        listen: `tcp://host:port` of the api ROUTER, where agents that dial out register and admin clients ask; None
            for a pool that only dials.
        on_api: Called in the control thread with every message on the ROUTER that is not from a registered agent.
        on_event: Called in the control thread with (kind, agent, detail); see `defer.agents_core.Notify`.
        on_crash: Called when the control thread ends by an error.
        security: How connections are protected.
        lead: Name of the state that is shared with other dispatchers, and the term by which this one leads them.
    """

    def __init__(
        self,
        name: str,
        *,
        listen: str | None = None,
        on_api: ApiHandler | None = None,
        on_event: EventHandler | None = None,
        on_crash: Callable[[BaseException], None] | None = None,
        security: Security = OPEN,
        lead: tuple[str, int] = ("", 0),
    ) -> None:
        self.security = security
        self._keys = AgentKeys(security)
        self._core = AgentsCore(name, *lead)
        self._listen = listen
        self._on_api = on_api
        self._on_event = on_event
        self._waiting: dict[int, tuple[Future[m.ControlMessage], ProgressHandler | None]] = {}
        self._dealers: dict[str, zmq.Socket[bytes]] = {}
        self._monitors: dict[str, Monitor] = {}
        self._identities: dict[str, bytes] = {}
        self._router: zmq.Socket[bytes] | None = None
        self._router_monitor: Monitor | None = None
        self._changed = threading.Condition()
        self._loop = SocketLoop(
            "defer-control",
            opened=self._open,
            next_wake=lambda: time.monotonic() + TICK_S,
            turned=self._turned,
            closed=self._end,
            on_crash=on_crash,
            security=security,
        )
        self.endpoint = ""
        """Where the ROUTER is bound, the port resolved."""

    # ---------------------------------------------------------------------------------------------- life cycle

    def start(self) -> None:
        """Start the control thread and bind the ROUTER.

        Raises:
            AgentError: The address of `listen` cannot be bound (in use, or not of this machine).
        """
        self._loop.start()

    def close(self) -> None:
        """End the thread and close every socket; open questions end as unreachable."""
        self._loop.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------- any thread's

    def connect(self, name: str, endpoint: str, *, timeout: float = 5.0) -> m.Offer:
        """Reach an agent and learn what it offers.

        Args:
            name: Device name of the agent.
            endpoint: `tcp://host:port` of its control endpoint; empty for an agent that dials us.
            timeout: Seconds to wait for it.

        Raises:
            AgentUnreachable: It did not answer in time.
            ProtocolMismatch: It speaks no protocol version that we do.
            UnknownDevice: The agent there has another name.
        """
        if endpoint:
            self._loop.enqueue(lambda: self._dial(name, endpoint))
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                known = self._core.agents.get(name)
                if known is not None and known.state == "alive" and known.offer is not None:
                    return known.offer
                if known is not None and known.state == "refused":
                    where = f"at {endpoint}" if endpoint else "that dialled in"
                    raise from_code(known.refusal_code, f"agent {name!r} {where}: {known.refusal}")
                left = deadline - time.monotonic()
                if left <= 0 or not self._loop.running:
                    raise unreachable(name, endpoint, timeout)
                self._changed.wait(left)

    def dial(self, name: str, endpoint: str) -> None:
        """Reach an agent at `tcp://host:port` from now on, wherever it was before; open questions to it end."""
        self._loop.enqueue(lambda: self._dial(name, endpoint))

    def submit(
        self,
        name: str,
        message: m.ControlMessage,
        *,
        frame: bytes | memoryview | None = None,
        timeout: float,
        on_progress: ProgressHandler | None = None,
    ) -> Future[m.ControlMessage]:
        """Ask an agent something without waiting; see `ask`, whose errors the future raises."""
        future: Future[m.ControlMessage] = Future()
        deadline = time.monotonic() + timeout

        def put() -> None:
            number, todo = self._core.ask(name, lambda n: with_id(message, n), deadline, frame)
            self._waiting[number] = (future, on_progress)
            self._execute(todo)

        if not self._loop.enqueue(put):
            raise AgentUnreachable(f"agent {name!r} cannot be asked: the connection pool is closed")
        return future

    def ask(
        self,
        name: str,
        message: m.ControlMessage,
        *,
        frame: bytes | memoryview | None = None,
        timeout: float,
        on_progress: ProgressHandler | None = None,
    ) -> m.ControlMessage:
        """Ask an agent something and wait for its answer.

        Args:
            name: Device name of the agent.
            message: The question; its `id` is filled in here.
            frame: Raw frame behind a `Chunk`.
            timeout: Seconds to wait.
            on_progress: Called in the control thread with each `Progress` before the answer.

        Raises:
            AgentFault: The agent answered that it cannot.
            AgentUnreachable: It did not answer in time, or its connection closed.
        """
        return self.result(
            self.submit(name, message, frame=frame, timeout=timeout, on_progress=on_progress), name, timeout
        )

    def tell(self, name: str, message: m.ControlMessage) -> None:
        """Say something to an agent that it does not answer; lost when the agent is."""
        self._loop.enqueue(lambda: self._send(name, message, None))

    def result(self, future: Future[m.ControlMessage], name: str, timeout: float) -> m.ControlMessage:
        """The answer that a future of `submit` brings, with the errors of `ask`."""
        try:
            # The control thread settles each question at its deadline; the margin is for a stalled machine only.
            answer = future.result(timeout + 10)
        except FutureTimeout:
            raise AgentUnreachable(f"agent {name!r} did not answer within {timeout:g} s") from None
        except AgentUnreachable as error:
            raise AgentUnreachable(f"agent {name!r}: {error}", hint=LOST_HINT) from None
        if isinstance(answer, m.Fault):
            raise from_code(answer.code, f"agent {name!r}: {answer.message}", answer.hint)
        return answer

    def liveness(self, name: str) -> Liveness | None:
        """What is known of an agent; None for one never heard of."""
        return self._core.agents.get(name)

    def agents(self) -> dict[str, Liveness]:
        """What is known of every agent."""
        return dict(self._core.agents)

    def reply(self, identity: bytes, frames: list[bytes]) -> None:
        """Answer a caller of the api."""
        self._loop.enqueue(lambda: self._route(identity, frames))

    # --------------------------------------------------------------------------------------- control thread's

    def _open(self) -> None:
        if self._listen is not None:
            self._bind(self._listen)

    def _end(self) -> None:
        with self._changed:
            self._changed.notify_all()
        for future, _ in self._waiting.values():
            future.set_exception(AgentUnreachable("the connection pool closed while it waited for an answer"))
        self._waiting.clear()
        for name in list(self._dealers):
            self._hang_up(name)
        if self._router_monitor is not None:
            self._loop.unwatch(self._router_monitor.socket)
            self._router_monitor.close()

    def _drain(self, handle: Callable[[list[bytes]], None], socket: zmq.Socket[bytes]) -> None:
        for _ in range(64):  # a flood on one socket does not starve the others
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            handle(frames)

    def _drain_router(self, router: zmq.Socket[bytes]) -> None:
        for _ in range(64):
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
                self._route(identity, [encode_control(fault)])

    def _turned(self) -> None:
        now = time.monotonic()
        self._execute(self._core.tick(now))
        for name in self._keys.changed(now):
            self._execute(self._core.disconnected(name, now))
        for name in self._keys.due(now):
            known = self._core.agents.get(name)
            if known is not None and name in self._dealers:
                self._hang_up(name)
                self._open_dealer(name, known.endpoint)

    def _bar(self, name: str, error: AgentError) -> None:
        self._keys.barred(name, time.monotonic())
        self._execute(self._core.barred(name, f"{error} {error.hint}".strip()))

    def _bind(self, endpoint: str) -> None:
        address = parse_address(endpoint.removeprefix("tcp://"))
        router = open_socket(self._loop.context, zmq.ROUTER, purpose="control")
        try:
            port = bind(router, address.host, address.port, API, self._peer_left)
            self.endpoint = Address(address.host, port).endpoint()
        except BaseException:
            router.close()
            raise
        self._router = router
        drain = self._drain_router if self.security.curve else partial(self._drain, self._heard_on_router)
        self._loop.watch(router, partial(drain, router))
        if not self.security.curve:
            monitor = self._router_monitor = Monitor(router)
            self._loop.watch(monitor.socket, lambda: self._hung_up(monitor))

    def _dial(self, name: str, endpoint: str) -> None:
        known = self._core.agents.get(name)
        if known is not None and known.endpoint == endpoint and name in self._dealers:
            return
        if name in self._dealers:
            self._execute(self._core.forget(name))
            self._hang_up(name)
        self._execute(self._core.dial(name, endpoint, time.monotonic()))
        self._open_dealer(name, endpoint)

    def _open_dealer(self, name: str, endpoint: str) -> None:
        dealer = open_socket(self._loop.context, zmq.DEALER, purpose="control")
        monitor = Monitor(dealer)
        self._dealers[name], self._monitors[name] = dealer, monitor
        self._loop.watch(dealer, lambda: self._drain(partial(self._heard, name), dealer))
        self._loop.watch(monitor.socket, lambda: self._noticed(name, monitor))
        try:
            dial(dealer, endpoint, name)
            self._keys.dialled(name)
        except AgentError as error:
            self._bar(name, error)

    def _noticed(self, name: str, monitor: Monitor) -> None:
        for event in monitor.events():
            if event == "failed" and monitor.refusal is not None:
                self._bar(name, monitor.refusal)
                continue
            act = self._core.connected if event == "up" else self._core.disconnected
            self._execute(act(name, time.monotonic()))

    def _peer_left(self) -> None:
        self._loop.enqueue(lambda: self._core.hung_up(time.monotonic()))

    def _hung_up(self, monitor: Monitor) -> None:
        if "down" in monitor.events():
            self._core.hung_up(time.monotonic())

    def _hang_up(self, name: str) -> None:
        dealer, monitor = self._dealers.pop(name), self._monitors.pop(name)
        self._keys.hung_up(name)
        self._loop.unwatch(dealer)
        self._loop.unwatch(monitor.socket)
        monitor.close()
        dealer.close(linger=FAREWELL_MS)

    def _heard(self, name: str, frames: list[bytes]) -> None:
        message = _decode(frames)
        if message is not None:
            self._execute(self._core.received(name, message, time.monotonic()))

    def _heard_on_router(self, frames: list[bytes]) -> None:
        identity, *rest = frames
        message = _decode(rest)
        if isinstance(message, m.Hello) and message.role == "agent":
            self._identities[message.name] = identity
            self._execute(self._core.registered(message, time.monotonic()))
            return
        name = next((n for n, known in self._identities.items() if known == identity), None)
        if name is not None and message is not None:
            self._execute(self._core.received(name, message, time.monotonic()))
        elif name is None and self._on_api is not None:
            self._on_api(identity, rest)

    def _route(self, identity: bytes, frames: list[bytes]) -> None:
        if self._router is not None:
            with contextlib.suppress(zmq.ZMQError):  # the caller has gone
                say(self._router, [identity, *frames])

    def _execute(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Send(name, message, frame):
                    self._send(name, message, frame)
                case Settle(number, answer, problem):
                    self._settle(number, answer, problem)
                case Report(number, progress):
                    handler = self._waiting[number][1] if number in self._waiting else None
                    if handler is not None:
                        handler(progress)
                case Notify(kind, name, detail):
                    if self._on_event is not None:
                        self._on_event(kind, name, detail)
        if instructions:
            with self._changed:
                self._changed.notify_all()

    def _send(self, name: str, message: m.ControlMessage, frame: bytes | memoryview | None) -> None:
        body = [encode_control(message)] if frame is None else [encode_control(message), frame]
        # EAGAIN: its queue is full because it does not read; the question then ends at its deadline.
        with contextlib.suppress(zmq.ZMQError):
            if name in self._dealers:
                say(self._dealers[name], body)
            elif name in self._identities and self._router is not None:
                say(self._router, [self._identities[name], *body])

    def _settle(self, number: int, answer: m.ControlMessage | None, problem: str) -> None:
        future, _ = self._waiting.pop(number, (None, None))
        if future is None:
            return
        if answer is not None:
            future.set_result(answer)
        elif problem == "timeout":
            future.set_exception(AgentUnreachable("it did not answer in time"))
        else:
            future.set_exception(AgentUnreachable("it was lost before it answered"))


def _decode(frames: list[bytes]) -> m.ControlMessage | None:
    try:
        return decode_control(frames[0])
    except Exception:  # whatever a peer sends, the thread that watches the others goes on
        return None
