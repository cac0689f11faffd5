"""The client's connection: one to the dispatcher, a future per request.

A thread of its own drives it. Who waits for a request that is the only one drives it itself (`Session.infer`).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from defer import client_events as c
from defer.client_arrays import Outputs
from defer.client_core import ClientCore
from defer.client_errands import Alone, Answer, Awaited, Many, Owned, Sending, Waiting, kept_now
from defer.client_line import Line
from defer.errors import Cancelled, DeferError, UsageError, from_code
from defer.socket_loop import Errand, SocketLoop
from defer.translating import translate
from node_agent.errors import FrameError
from node_agent.frames import encode_header, unpack_tensor
from node_agent.link import Sent, incoming, send
from node_agent.messages import (
    Accepted,
    GiveUp,
    Greeting,
    Infer,
    Recall,
    Refusal,
    Rejection,
    Result,
    TensorHeader,
)
from node_agent.security import OPEN, Security

BURST = 64
"""Messages read at a time: what else there is to do waits for no more."""

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
        self._made_core = partial(ClientCore, address, absence_s)
        self._core = self._made_core()
        self.alone: Alone | None = None
        self._owner: Many | None = None
        """Whose all requests under way are, where they are one thread's."""
        self.futures: dict[bytes, Future[Outputs]] = {}
        self._unsent: deque[tuple[Infer | Recall | GiveUp, Sequence[Any]]] = deque()
        self._kept: dict[bytes, Future[None]] = {}
        self._crash: DeferError | None = None
        self._loop = SocketLoop(
            "defer-client",
            opened=lambda: self._line.open(),
            next_wake=self._next_wake,
            turned=self._turned,
            closed=self._close,
            on_crash=self._crashed,
            security=security,
            idle=self._is_idle,
            renew=self._renew,
        )
        self._line = Line(
            self._loop,
            [endpoints] if isinstance(endpoints, str) else endpoints,
            self._changed,
            self._on_data,
        )

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
            future.add_done_callback(lambda _: kept_now(kept))
        if isinstance(future, Owned) and self._loop.drive(Sending(self, submit, future)):
            return future

        def run() -> None:
            others = bool(self.futures)
            if self.take(submit, future, kept) and isinstance(future, Awaited | Owned):
                self._loop.rests_soon(not others or self._owner is not None)

        if not self._loop.enqueue(run):
            future.set_exception(self._crash or Cancelled("the client is closed"))
        return future

    def wait(self, owner: Many, ended: Callable[[], bool]) -> None:
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
        if self._line.dialled.refusal is not None:
            self._line.redial()  # keys may have been put right

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
        self._line.renew()

    def _changed(self, event: c.Event) -> None:
        """What the line tells of itself."""
        if isinstance(event, c.Disconnected):
            self._unsent.clear()  # whatever is unanswered is sent again on the next connection
        self._feed(event)

    def _close(self) -> None:
        try:
            if self._crash is None:
                self._feed(c.Closed())
        finally:
            # After a crash the core may know less than it was given: no future is left to wait for ever.
            for request in list(self.futures):
                self._settle(request, partial(_raise, self._crash or Cancelled("the client is closed")))
            self._line.close()

    def _crashed(self, error: BaseException) -> None:
        self._crash = translate(error)

    def _next_wake(self) -> float:
        wake = min(self._core.next_wake(), self._line.wake)
        return min(wake, time.monotonic() + RETRY_S) if self._unsent else wake

    def _turned(self) -> None:
        if self._core.next_wake() <= time.monotonic():
            self._feed(c.Tick())
        if self._line.several:
            self._line.turned(self._core.owed_since)
        while self._unsent:
            message, frames = self._unsent[0]
            if send(self._line.socket, encode_header(message), frames) is not Sent.YES:
                return
            self._unsent.popleft()

    def _on_data(self) -> None:
        if self._line.several:
            self._line.heard()
        # Whoever is alone comes for one message: whether there are more is asked with the next turn anyway.
        most = BURST if self.alone is None else 1
        for _, header, frames in incoming(self._line.socket, routed=False, most=most):
            if type(header) is Result:
                self._feed(c.ResultArrived(header, frames))
                continue
            match header:
                case Rejection():
                    self._feed(c.RejectionArrived(header))
                case Accepted(request) if request in self._kept:
                    kept_now(self._kept.pop(request))
                case Greeting():
                    self._line.greeted(header)
                case Refusal():
                    self._line.refused(header)
                case FrameError():
                    self._line.redial()  # what came is not ours: the bytes of this connection cannot be trusted
                    return

    def _feed(self, event: c.Event) -> None:
        for instruction in self._core.handle(event, time.monotonic()):
            if type(instruction) is c.SendInfer:
                self._send(instruction.infer, instruction.frames)
                continue
            match instruction:
                case c.Resolve(request, tensors, frames):
                    self._settle(request, partial(decoded, tensors, frames))
                case c.SendGiveUp(request):
                    self._send(GiveUp(request), ())
                case c.Fail(request, code, message, hint):
                    self._settle(request, partial(_raise, from_code(code, message, hint)))

    def _send(self, infer: Infer | Recall | GiveUp, frames: Sequence[Any]) -> None:
        if self._unsent or send(self._line.socket, encode_header(infer), frames) is not Sent.YES:
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


def decoded(tensors: Sequence[TensorHeader], frames: Sequence[Any]) -> Outputs:
    """A result as its caller gets it."""
    arrays: Outputs = {}
    for header, frame in zip(tensors, frames, strict=True):
        # The caller gets arrays that are its own to write to; short frames are `bytes`.
        own = bytearray(frame) if type(frame) is bytes and header.codec == "raw" else frame
        array = unpack_tensor(header, own)
        arrays[header.name] = array if array.flags.writeable else array.copy()
    return arrays


def _raise(error: DeferError) -> Outputs:
    raise error
