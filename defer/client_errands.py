"""What a thread drives a client's connection for, and the futures of those that may; see `defer.socket_loop`."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from defer.client_arrays import Outputs
from defer.client_events import Submit

if TYPE_CHECKING:
    from defer.client_session import Session


class Answer(Future[Outputs]):
    """A future that tells the dispatcher when it is cancelled, so that no stage works for it any more."""

    def __init__(self) -> None:
        super().__init__()
        self.give_up: Callable[[], object] | None = None

    def cancel(self) -> bool:
        """See `concurrent.futures.Future`."""
        cancelled = super().cancel()
        give_up, self.give_up = self.give_up, None
        if cancelled and give_up is not None:
            give_up()
        return cancelled


class Awaited(Answer):
    """A future that one thread waits for; an interrupt of that thread harms nobody else.

    A signal's handler that raises inside `Future.result` may leave the future's lock taken, and who has the result would
    wait for that for ever.
    """

    def __init__(self) -> None:
        super().__init__()
        self._gate = threading.Lock()
        self._gate.acquire()
        self.add_done_callback(lambda _: self._gate.release())

    def wait(self, seconds: float) -> bool:
        """Wait until it has ended, for so long at most, or without end where that is negative; whether it has."""
        return self._gate.acquire(timeout=min(seconds, threading.TIMEOUT_MAX))


def kept_now(kept: Future[None]) -> None:
    """Tell whoever waits that a durable request is in the store, or has ended; whoever is first counts."""
    with contextlib.suppress(InvalidStateError):
        kept.set_result(None)


class Many:
    """Stands for the many requests that one thread sends and waits for.

    Attributes:
        answers: Those that have come for it to end itself, where somebody else than the thread reads the connection.
    """

    def __init__(self) -> None:
        self.answers: SimpleQueue[Any] = SimpleQueue()


class Owned(Answer):
    """A future of one of many requests, which one thread sends and waits for.

    Args:
        owner: Stands for that thread's many.
    """

    def __init__(self, owner: Many) -> None:
        super().__init__()
        self.owner = owner


class Sending:
    """One of many requests is sent by the thread that will wait for it; see `socket_loop.Errand`."""

    __slots__ = ("done", "future", "owner", "session", "submit")
    until = math.inf

    def __init__(self, session: Session, submit: Submit, future: Owned) -> None:
        self.session, self.submit, self.future = session, submit, future
        self.owner = future.owner
        self.done = False

    def begin(self) -> None:
        """See `Errand`."""
        self.session.take(self.submit, self.future)
        self.done = True

    def leave(self) -> None:
        """See `Errand`."""
        self.session.futures[self.submit.request] = self.future  # it ends with the loop that has failed


class Waiting:
    """The thread with many requests under way waits for one of them."""

    __slots__ = ("ended", "owner")
    until = math.inf

    def __init__(self, owner: Many, ended: Callable[[], bool]) -> None:
        self.owner, self.ended = owner, ended

    @property
    def done(self) -> bool:
        """See `Errand`."""
        return self.ended()

    def begin(self) -> None:
        """See `Errand`."""

    def leave(self) -> None:
        """See `Errand`."""


class Alone:
    """A request whose caller drives the connection; see `socket_loop.Errand`."""

    __slots__ = ("done", "future", "outcome", "session", "submit")
    until = math.inf

    def __init__(self, session: Session, submit: Submit) -> None:
        self.session, self.submit = session, submit
        self.done = False
        self.outcome: Callable[[], Outputs] | None = None
        self.future: Awaited | None = None

    def begin(self) -> None:
        """See `Errand`."""
        self.session.alone = self
        self.session.begin(self.submit)

    def leave(self) -> None:
        """See `Errand`."""
        self.future = self.session.goes_on(self.submit)
