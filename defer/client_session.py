"""The client's connection: one to the dispatcher, a future per request.

A thread of its own drives it. Who waits for a request that is the only one drives it itself (`Session.infer`).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any

from defer import client_core as c
from defer.client_errands import Alone, Answer, Awaited, Owned, Sending, Waiting
from defer.client_scout import Scout
from defer.dialled import Dialled
from defer.errors import Cancelled, DeferError, UsageError, from_code, translate
from defer.socket_loop import Errand, SocketLoop
from node_agent.connection import Handshake
from node_agent.errors import FrameError, NotAllowedError
from node_agent.frames import encode_header, unpack_tensor
from node_agent.link import Sent, incoming, send
from node_agent.messages import (
    Accepted,
    GiveUp,
    Greeting,
    Infer,
    PeerRef,
    Recall,
    Refusal,
    Rejection,
    Result,
    TensorHeader,
)
from node_agent.security import DISPATCHER, OPEN, Security

Outputs = c.Outputs

BURST = 64
DIAL_S = 0.25
DIAL_GROWS = 1.1
DIAL_LIMIT_S = 3.0
"""Where there are several dispatchers, how long one may take to answer before the next is tried; longer each time."""

RETRY_S = 0.002
"""How often a request that the connection's full queue did not take is tried again."""


class Session:
    """A connection that carries requests, and comes back when it breaks.

    Args:
        endpoints: `tcp://host:port` of the dispatcher's data socket, or of each one sharing its state: only the one
            that leads takes connections there.
        address: The dispatcher's api address, for messages.
        security: How the connection is protected.
        absence_s: Longest that a request waits for a connection, its own deadline aside.
    """

    def __init__(
        self,
        endpoints: str | Sequence[str],
        address: str,
        security: Security = OPEN,
        *,
        absence_s: float = math.inf,
    ) -> None:
        self.endpoints = deque([endpoints] if isinstance(endpoints, str) else endpoints)
        """The one that is dialled comes first."""
        self._patience = DIAL_S
        self._give_up = math.inf
        self._made_core = partial(c.ClientCore, address, absence_s)
        self._core = self._made_core()
        self.alone: Alone | None = None
        self._owner: object = None
        """Whose all requests under way are, where they are one thread's."""
        self.futures: dict[bytes, Future[Outputs]] = {}
        self._unsent: deque[tuple[Infer | Recall | GiveUp, Sequence[Any]]] = deque()
        self._kept: dict[bytes, Future[None]] = {}
        self._crash: DeferError | None = None
        self._loop = SocketLoop(
            "defer-client",
            opened=self._open,
            next_wake=self._next_wake,
            turned=self._turned,
            closed=self._close,
            on_crash=self._crashed,
            security=security,
            idle=self._is_idle,
            renew=self._renew,
        )
        self._scout = Scout(self._loop, self._adopt) if len(self.endpoints) > 1 else None
        self._heard, self._look_at = -math.inf, math.inf

    def start(self) -> None:
        """Start the thread; it connects by itself."""
        self._loop.start()

    @property
    def forked(self) -> bool:
        """Whether this process is a child of the one that made the session, and needs one of its own."""
        return self._loop.forked

    def close(self) -> None:
        """End the thread; requests that have no answer yet end as cancelled."""
        self._loop.close()

    def drive(self, submit: c.Submit) -> Outputs | Future[Outputs] | None:
        """Send a request and drive the connection in the calling thread until its answer is there.

        Returns:
            The answer; a future where others wanted the connection before that, and its thread goes on with it; None
            where they have it already, and nothing was sent.

        Raises:
            DeferError: The request failed.
            UsageError: A signal's handler called this in the middle of another such call of its thread.
        """
        alone = Alone(self, submit)
        if not self._loop.drive(alone):
            if self._loop.driving:
                raise UsageError("this thread is in the middle of another request of this client")
            return None
        if alone.outcome is None:
            return alone.future
        try:
            return alone.outcome()
        except Exception as error:
            raise translate(error) from error

    def launch(
        self, submit: c.Submit, future: Future[Outputs] | None = None, kept: Future[None] | None = None
    ) -> Future[Outputs]:
        """Send a request, soon; from any thread.

        Args:
            submit: The request.
            future: Of its answer; `Awaited` where the calling thread waits for it, and could drive meanwhile.
            kept: Ends when a durable request is in the dispatcher's store, or has ended.

        Returns:
            The future; one of its own where none was given.
        """
        future = Answer() if future is None else future
        if kept is not None:
            future.add_done_callback(lambda _: _end(kept))
        if isinstance(future, Owned) and self._loop.drive(Sending(self, submit, future)):
            return future

        def run() -> None:
            others = bool(self.futures)
            if self.take(submit, future, kept) and isinstance(future, Awaited | Owned):
                self._loop.rests_soon(not others or self._owner is not None)

        if not self._loop.enqueue(run):
            future.set_exception(self._crash or Cancelled("the client is closed"))
        return future

    def wait(self, owner: object, ended: Callable[[], bool]) -> None:
        """Drive the connection until `ended` where all that is under way is the caller's; else return at once."""
        if not ended():
            self._loop.drive(Waiting(owner, ended))

    # ------------------------------------------------------------------------------------------ in the thread

    def take(self, submit: c.Submit, future: Future[Outputs], kept: Future[None] | None = None) -> bool:
        """Send a request that somebody waits for; False where it is under way already."""
        if future.cancelled():
            return False
        if submit.request in self.futures:
            future.set_exception(UsageError("this client waits for the answer to this request already"))
            return False
        owner = future.owner if isinstance(future, Owned) else None
        if not self.futures or self._owner is not owner:
            self._owner = None if self.futures else owner
        self.futures[submit.request] = future
        if isinstance(future, Answer):
            future.give_up = partial(self._abandon, submit.request, future)
        if kept is not None:
            self._kept[submit.request] = kept
        self.begin(submit)
        return True

    def _abandon(self, request: bytes, future: Future[Outputs]) -> None:
        """The caller has cancelled; from any thread."""

        def run() -> None:
            if self.futures.get(request) is future:
                del self.futures[request]
                self._kept.pop(request, None)
                self._feed(c.GivenUp(request))

        self._loop.enqueue(run)

    def goes_on(self, submit: c.Submit) -> Awaited:
        """The thread goes on with a request that its caller drove alone; it is nobody's of many."""
        future = Awaited()
        future.give_up = partial(self._abandon, submit.request, future)
        self.futures[submit.request] = future
        self.alone = self._owner = None
        return future

    def begin(self, submit: c.Submit) -> None:
        """Send a request, of which somebody else keeps account."""
        self._feed(submit)
        if self._dialled.refusal is not None:
            self._redial()  # keys may have been put right

    def _is_idle(self, errand: Errand | None) -> bool:
        if not self._core.connected:
            return False
        if not self.futures:
            return not self._core.unanswered
        # For no errand in particular the thread must not rest: who waits for one of these may be blocked already.
        if errand is None or self._owner is None:
            return False
        return getattr(errand, "owner", None) is self._owner

    def _renew(self) -> None:
        """A caller was interrupted while it drove: what it left is not to be trusted, and nobody waits for it."""
        self.alone = self._owner = None
        self._unsent.clear()
        self._core = self._made_core()
        self.futures.clear()  # all are its own, and their locks perhaps taken for ever: they are its to end
        with suppress(Exception):  # perhaps closed already
            self._dialled.close()
        if self._scout is not None:
            self._scout.abandon()
        self._heard, self._look_at = -math.inf, math.inf
        self._open()

    def _open(self) -> None:
        self._dialled = Dialled(
            self._loop.context, PeerRef(DISPATCHER, self.endpoints[0]), Handshake(c.CLIENT, dialled=True)
        )
        self._watch()
        self._set_patience()
        self._check_refusal()

    def _set_patience(self) -> None:
        """Where there is another dispatcher, this one must answer within some time."""
        if len(self.endpoints) > 1:
            self._give_up = time.monotonic() + self._patience
            self._patience = min(DIAL_LIMIT_S, self._patience * DIAL_GROWS)

    def _adopt(self, endpoint: str, dialled: Dialled) -> None:
        """Another dispatcher leads by now, and this is a connection to it."""
        self._unsent.clear()
        self._loop.unwatch(self._dialled.socket)
        self._loop.unwatch(self._dialled.monitor.socket)
        self._dialled.close()
        self.endpoints.rotate(-self.endpoints.index(endpoint))
        self._dialled = dialled
        self._watch()
        self._settled()
        self._heard = time.monotonic()
        self._feed(c.Disconnected())
        self._feed(c.Connected())

    def _settled(self) -> None:
        """This one answers."""
        self._give_up, self._patience = math.inf, DIAL_S

    def _check_refusal(self) -> None:
        refusal = self._dialled.refusal
        if refusal is not None:
            self._feed(c.Refused(refusal.code, str(refusal), refusal.hint))

    def _watch(self) -> None:
        self._loop.watch(self._dialled.socket, self._on_data)
        self._loop.watch(self._dialled.monitor.socket, self._on_monitor)

    def _redial(self) -> None:
        self._unsent.clear()  # whatever is unanswered is sent again on the next connection
        self.endpoints.rotate(-1)
        self._loop.unwatch(self._dialled.socket)
        self._loop.unwatch(self._dialled.monitor.socket)
        self._dialled.close()
        self._dialled.peer = PeerRef(DISPATCHER, self.endpoints[0])
        self._dialled.open()
        self._watch()
        self._set_patience()
        self._feed(c.Disconnected())
        self._check_refusal()

    def _close(self) -> None:
        try:
            if self._crash is None:
                self._feed(c.Closed())
        finally:
            # After a crash the core may know less than it was given: no future is left to wait for ever.
            for request in list(self.futures):
                self._settle(request, partial(_raise, self._crash or Cancelled("the client is closed")))
            if self._scout is not None:
                self._scout.close()
            if hasattr(self, "_dialled"):
                self._dialled.close()

    def _crashed(self, error: BaseException) -> None:
        self._crash = translate(error)

    def _next_wake(self) -> float:
        wake = min(self._core.next_wake(), self._give_up, self._look_at)
        return min(wake, time.monotonic() + RETRY_S) if self._unsent else wake

    def _turned(self) -> None:
        if self._core.next_wake() <= time.monotonic():
            self._feed(c.Tick())
        if self._give_up <= time.monotonic():
            self._redial()
        if self._scout is not None:
            others = list(self.endpoints)[1:] if self._dialled.handshake.state == "ready" else []
            quiet_since = max(self._heard, self._core.owed_since)
            self._look_at = self._scout.look(others, time.monotonic(), quiet_since)
        while (
            self._unsent
            and send(self._dialled.socket, encode_header(self._unsent[0][0]), self._unsent[0][1]) is Sent.YES
        ):
            self._unsent.popleft()

    def _on_monitor(self) -> None:
        for stands in self._dialled.happened():
            if not stands:
                self._redial()
                return
            self._dialled.say(self._dialled.handshake.opened())
        self._check_refusal()

    def _on_data(self) -> None:
        if self._scout is not None:
            self._heard = time.monotonic()
        # Whoever is alone comes for one message: whether there are more is asked with the next turn anyway.
        most = BURST if self.alone is None else 1
        for _, header, frames in incoming(self._dialled.socket, routed=False, most=most):
            if type(header) is Result:
                self._feed(c.ResultArrived(header, frames))
                continue
            match header:
                case Rejection():
                    self._feed(c.RejectionArrived(header))
                case Accepted(request) if request in self._kept:
                    _end(self._kept.pop(request))
                case Greeting():
                    self._dialled.handshake.greeted(header)
                    refused = self._dialled.handshake.state == "refused"
                    reason = self._dialled.handshake.reason
                    if not refused:
                        self._settled()
                    self._feed(c.Refused("protocol-mismatch", reason) if refused else c.Connected())
                case Refusal(NotAllowedError.code, message):
                    self._dialled.refusal = NotAllowedError(message)
                    self._check_refusal()
                case Refusal(code, message):
                    early = self._dialled.handshake.state != "ready"
                    self._feed(c.Refused("protocol-mismatch" if early else code, message))
                case FrameError():
                    self._redial()  # what came is not ours: the bytes of this connection cannot be trusted
                    return

    def _feed(self, event: c.Event) -> None:
        for instruction in self._core.handle(event, time.monotonic()):
            if type(instruction) is c.SendInfer:
                self._send(instruction.infer, instruction.frames)
                continue
            match instruction:
                case c.Resolve(request, tensors, frames):
                    self._settle(request, partial(_decode, tensors, frames))
                case c.SendGiveUp(request):
                    self._send(GiveUp(request), ())
                case c.Fail(request, code, message, hint):
                    self._settle(request, partial(_raise, from_code(code, message, hint)))

    def _send(self, infer: Infer | Recall | GiveUp, frames: Sequence[Any]) -> None:
        if self._unsent or send(self._dialled.socket, encode_header(infer), frames) is not Sent.YES:
            self._unsent.append((infer, frames))

    def _settle(self, request: bytes, outcome: Any) -> None:
        alone = self.alone
        if alone is not None and alone.submit.request == request:
            self.alone = None
            alone.outcome, alone.done = outcome, True
            return
        future = self.futures.pop(request)
        self._kept.pop(request, None)
        if not future.set_running_or_notify_cancel():
            return  # the caller has cancelled it
        try:
            future.set_result(outcome())
        except Exception as error:
            future.set_exception(translate(error))


def _decode(tensors: Sequence[TensorHeader], frames: Sequence[Any]) -> Outputs:
    arrays: Outputs = {}
    for header, frame in zip(tensors, frames, strict=True):
        # The caller gets arrays that are its own to write to; short frames are `bytes`.
        own = bytearray(frame) if type(frame) is bytes and header.codec == "raw" else frame
        array = unpack_tensor(header, own)
        arrays[header.name] = array if array.flags.writeable else array.copy()
    return arrays


def _end(kept: Future[None]) -> None:
    if not kept.done():
        kept.set_result(None)


def _raise(error: DeferError) -> Outputs:
    raise error
