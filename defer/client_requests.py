"""What the blocking and the asyncio client share: the models' signatures, checks before sending, and the connection."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec

from defer import api
from defer.access import client_security
from defer.admin import Admin
from defer.client_core import BRIEF_S, Inputs, Submit, as_arrays, check_outputs
from defer.client_errands import Answer, Awaited, Owned
from defer.client_room import ID_BYTES, Held, Room, kind_of, new_id, plain
from defer.client_session import Outputs, Session
from defer.documents.address import Address, parse_addresses
from defer.errors import (
    Cancelled,
    DispatcherUnreachable,
    NotReady,
    Overloaded,
    UnknownModel,
    UsageError,
    WrongInput,
)
from defer.tracing.otel import calling, ended, failed, telemetry
from node_agent.codecs import CODECS, byte_view
from node_agent.errors import AgentError
from node_agent.frames import check_headers, pack_item
from node_agent.messages import TensorHeader
from node_agent.security import Security

DEFAULT_TIMEOUT_S = 30.0
"""Seconds that a request may take where nothing else is said."""

AUTO = "auto"
"""Codec of a client that does as the model's plan wants."""

ANSWER_S = 10.0
"""Seconds in which a dispatcher answers a question about itself."""

ENDLESS_S = 1e9
"""Longer timeouts are none at all: what counts nanoseconds in 64 bits has no larger ones."""

MOST_REQUESTS = 1024
MOST_BYTES = 512 << 20
"""Requests of one client under way, and their input bytes."""


REMEMBERED = 64
"""Combinations of inputs' types and shapes that a client knows to fit."""


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


LOWEST = 1 << 31
"""The largest number that a request may have as its priority."""


def wished(submit: Submit, *, durable: bool, request: bytes | None, priority: int, trace: str = "") -> Submit:
    """A request with what its caller asked for beyond the usual.

    Raises:
        UsageError: The priority is not from 0 to `LOWEST`.
    """
    if not (durable or priority or trace) and request is None:
        return submit
    if not 0 <= priority <= LOWEST:
        raise UsageError(
            f"a priority of {priority} is not from 0 to {LOWEST}", hint="1 is the highest, 0 the usual one"
        )
    name = submit.request if request is None else request
    return msgspec.structs.replace(submit, durable=durable, request=name, priority=priority, trace=trace)


class Requests:
    """The machinery behind a client.

    Args:
        address: `host:port` of the dispatcher, or of each that shares its state.
        model: Model of requests that name none.
        timeout: Seconds of requests that name none.
        codec: How inputs are encoded on the wire; `auto` does as the model's plan wants.
        connect_timeout: Seconds in which a dispatcher must answer at all; `timeout` where that is shorter.
        security: How connections are protected; what `defer.access` says where it is not given.
        absence_s: Longest that a request waits for a connection, its own deadline aside.
    """

    def __init__(
        self,
        address: str | Sequence[str],
        *,
        model: str,
        timeout: float,
        codec: str,
        connect_timeout: float,
        security: Security | None = None,
        absence_s: float = math.inf,
    ) -> None:
        if codec != AUTO and codec not in CODECS:
            raise UsageError(f"codec {codec!r} is unknown", hint=f"known: {AUTO}, {', '.join(CODECS)}")
        self.addresses = parse_addresses(address)
        hosts = [each.host for each in self.addresses]
        self.security = client_security(*hosts) if security is None else security
        self.model = model
        self.timeout = timeout
        self.codec = codec
        self.connect_timeout = connect_timeout
        self._absence_s = absence_s
        self._room = Room(MOST_REQUESTS, MOST_BYTES)
        self._lock = threading.Lock()
        self._models: dict[str, api.ModelInfo] = {}
        self._only: api.ModelInfo | None = None  # what a request without a name means
        self._seen: dict[tuple[Any, ...], tuple[api.ModelInfo, tuple[TensorHeader, ...]]] = {}
        self._data: Address | None = None  # where requests were taken when the dispatcher was last asked
        self._session: Session | None = None
        self._closed = False

    # ---------------------------------------------------------------------------------------------- the api's

    def refresh(self) -> tuple[api.ModelInfo, ...]:
        """Ask the dispatcher what it serves."""
        with self._admin() as admin:
            answer = admin.ask(api.ListModels(0), api.Models, timeout=ANSWER_S)
            told = admin.address
        with self._lock:
            self._models = {info.name: info for info in answer.models}
            named = without_versions(self._models)
            self._only = named[0] if len(named) == 1 else None
            self._data = replace(told, port=answer.data_port)
            # The one that answers comes first; at the others, requests go to the next port.
            self.addresses = (told, *(each for each in self.addresses if each != told))
        return answer.models

    def status(self) -> api.ServerStatus:
        """Ask the dispatcher how it is."""
        with self._admin() as admin:
            return admin.ask(api.GetStatus(0), api.ServerStatus, timeout=ANSWER_S)

    @property
    def address(self) -> str:
        """Whom requests go to, for messages."""
        return ",".join(str(each) for each in self.addresses)

    def _admin(self) -> Admin:
        # Nobody waits longer for a connection than for the answer; what is too short says nothing of who is there.
        patience = max(self.timeout, BRIEF_S)
        return Admin(self.addresses, connect_s=min(self.connect_timeout, patience), security=self.security)

    def known(self, model: str) -> api.ModelInfo | None:
        """The signature of a model as far as it was asked for; None when the dispatcher must be asked."""
        info = self._models.get(model, _NOTHING) if model or self._only is None else self._only
        return info if info.inputs else None

    def signature(self, model: str) -> api.ModelInfo:
        """The signature of a model, asked for where it is not known.

        Raises:
            UnknownModel: No such model, or several and none named.
            NotReady: None is served yet.
        """
        info = self.known(model)
        if info is not None:
            return info
        served = {info.name: info for info in self.refresh()}
        if not served:
            raise NotReady(
                f"no model is deployed at {self.address}", hint="deploy one with `defer deploy MODEL`"
            )
        named = without_versions(served)
        if not model and len(named) != 1:
            raise UnknownModel(f"several models are served, say which: {', '.join(sorted(served))}")
        found = served.get(model) if model else named[0]
        if found is None:
            raise UnknownModel(f"no model {model!r} is served; served: {', '.join(sorted(served))}")
        if not found.inputs:
            raise NotReady(f"model {found.name!r} is not ready: {found.reason}")
        return found

    # -------------------------------------------------------------------------------------------- one request

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
        submit = self._prepare(inputs, model, outputs, timeout, copy=copy, patient=patient)
        return wished(submit, durable=durable, request=request, priority=priority, trace=trace)

    def _prepare(
        self,
        inputs: Inputs,
        model: str,
        outputs: Sequence[str],
        timeout: float | None,
        *,
        copy: bool,
        patient: bool,
    ) -> Submit:
        deadline = self.deadline(timeout)
        model = model or self.model
        info = self.known(model) or self.signature(model)
        try:
            return self.encode(info, inputs, outputs, deadline, copy=copy, patient=patient)
        except WrongInput:
            newer = self.newer(model, info)
            if newer is None:
                raise
            return self.encode(newer, inputs, outputs, deadline, copy=copy, patient=patient)

    def recall(self, request: bytes, timeout: float | None) -> Submit:
        """Ask for the answer to a request that was sent before.

        Raises:
            UsageError: The id has not 16 bytes, or the timeout is not positive.
        """
        check_id(request)
        deadline = self.deadline(timeout)
        if self._data is None:
            self.refresh()
        return Submit(request, "", (), (), (), deadline, recall=True)

    def deadline(self, timeout: float | None) -> float:
        """When a request made now must have ended, on the monotonic clock; infinity for never.

        Raises:
            UsageError: The timeout is not positive.
        """
        seconds = self.timeout if timeout is None else timeout
        if not seconds > 0:
            raise UsageError(f"a timeout of {seconds} s leaves no time", hint="give a positive number")
        return time.monotonic() + seconds if seconds <= ENDLESS_S else math.inf

    def newer(self, model: str, info: api.ModelInfo) -> api.ModelInfo | None:
        """The signature where the model was replaced by one with another since `info`; None where it was not."""
        self.refresh()
        found = self.signature(model)
        return found if (found.inputs, found.outputs) != (info.inputs, info.outputs) else None

    def encode(
        self,
        info: api.ModelInfo,
        inputs: Inputs,
        outputs: Sequence[str],
        deadline: float,
        *,
        copy: bool,
        patient: bool,
    ) -> Submit:
        """Check a request against a signature and encode it; asks nobody."""
        if not outputs:
            given = plain(inputs, info)
            told = None if given is None else self._seen.get(kind_of(info, given))
            if given is not None and told is not None:
                frames = [byte_view(array.copy() if copy else array) for array in given]
                return Submit(new_id(), info.name, (), told[1], frames, deadline, patient)
        arrays, wanted = as_arrays(inputs, info), check_outputs(outputs, info)
        if copy:
            arrays = {name: array.copy() for name, array in arrays.items()}
        dtypes = {spec.name: spec.dtype for spec in info.inputs}
        try:
            headers, frames = pack_item(arrays, self._codec(info), dtypes)
            check_headers(headers)
        except AgentError as error:
            raise WrongInput(str(error), hint=error.hint) from error
        if not outputs and all(header.codec == "raw" for header in headers) and self._codec(info) == "raw":
            self._remember(info, inputs, headers)
        return Submit(new_id(), info.name, wanted, headers, frames, deadline, patient)

    def _remember(self, info: api.ModelInfo, inputs: Inputs, headers: tuple[TensorHeader, ...]) -> None:
        """Inputs of these types and shapes fit, and travel under these headers."""
        given = plain(inputs, info)
        if given is None:
            return
        if len(self._seen) >= REMEMBERED:
            self._seen.clear()
        # The signature is held, so that nothing else gets its identity.
        self._seen[kind_of(info, given)] = (info, headers)

    def _codec(self, info: api.ModelInfo) -> str:
        if self.codec != AUTO:
            return self.codec
        # A newer dispatcher may name a codec that this client does not have; raw is always understood.
        return info.codec if info.codec in CODECS else "raw"

    def launch(
        self,
        submit: Submit,
        kept: Future[None] | None = None,
        *,
        waits: bool = False,
        owner: object = None,
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
            raise Overloaded(f"{MOST_REQUESTS} requests of this client are under way, or {MOST_BYTES} bytes")
        return future

    def launch_kept(self, submit: Submit) -> Future[Outputs]:
        """`launch`, and where the request is durable wait until the dispatcher has it in its store.

        Raises:
            DispatcherUnreachable: It did not say so before the request's deadline.
        """
        if not submit.durable:
            return self.launch(submit)
        kept: Future[None] = Future()
        future = self.launch(submit, kept)
        try:
            kept.result(submit.deadline - time.monotonic() + 1.0 if submit.deadline < math.inf else None)
        except FutureTimeout:
            future.cancel()
            raise DispatcherUnreachable(
                f"the dispatcher at {self.address} did not say in time that it keeps the request"
            ) from None
        return future

    def try_launch(
        self,
        submit: Submit,
        *,
        wait: float = 0.0,
        kept: Future[None] | None = None,
        waits: bool = False,
        owner: object = None,
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
        session = self._session
        if session is not None and not session.forked and telemetry() is None:
            found = session.drive(submit)  # alone, so there is room
            if found is not None:
                return found
        return self.launch(submit, waits=True)

    def wait(self, owner: object, ended: Callable[[], bool]) -> None:
        """See `Session.wait`."""
        if self._session is not None:
            self._session.wait(owner, ended)

    def _running(self) -> Session:
        session = self._session
        if session is not None and not session.forked:
            return session
        with self._lock:
            if self._closed:
                raise Cancelled("the client is closed")
            if self._session is None or self._session.forked:
                assert self._data is not None  # whoever knows a signature has asked
                where = [self._data.endpoint(), *(each.endpoint(1) for each in self.addresses[1:])]
                session = Session(where, self.address, self.security, absence_s=self._absence_s)
                session.start()
                self._session = session
            return self._session

    def close(self) -> None:
        """End the connection."""
        with self._lock:
            self._closed = True
            session, self._session = self._session, None
        if session is not None:
            session.close()


def without_versions(models: Mapping[str, api.ModelInfo]) -> list[api.ModelInfo]:
    """The models that a request without a name may mean: a version is meant by its own name alone."""
    return [info for info in models.values() if info.version_of not in models or not info.version_of]


_NOTHING = api.ModelInfo("", "")
