"""How requests of this process come to the dispatcher of this process: as values, through no socket.

The data thread only hands answers over. Whoever waits for one decodes it in its own thread; futures that nobody need be
waiting for are ended, and their callbacks run, in a thread of this session.
"""

from __future__ import annotations

import heapq
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import count
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from defer import api
from defer.client_arrays import Outputs
from defer.client_core import GRACE_S, STALL_S, advice, asked, pause_s
from defer.client_errands import Answer, Many, Owned, kept_now
from defer.client_events import Submit
from defer.client_served import Served
from defer.client_session import decoded
from defer.errors import Cancelled, DeadlineExceeded, DeferError, from_code
from defer.translating import translate
from node_agent.messages import Infer, Rejection, Result

if TYPE_CHECKING:
    from defer.dispatcher.callers import Driven
    from defer.dispatcher.daemon import Daemon
    from defer.dispatcher.shell import DataShell

logger = logging.getLogger("defer")

LOOK_S = 1.0
"""How often a thread that waits for one of its many requests looks whether it still waits for anything."""

_Told = tuple[Result | Rejection, Sequence[Any]]


class InProcessServed(Served):
    """What the dispatcher of this process serves.

    Args:
        daemon: It.
    """

    def __init__(self, daemon: Daemon) -> None:
        super().__init__((daemon.address,), math.inf, daemon.pool.security)
        self._daemon = daemon

    def refresh(self) -> tuple[api.ModelInfo, ...]:
        """See `Served`."""
        answer = self._daemon.verbs.models()
        self._note(answer, self._daemon.address)
        return answer.models

    def status(self) -> api.ServerStatus:
        """See `Served`."""
        return self._daemon.verbs.status()


class InProcessSession:
    """Carries the requests of one client; see `client_requests.Carrier`.

    Args:
        shell: The dispatcher's data thread.
    """

    def __init__(self, shell: DataShell) -> None:
        self._shell = shell
        self._lock = threading.Lock()
        self._closed = False
        self._open: dict[_Way, None] = {}
        """The requests that have no answer yet."""
        self._clerk: _Clerk | None = None

    @property
    def forked(self) -> bool:
        """See `Carrier`."""
        return self._shell.forked

    def drive(self, submit: Submit) -> Outputs:
        """Send a request, and wait for its answer.

        Raises:
            DeferError: The request failed.
        """
        gate = threading.Lock()
        gate.acquire()
        way = _Way(submit, lambda _: gate.release())
        try:
            self._send(way, waits=True)
            left = submit.deadline + STALL_S - time.monotonic()
            if way.told is None and not gate.acquire(timeout=max(0.0, min(left, threading.TIMEOUT_MAX))):
                raise _overdue()
            return way.outcome()
        finally:
            self._forget(way)

    def launch(
        self, submit: Submit, future: Future[Outputs], kept: Future[None] | None = None
    ) -> Future[Outputs]:
        """See `Carrier`."""
        clerk = self._clerk_at_work()
        way = _Way(submit, clerk.settle, future)
        if isinstance(future, Owned):
            way.settled = future.owner.answers.put
        if kept is not None:
            future.add_done_callback(lambda _: kept_now(kept))
            way.kept = partial(kept_now, kept)
        if isinstance(future, Answer):
            future.give_up = partial(self._forget, way)
        try:
            self._send(way)
        except BaseException:
            self._forget(way)
            raise
        if submit.recall and submit.deadline < math.inf:
            # The request has its own deadline, and this is another.
            clerk.later(submit.deadline + GRACE_S, partial(self._end, way, _overdue()))
        return future

    def wait(self, owner: Many, ended: Callable[[], bool]) -> None:
        """See `Carrier`: end the futures of the caller's requests as their answers come, until `ended`."""
        while not ended():
            try:
                owner.answers.get(timeout=LOOK_S).settle()
            except Empty:
                if not self._open and owner.answers.empty():
                    return

    def close(self) -> None:
        """See `Carrier`."""
        with self._lock:
            self._closed = True
            clerk = self._clerk
        for way in list(self._open):
            self._end(way, Cancelled("the client is closed"))
        if clerk is not None:
            clerk.close()

    # --------------------------------------------------------------------------------------------------- inside

    def _send(self, way: _Way, *, waits: bool = False) -> None:
        self._open[way] = None  # first: whoever closes meanwhile finds it
        if self._closed:
            raise Cancelled("the client is closed")
        self._again(way, waits=waits)

    def _again(self, way: _Way, *, waits: bool = False) -> None:
        """Send it; where the calling thread `waits` for it, it may have its answer then."""
        submit, shell = way.submit, self._shell
        infer, answered = asked(submit, time.monotonic()), partial(self._answered, way)
        driven: Driven | None = None
        if waits and isinstance(infer, Infer):
            driven = shell.driven(infer, submit.frames, answered, submit.deadline + STALL_S)
        if driven is not None:
            way.give_up = driven.give_up
            if way in self._open and shell.drive(driven):
                return
        way.give_up = shell.request(infer, submit.frames, answered, way.kept, waits=driven is not None)
        if way not in self._open:  # it was forgotten meanwhile, or has its answer
            way.give_up()
            way.give_up = _nothing

    def _answered(self, way: _Way, answer: Result | Rejection, frames: Sequence[Any]) -> None:
        """Takes an answer, in the data thread."""
        submit = way.submit
        if type(answer) is Rejection and answer.code == "overloaded" and submit.patient and way in self._open:
            due = time.monotonic() + pause_s(way.tries)
            if due < submit.deadline and not self._closed:
                way.tries += 1
                self._clerk_at_work().later(due, partial(self._once_more, way))
                return
        if self._open.pop(way, way) is None:
            way.told = answer, frames
            way.settled(way)

    def _once_more(self, way: _Way) -> None:
        if way in self._open:
            self._again(way)

    def _end(self, way: _Way, error: DeferError) -> None:
        """End a request that has no answer yet."""
        if self._open.pop(way, way) is None:
            way.give_up()
            way.error = error
            if way.future is None:
                way.settled(way)
            else:
                way.settle()

    def _forget(self, way: _Way) -> None:
        """Nobody waits for it any more."""
        if self._open.pop(way, way) is None:
            way.give_up()
        way.give_up = _nothing  # it knows its way: a cycle that would keep the tensors

    def _clerk_at_work(self) -> _Clerk:
        clerk = self._clerk
        if clerk is None:
            with self._lock:
                if self._closed:
                    raise Cancelled("the client is closed")
                if self._clerk is None:
                    self._clerk = _Clerk()
                clerk = self._clerk
        return clerk


class _Way:
    """A request on its way, and what becomes of it.

    Args:
        submit: The request.
        settled: Takes it in the data thread when it has its answer.
        future: Of the answer, where there is one.
    """

    __slots__ = ("error", "future", "give_up", "kept", "settled", "submit", "told", "tries")

    def __init__(
        self, submit: Submit, settled: Callable[[_Way], object], future: Future[Outputs] | None = None
    ) -> None:
        self.submit, self.settled, self.future = submit, settled, future
        self.kept: Callable[[], object] | None = None
        self.give_up: Callable[[], object] = _nothing
        self.told: _Told | None = None
        self.error: DeferError | None = None
        self.tries = 0

    def outcome(self) -> Outputs:
        """The answer, decoded in the calling thread.

        Raises:
            DeferError: The request failed.
        """
        if self.error is not None:
            raise self.error
        assert self.told is not None
        answer, frames = self.told
        if isinstance(answer, Rejection):
            raise from_code(answer.code, answer.message, advice(self.submit, answer.code))
        try:
            return decoded(answer.tensors, frames)
        except Exception as error:
            raise translate(error) from error

    def settle(self) -> None:
        """End the future, in the calling thread."""
        future = self.future
        self.give_up = _nothing
        if isinstance(future, Answer):
            future.give_up = None
        if future is None or not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(self.outcome())
        except Exception as error:
            future.set_exception(error)
        self.told = None


class _Clerk:
    """The thread that ends futures, and sends again what an overloaded dispatcher did not take."""

    def __init__(self) -> None:
        self._told: SimpleQueue[_Way | None] = SimpleQueue()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._lock = threading.Lock()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="defer-in-process", daemon=True)
        self._thread.start()

    def settle(self, way: _Way) -> None:
        with self._lock:
            if not self._ended:
                self._told.put(way)
                return
        way.settle()

    def later(self, due: float, action: Callable[[], None]) -> None:
        with self._lock:
            heapq.heappush(self._due, (due, next(self._numbers), action))
        self._told.put(_LOOK)

    def close(self) -> None:
        with self._lock:
            self._ended = True
            self._told.put(None)
        if self._thread is not threading.current_thread():
            self._thread.join(STALL_S)

    def _run(self) -> None:
        while True:
            with self._lock:
                wait = max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
            try:
                way = self._told.get(timeout=wait)
            except Empty:
                with self._lock:
                    _, _, action = heapq.heappop(self._due)
                _unharmed(action)
                continue
            if way is None:
                return
            if way is not _LOOK:
                _unharmed(way.settle)


def _unharmed(action: Callable[[], None]) -> None:
    """Whatever a caller's callback raises, the answers of others go on."""
    try:
        action()
    except BaseException:
        logger.exception("a callback of a request's future failed")


def _overdue() -> DeadlineExceeded:
    return DeadlineExceeded(
        "no answer came in time, though the dispatcher is in this process: it is stalled, or too busy"
    )


def _nothing() -> None:
    pass


_LOOK: Any = object()
"""Put among the answers: there is something new to be done later."""
