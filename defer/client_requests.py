"""What every client shares: a request's way from the caller's arrays to a future of its answer.

How it is carried is another's: over a connection (`dialling`), or to the dispatcher of this process
(`defer.in_process_session`).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Protocol

import msgspec

from defer.access import client_security
from defer.client_arrays import Inputs, Outputs
from defer.client_core import BRIEF_S
from defer.client_encoding import Encoder
from defer.client_errands import Answer, Awaited, Many, Owned
from defer.client_events import Submit
from defer.client_room import Held, Room
from defer.client_served import Served
from defer.client_session import Session
from defer.documents.address import parse_addresses
from defer.errors import Cancelled, DispatcherUnreachable, Overloaded, UsageError, WrongInput
from defer.tracing.otel import calling, ended, failed, telemetry
from node_agent.messages import ID_BYTES, LOWEST_PRIORITY

DEFAULT_TIMEOUT_S = 30.0
"""Seconds that a request may take where nothing else is said."""

ENDLESS_S = 1e9
"""Longer timeouts are none at all: what counts nanoseconds in 64 bits has no larger ones."""

MOST_REQUESTS = 1024
MOST_BYTES = 512 << 20
"""Requests of one client under way, and their input bytes."""


def check_id(request: bytes) -> None:
    """Check an id that the caller chose.

    Raises:
        UsageError: It has another length.
    """
    if len(request) != ID_BYTES:
        raise UsageError(
            f"a request id has {ID_BYTES} bytes, not {len(request)}",
            hint="uuid.uuid4().bytes is one",
        )


def _check_number(seconds: object) -> None:
    if not isinstance(seconds, Real):
        raise UsageError(f"a timeout is a number of seconds, not {seconds!r:.80}", hint="such as 2.5")


def wished(submit: Submit, *, durable: bool, request: bytes | None, priority: int, trace: str = "") -> Submit:
    """A request with what its caller asked for beyond the usual.

    Raises:
        UsageError: The priority is not from 0 to `LOWEST_PRIORITY`.
    """
    if not (durable or priority or trace) and request is None:
        return submit
    if not 0 <= priority <= LOWEST_PRIORITY:
        raise UsageError(
            f"a priority of {priority} is not from 0 to {LOWEST_PRIORITY}",
            hint="1 is the highest, 0 the usual one",
        )
    name = submit.request if request is None else request
    return msgspec.structs.replace(submit, durable=durable, request=name, priority=priority, trace=trace)


class Carrier(Protocol):
    """Takes requests to a dispatcher, and brings their answers."""

    @property
    def forked(self) -> bool:
        """Whether this process is a child of the one that it was made in, where it is of no use."""

    def drive(self, submit: Submit) -> Outputs | Future[Outputs] | None:
        """Send a request for whose answer the calling thread waits; see `Session.drive`."""

    def launch(
        self, submit: Submit, future: Future[Outputs], kept: Future[None] | None = None
    ) -> Future[Outputs]:
        """Send a request, soon; see `Session.launch`."""

    def wait(self, owner: Many, ended: Callable[[], bool]) -> None:
        """The calling thread waits for one of its many requests; see `Session.wait`."""

    def close(self) -> None:
        """End it; requests that have no answer yet end as cancelled."""


class Requests:
    """The machinery behind a client.

    Args:
        served: What the dispatcher serves.
        carry: Makes what carries requests, when there is the first.
        model: Model of requests that name none.
        timeout: Seconds of requests that name none.
        codec: How inputs are encoded on the wire; `auto` does as the model's plan wants.
    """

    def __init__(
        self, served: Served, carry: Callable[[], Carrier], *, model: str, timeout: float, codec: str
    ) -> None:
        _check_number(timeout)
        self.encoder = Encoder(codec)
        self.served = served
        self.model = model
        self._carry = carry
        self._timeout = timeout
        self._room = Room(MOST_REQUESTS, MOST_BYTES)
        self._lock = threading.Lock()
        self._session: Carrier | None = None
        self._closed = False

    def prepare(
        self,
        inputs: Inputs,
        model: str,
        outputs: Sequence[str],
        timeout: float | None,
        *,
        copy: bool,
        patient: bool = False,
        durable: bool = False,
        request: bytes | None = None,
        priority: int = 0,
        trace: str = "",
    ) -> Submit:
        """Check and encode a request.

        Args:
            inputs: The caller's arrays.
            model: Model, or empty for the client's own.
            outputs: Wanted outputs.
            timeout: Seconds, or None for the client's own.
            copy: Whether the caller may change its arrays before the answer.
            patient: Try again where the dispatcher is overloaded.
            durable: Have the dispatcher keep the request and its answer in its store.
            request: Its id; made up where it is None.
            priority: From 1, the highest, on; 0 for the usual one.
            trace: W3C trace context.

        Raises:
            UsageError: The id has not 16 bytes, the timeout is not positive, or there is no such priority.
        """
        if request is not None:
            check_id(request)
        deadline = self.deadline(timeout)
        given = self.given(timeout)
        model = model or self.model
        info = self.served.known(model) or self.served.signature(model)
        try:
            submit = self.encoder.encode(
                info, inputs, outputs, deadline, copy=copy, patient=patient, timeout=given
            )
        except WrongInput:
            newer = self.served.newer(model, info)
            if newer is None:
                raise
            submit = self.encoder.encode(
                newer, inputs, outputs, deadline, copy=copy, patient=patient, timeout=given
            )
        return wished(submit, durable=durable, request=request, priority=priority, trace=trace)

    def recall(self, request: bytes, timeout: float | None) -> Submit:
        """Ask for the answer to a request that was sent before.

        Raises:
            UsageError: The id has not 16 bytes, or the timeout is not positive.
        """
        check_id(request)
        deadline = self.deadline(timeout)
        if self.served.data is None:
            self.served.refresh()
        return Submit(request, "", (), (), (), deadline, recall=True, timeout=self.given(timeout))

    def given(self, timeout: float | None) -> float:
        """Seconds that a request is given: its own, or the client's."""
        return self._timeout if timeout is None else timeout

    def deadline(self, timeout: float | None) -> float:
        """When a request made now must have ended, on the monotonic clock; infinity for never.

        Raises:
            UsageError: The timeout is no positive number.
        """
        seconds = self.given(timeout)
        _check_number(seconds)
        if not seconds > 0:
            raise UsageError(f"a timeout of {seconds} s leaves no time", hint="give a positive number")
        return time.monotonic() + seconds if seconds <= ENDLESS_S else math.inf

    def launch(
        self,
        submit: Submit,
        kept: Future[None] | None = None,
        *,
        waits: bool = False,
        owner: Many | None = None,
    ) -> Future[Outputs]:
        """Send a prepared request; waits where too many are under way.

        Args:
            submit: The request.
            kept: Ends when a durable request is in the dispatcher's store, or has ended.
            waits: Whether the calling thread waits for the answer.
            owner: Stands for the many requests of the calling thread of which this is one, for `wait`.

        Raises:
            Overloaded: Too many were under way until its deadline.
            Cancelled: The client is closed.
        """
        left = submit.deadline - time.monotonic() if submit.deadline < math.inf else threading.TIMEOUT_MAX
        future = self.try_launch(submit, wait=max(0.0, left), kept=kept, waits=waits, owner=owner)
        if future is None:
            raise _too_many()
        return future

    def launch_kept(self, submit: Submit) -> Future[Outputs]:
        """`launch` without waiting for room; where the request is durable wait until the dispatcher has stored it.

        Raises:
            Overloaded: Too many are under way.
            DispatcherUnreachable: It did not say so before the request's deadline.
        """
        kept: Future[None] | None = Future() if submit.durable else None
        future = self.try_launch(submit, kept=kept)
        if future is None:
            raise _too_many()
        if kept is None:
            return future
        try:
            kept.result(submit.deadline - time.monotonic() + 1.0 if submit.deadline < math.inf else None)
        except FutureTimeout:
            future.cancel()
            raise DispatcherUnreachable(
                f"the dispatcher at {self.served.address} did not say in time that it keeps the request"
            ) from None
        return future

    def try_launch(
        self,
        submit: Submit,
        *,
        wait: float = 0.0,
        kept: Future[None] | None = None,
        waits: bool = False,
        owner: Many | None = None,
    ) -> Future[Outputs] | None:
        """Send a prepared request; None where too many are under way for `wait` seconds."""
        nbytes = sum(header.nbytes for header in submit.tensors)
        if not self._room.take(nbytes, wait):
            return None
        held, span = Held(self._room, nbytes), None
        try:
            submit, span = calling(submit)
            future: Future[Outputs] = Awaited() if waits else Answer() if owner is None else Owned(owner)
            # All of this before others know the future, whose lock a signal's handler that raises may leave taken.
            if span is not None:
                future.add_done_callback(partial(ended, span))
            future.add_done_callback(held.give)
            self._running().launch(submit, future, kept)
        except BaseException as error:
            held.give()
            if span is not None:
                failed(span, error)
            raise
        return future

    def infer(self, submit: Submit) -> Outputs | Future[Outputs]:
        """Send a prepared request for whose answer the calling thread waits: the answer, or a future of it.

        Raises:
            DeferError: As `launch`; where this thread drives the connection, as its request fails.
        """
        if telemetry() is None:
            found = self._running().drive(submit)  # a thread has one such, so there is room
            if found is not None:
                return found
        return self.launch(submit, waits=True)

    def wait(self, owner: Many, ended: Callable[[], bool]) -> None:
        """See `Session.wait`."""
        session = self._session
        if session is not None:
            session.wait(owner, ended)

    def _running(self) -> Carrier:
        session = self._session
        if session is not None and not session.forked and not self._closed:
            return session
        with self._lock:
            if self._closed:
                raise Cancelled("the client is closed")
            if self._session is None or self._session.forked:
                self._session = self._carry()
            return self._session

    def close(self) -> None:
        """End the connection."""
        with self._lock:
            self._closed = True
        if self._session is not None:
            self._session.close()


def dialling(
    address: str | Sequence[str],
    *,
    model: str,
    timeout: float,
    codec: str,
    connect_timeout: float,
    keys: str | Path | None = None,
    insecure: bool = False,
    absence_s: float = math.inf,
) -> Requests:
    """Requests over a connection.

    Args:
        address: `host:port` of the dispatcher, or of each that shares its state.
        model: As in `Requests`.
        timeout: As in `Requests`.
        codec: As in `Requests`.
        connect_timeout: Seconds in which a dispatcher must answer at all; `timeout` where that is shorter.
        keys: Folder of keys or a certificate; what `defer.access` says where it is not given.
        insecure: Talk to a dispatcher on another machine without keys.
        absence_s: Longest that a request waits for a connection, its own deadline aside.
    """
    _check_number(timeout)
    _check_number(connect_timeout)
    addresses = parse_addresses(address)
    # Nobody waits longer for a connection than for the answer; what is too short says nothing of who is there.
    served = Served(
        addresses,
        min(connect_timeout, max(timeout, BRIEF_S)),
        client_security(*(each.host for each in addresses), keys=keys, insecure=insecure),
    )

    def carry() -> Session:
        session = Session(served.endpoints(), served.address, served.security, absence_s=absence_s)
        session.start()
        return session

    return Requests(served, carry, model=model, timeout=timeout, codec=codec)


def _too_many() -> Overloaded:
    return Overloaded(
        f"this client has {MOST_REQUESTS} requests under way, or {MOST_BYTES >> 20} MiB of inputs",
        hint=Overloaded.usual_hint,
    )
