"""Questions to a running dispatcher, one after the other, from one thread: what the command line's verbs use."""

from __future__ import annotations

import itertools
import math
import socket
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, TypeVar

import msgspec
import zmq

from defer import api
from defer.access import client_security
from defer.documents.address import Address, parse_addresses
from defer.errors import Cancelled, DispatcherUnreachable, Internal, ProtocolMismatch, Standby, from_code
from defer.translating import translate
from node_agent.errors import AgentError
from node_agent.link import Context, Monitor, dial, new_context, open_socket
from node_agent.messages import PROTOCOL_MINIMUM, PROTOCOL_VERSION, Done, Fault, Hello, Progress, Welcome
from node_agent.security import DISPATCHER, Security

CONNECT_S = 5.0
"""Seconds in which a dispatcher that runs answers."""

FIRST_S = 0.4
"""Where there are several dispatchers, how long each may take in the first round; twice as long in each further one."""

PAUSE_S = 0.1

LOOK_S = 0.2
"""How often a question that another thread may give up looks whether it has."""

M = TypeVar("M", bound=api.ApiMessage)
OnProgress = Callable[[Progress], None]


class Admin:
    """A connection to a dispatcher's api; use it as a context manager and in one thread.

    Args:
        address: `host:port` of the dispatcher; several where they share a state: the one that leads answers.
        connect_s: Seconds to wait for its first answer.
        security: How the connection is protected; what `defer.access` says where it is not given.
        given_up: Set by another thread: whatever is waited for ends with `Cancelled`, within a moment.
    """

    def __init__(
        self,
        address: str | Address | Sequence[Address],
        *,
        connect_s: float = CONNECT_S,
        security: Security | None = None,
        given_up: threading.Event | None = None,
    ) -> None:
        named = parse_addresses(address) if isinstance(address, str) else address
        self.addresses = (named,) if isinstance(named, Address) else tuple(named)
        self.address = self.addresses[0]
        """Who answers; before `open`, the first one."""
        hosts = [each.host for each in self.addresses]
        self._security = client_security(*hosts) if security is None else security
        self._connect_s = connect_s
        self._given_up = given_up
        self._next_id = 1
        self._context: Context | None = None

    def open(self) -> Welcome:
        """Connect and agree on a protocol version; with one dispatcher after the other, until one leads.

        Raises:
            DispatcherUnreachable: Nobody answers, or the name is unknown.
            Standby: Those that answer stand by.
            ProtocolMismatch: Who answers speaks no version that we do.
            Unauthorised: It refuses our key, or has another than is known here.
            Cancelled: It was given up.
        """
        if len(self.addresses) == 1:
            return self._open(self._connect_s)
        deadline = time.monotonic() + self._connect_s
        for turn in itertools.count():
            self.address = self.addresses[turn % len(self.addresses)]
            left = deadline - time.monotonic()
            try:
                # What answers, answers soon; where none leads yet, one will.
                return self._open(max(0.05, min(left, FIRST_S * 2 ** (turn // len(self.addresses)))))
            except (DispatcherUnreachable, Standby) as error:
                if deadline - time.monotonic() <= PAUSE_S:
                    if isinstance(error, Standby):
                        raise
                    raise self._silent(self._connect_s) from None
            time.sleep(PAUSE_S)
        raise AssertionError("unreachable")

    def _open(self, connect_s: float) -> Welcome:
        self._context = new_context(self._security)
        self._socket = open_socket(self._context, zmq.DEALER, purpose="control")
        self._monitor: Monitor | None = Monitor(self._socket)
        # Before the connection stands there is nothing else to send, so the greeting may wait in the queue.
        self._socket.setsockopt(zmq.IMMEDIATE, 0)
        hello = Hello(0, PROTOCOL_MINIMUM, PROTOCOL_VERSION, "@client", "client")
        try:
            self._dial()
            welcome = self.ask(hello, Welcome, timeout=connect_s)
            if welcome.offer is not None:
                raise DispatcherUnreachable(
                    f"the agent {welcome.name!r} listens at {self.address}, not a dispatcher",
                    hint="a dispatcher is started with `defer serve` and listens on port 7600 unless told otherwise",
                )
            return welcome
        except BaseException:
            self.close()
            raise

    def _dial(self) -> None:
        try:
            # libzmq looks names up by itself, and again and again: it would never say that there is no such name.
            socket.getaddrinfo(self.address.host, self.address.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise DispatcherUnreachable(
                f"cannot resolve {self.address.host}", hint="correct the address, or write it as a number"
            ) from error
        try:
            dial(self._socket, self.address.endpoint(), DISPATCHER)
        except AgentError as error:
            raise translate(error) from error

    def close(self) -> None:
        """Hang up."""
        context, self._context = self._context, None
        if context is not None:
            if self._monitor is not None:
                self._monitor.close()
                self._monitor = None
            context.destroy(linger=0)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(self, message: api.ApiMessage, frame: bytes | memoryview | None = None) -> int:
        """Send a question without waiting; returns the id that its answer carries."""
        number, self._next_id = self._next_id, self._next_id + 1
        data = api.encode(msgspec.structs.replace(message, id=number))
        self._socket.send_multipart([data] if frame is None else [data, frame])
        return number

    def answer(
        self, number: int, kind: type[M], *, timeout: float, on_progress: OnProgress | None = None
    ) -> M:
        """Wait for the answer to the question `number`.

        Args:
            number: What `send` returned.
            kind: The message that answers it.
            timeout: Seconds without a sign of life after which we give up; progress is one.
            on_progress: Called with each `Progress` before the answer.

        Raises:
            DispatcherUnreachable: No answer in time.
            Cancelled: It was given up.
            DeferError: What the dispatcher answered instead, by its code.
        """
        deadline = time.monotonic() + timeout
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not self._wait(left):
                raise self._silent(timeout)
            message = api.decode(self._socket.recv_multipart()[0])
            if getattr(message, "id", None) != number:
                continue  # the answer to a question that we gave up on
            if isinstance(message, Progress):
                deadline = time.monotonic() + timeout
                if on_progress is not None:
                    on_progress(message)
            elif isinstance(message, Fault):
                raise _fault(message)
            elif isinstance(message, kind):
                return message
            else:
                raise Internal(f"the dispatcher answered {type(message).__name__} instead of {kind.__name__}")

    def ask(
        self, message: api.ApiMessage, kind: type[M], *, timeout: float, on_progress: OnProgress | None = None
    ) -> M:
        """Ask and wait; errors as in `answer`."""
        return self.answer(self.send(message), kind, timeout=timeout, on_progress=on_progress)

    def give_up(
        self, number: int, kind: type[M], *, timeout: float, on_progress: OnProgress | None = None
    ) -> M | None:
        """Give up the question `number`, which is a `Deploy`, and wait for what becomes of it.

        Returns:
            Its answer, where this came too late; None where the dispatcher gives it up when its step has ended.

        Raises:
            Cancelled: It was given up.
            DispatcherUnreachable: The dispatcher says nothing of that.
            DeferError: It had ended otherwise.
        """
        ours = self.send(api.GiveUp(0, number))
        deadline = time.monotonic() + timeout
        heard = False
        while (left := deadline - time.monotonic()) > 0 and self._wait(left):
            message = api.decode(self._socket.recv_multipart()[0])
            asked = getattr(message, "id", None)
            heard |= asked == ours and isinstance(message, Done)
            if asked != number:
                continue
            if isinstance(message, Fault):
                raise _fault(message)
            if isinstance(message, kind):
                return message
            if isinstance(message, Progress) and on_progress is not None:
                on_progress(message)
        if not heard:
            raise self._silent(timeout)
        return None

    def _wait(self, seconds: float) -> bool:
        """Whether something waits to be read, within so many seconds; a handshake that keys forbid ends the wait."""
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        assert self._monitor is not None
        poller.register(self._monitor.socket, zmq.POLLIN)
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if self._given_up is not None:
                if self._given_up.is_set():
                    raise Cancelled("nobody waits for the dispatcher's answer any more")
                left = min(left, LOOK_S)
            ready = dict(poller.poll(math.ceil(left * 1000)))
            if self._monitor.socket in ready:
                self._monitor.events()
                if self._monitor.refusal is not None:
                    error = translate(self._monitor.refusal)
                    error.where = f"the dispatcher at {self.address}"
                    raise error from None
            if self._socket in ready:
                return True
        return False

    def _silent(self, timeout: float) -> DispatcherUnreachable:
        where = ",".join(str(each) for each in self.addresses)
        return DispatcherUnreachable(
            f"no dispatcher answers at {where} within {timeout:.3g} s",
            hint="start one with `defer serve`, or correct the address",
        )


def _fault(fault: Fault) -> Exception:
    if fault.code == "incompatible-version":
        return ProtocolMismatch(fault.message, hint=fault.hint)
    return from_code(fault.code, fault.message, fault.hint)
