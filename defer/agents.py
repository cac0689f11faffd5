"""The agents of one dispatcher, as the rest of it sees them: whom one asks, with a deadline, and who is alive.

`AgentPool` executes what `defer.agents_core` decides, in the control thread, on the sockets of `defer.agent_sockets`.
Its public methods may be called from any thread; they put a command on a queue, wake the control thread, and wait on a
future, always with a deadline.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from types import TracebackType
from typing import Self

from defer.agent_sockets import Admit, AgentSockets, ApiHandler
from defer.agents_core import (
    Adopt,
    AgentsCore,
    Instruction,
    Liveness,
    Notify,
    Reply,
    Report,
    Send,
    Settle,
    unreachable,
    with_id,
)
from defer.errors import AgentUnreachable, from_code
from defer.socket_loop import SocketLoop
from node_agent import messages as m
from node_agent.frames import encode_control
from node_agent.security import OPEN, Security

LOST_HINT = (
    "Its log says more; a process that the kernel kills for memory leaves none there, but in `dmesg`. "
    "A box or a link that is too busy to say that it lives is taken for lost, too."
)

TICK_S = 0.1
"""Longest that the control thread sleeps, and so the grain of every deadline it watches."""

EventHandler = Callable[[str, str, str], None]
ProgressHandler = Callable[[m.Progress], None]


class AgentPool:
    """The agents of one dispatcher, by device name.

    Args:
        name: How the dispatcher introduces itself.
        listen: `tcp://host:port` of the api ROUTER, where agents that dial out register and admin clients ask; None
            for a pool that only dials.
        on_api: Called in the control thread with every message on the ROUTER that is not from a registered agent.
        on_gone: Called in the control thread with the identity of a caller of the api that is gone when it is answered.
        on_event: Called in the control thread with (kind, agent, detail); see `defer.agents_core.Notify`.
        on_crash: Called when the control thread ends by an error.
        admit: Called in the control thread: whether an agent may register; all may where nobody says.
        security: How connections are protected.
        lead: Name of the state that is shared with other dispatchers, and the term by which this one leads them.
    """

    def __init__(
        self,
        name: str,
        *,
        listen: str | None = None,
        on_api: ApiHandler | None = None,
        on_gone: Callable[[bytes], None] | None = None,
        on_event: EventHandler | None = None,
        on_crash: Callable[[BaseException], None] | None = None,
        admit: Admit | None = None,
        security: Security = OPEN,
        lead: tuple[str, int] = ("", 0),
    ) -> None:
        self.security = security
        self._core = AgentsCore(name, *lead)
        self._listen = listen
        self._on_event = on_event
        self._waiting: dict[int, tuple[Future[m.ControlMessage], ProgressHandler | None]] = {}
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
        self._sockets = AgentSockets(self._loop, self._core, self._execute, on_api, security, on_gone, admit)
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
            self._loop.enqueue(lambda: self._sockets.dial(name, endpoint))
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
        self._loop.enqueue(lambda: self._sockets.dial(name, endpoint))

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
        self._loop.enqueue(lambda: self._sockets.send(name, message))

    def result(self, future: Future[m.ControlMessage], name: str, timeout: float) -> m.ControlMessage:
        """The answer that a future of `submit` brings; `timeout` as there, s.

        Raises:
            AgentFault, AgentUnreachable: As in `ask`.
        """
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
        self._loop.enqueue(lambda: self._sockets.route(identity, frames))

    # --------------------------------------------------------------------------------------- control thread's

    def _open(self) -> None:
        if self._listen is not None:
            self.endpoint = self._sockets.bind(self._listen)

    def _end(self) -> None:
        with self._changed:
            self._changed.notify_all()
        for future, _ in self._waiting.values():
            future.set_exception(AgentUnreachable("the connection pool closed while it waited for an answer"))
        self._waiting.clear()
        self._sockets.close()

    def _turned(self) -> None:
        now = time.monotonic()
        self._execute(self._core.tick(now))
        self._sockets.turned(now)

    def _execute(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Send(name, message, frame):
                    self._sockets.send(name, message, frame)
                case Adopt(name, via):
                    self._sockets.adopt(name, via)
                case Reply(via, message):
                    self._sockets.route(via, [encode_control(message)])
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
