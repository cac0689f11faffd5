"""One thread that owns sockets: it polls them, and runs what other threads put on its queue.

A thread that waits for an answer may drive the sockets itself, where nobody else wants anything of them: two wake-ups
less. Whoever leads, the loop's own thread or a driving one, is the only one that touches the sockets:

    the thread leads ──idle, and somebody wanted to drive──▶ nobody leads ◀──────────── done, or others come in ────┐
          ▲                                                     │      └──drive──▶ a caller leads ──────────────────┘
          └──── a command, the end, or `rest_s` without a driver ┘

A driver sees no command of others run: it leaves when one comes. So whatever interrupts a client's, such as Ctrl-C in
the middle of a message, spoils nothing but its own request; the sockets are then opened anew. A dispatcher has more to
lose than sockets: its loop goes on where the driver was interrupted as it waited, and ends else (`renew`).
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket as sockets
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from defer.bell import Bell
from node_agent.link import Context, Socket, new_context
from node_agent.readiness import Readiness
from node_agent.security import OPEN, Security

logger = logging.getLogger("defer")

_LONGEST_POLL_MS = 3_600_000

REST_S = 0.25
"""How long the thread leaves the sockets alone after somebody has driven them."""

WANTED = 2
"""So many errands in a row found nothing else under way: then the next one may drive."""


class Errand(Protocol):
    """What a thread drives the sockets for."""

    @property
    def done(self) -> bool:
        """Whether it has what it came for."""

    def begin(self) -> None:
        """First, when the caller leads."""

    def leave(self) -> None:
        """Last, where it is not done: from now on the loop's thread goes on with it."""

    @property
    def until(self) -> float:
        """When it is done at the latest, on the monotonic clock."""


class _Lead:
    """Who touches the sockets; one for each time that somebody takes them."""

    __slots__ = ("thread",)

    def __init__(self) -> None:
        self.thread = threading.get_ident()


_LOOPS: weakref.WeakSet[SocketLoop] = weakref.WeakSet()


def _forked() -> None:
    for loop in list(_LOOPS):
        loop._in_child()


os.register_at_fork(after_in_child=_forked)


class SocketLoop:
    """The thread, its ZeroMQ context, and what wakes it.

    All callables run in the thread, or in that which drives in its place.

    Args:
        name: Of the thread.
        opened: Called first; makes the sockets. Its error is raised by `start`.
        next_wake: When `turned` must run even if nothing arrives, on the monotonic clock; infinity for never.
        turned: Called after the sockets and commands of each turn.
        closed: Called last, when every accepted command has run; what it leaves open is closed with the context.
        on_crash: Called when the thread ends by an error.
        security: How its sockets are protected.
        idle: Whether nothing is under way that others wait for, so that a caller may drive for an errand (None: for
            any); nobody may where it is not given.
        renew: Called where a driver was interrupted: opens all sockets anew, and trusts nothing that it left. Without
            it, the thread ends by an error.
        rest_s: How long the thread leaves the sockets alone after somebody has driven them.
    """

    def __init__(
        self,
        name: str,
        *,
        opened: Callable[[], None],
        next_wake: Callable[[], float],
        turned: Callable[[], None],
        closed: Callable[[], None],
        on_crash: Callable[[BaseException], None] | None = None,
        security: Security = OPEN,
        idle: Callable[[Errand | None], bool] = lambda _: False,
        renew: Callable[[], None] | None = None,
        rest_s: float = REST_S,
    ) -> None:
        self._name = name
        self.security = security
        self._opened, self._next_wake, self._turned, self._closed = opened, next_wake, turned, closed
        self._on_crash = on_crash
        self._idle, self._renew = idle, renew
        self._rest_s = rest_s
        self._commands: deque[Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._ended = False
        self._signalled = False
        # A signal's handler may call from within.
        self._lock = threading.RLock()
        self._lead: _Lead | None = None
        self._bell = Bell()
        """Rung where nobody leads and the thread should."""
        self._wanted = 0
        self._driven = -math.inf
        self._torn = False
        self._broken: Exception | None = None
        self.forked = False
        """Whether this process is a child of the one whose thread it was: its sockets are not for this one."""
        _LOOPS.add(self)

    def _in_child(self) -> None:
        self._lock = threading.RLock()
        self._ended = self.forked = True
        self._lead = _Lead()
        self._lead.thread = 0  # nobody here
        self._thread = None

    # ------------------------------------------------------------------------------------------- any thread's

    @property
    def running(self) -> bool:
        """Whether the thread has been started and takes commands."""
        return self._thread is not None and self._thread.is_alive() and not self._ended

    def start(self) -> None:
        """Start the thread and wait until its sockets are open."""
        self._wake_read, self._wake_write = sockets.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name=self._name, daemon=True)
        self._thread.start()
        try:
            started.result(timeout=10)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the thread; commands that it has not run yet run first."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is None:
            return
        self._closing = True
        self._wake()
        self._bell.ring()
        if self.driving:
            return  # a signal's handler, with a driver's frame below it that must go on first; the thread ends then
        thread.join(timeout=10)
        self._wake_read.close()
        self._wake_write.close()

    def enqueue(self, command: Callable[[], None]) -> bool:
        """Run `command` in the thread, soon and in order; before `closed` at the latest.

        Returns:
            False where the thread has ended, and the command will not run.
        """
        with self._lock:
            if self._ended:
                return False
            self._commands.append(command)
            led = self._lead is not None
        # One that leaves at this moment looks for commands after it has left.
        if led:
            self._wake()
        else:
            self._bell.ring()
        return True

    @property
    def driving(self) -> bool:
        """Whether the calling thread leads, further down its stack: then it can wait for nothing here."""
        lead = self._lead
        return lead is not None and lead.thread == threading.get_ident()

    def drive(self, errand: Errand) -> bool:
        """Turn in the calling thread until an errand is done, where nothing else is under way.

        Returns:
            False where it cannot be, and nothing was done. True where the errand is done, or its `leave` was called.
        """
        lead = _Lead()
        try:
            with self._lock:
                if self._lead is not None or self._commands or self._closing or not self._may_drive(errand):
                    return False
                self._lead = lead
            self._torn = True
            errand.begin()
            while not errand.done:
                if self._commands or self._closing:
                    errand.leave()
                    break
                self._wait(errand.until)
                self._turned()
            self._torn = False
        except BaseException as error:
            if self._renew is None and self._readiness.waits:
                self._torn = False  # nothing is half done
                raise
            if not isinstance(error, Exception):
                raise
            self._torn, self._broken = False, error
            errand.leave()
        finally:
            # Nothing is called before the lead is given back: a signal's handler may raise wherever something is.
            if self._lead is lead:
                self._lead = None
                self._driven = time.monotonic()
                if self._needed() or not self._idle(errand):
                    self._driven = -math.inf
                    self._bell.ring()
        return True

    def _may_drive(self, errand: Errand) -> bool:
        return not self._torn and self._broken is None and self._idle(errand)

    def rests_soon(self, alone: bool) -> None:
        """In the thread: an errand came that did not drive; whether nothing else was under way."""
        self._wanted = self._wanted + 1 if alone else 0

    def _wake(self) -> None:
        if not self._signalled:
            self._signalled = True
            try:
                self._wake_write.send(b"\0")
            except OSError:
                pass  # full of such bytes, or closed
            except (
                BaseException
            ):  # a signal's handler raised: who comes next must not believe that it was sent
                self._signalled = False
                raise

    # ------------------------------------------------------------------------------------------ in the thread

    def watch(self, source: Socket | int, handler: Callable[[], None]) -> None:
        """Call `handler` whenever something waits on `source`; see `Readiness`."""
        self._readiness.watch(source, handler)

    def unwatch(self, source: Socket | int) -> None:
        """Watch a socket no more; before it is closed."""
        self._readiness.unwatch(source)

    def _run(self, started: Future[None]) -> None:
        self.context: Context = new_context(self.security)
        try:
            self._readiness = Readiness()
            self.watch(self._wake_read.fileno(), self._woken)
            self._take()
            self._opened()
            self._run_commands()  # what was put there before the start comes before all that now arrives
            started.set_result(None)
            while not self._closing:
                self._turn()
                if self._wanted >= WANTED and self._idle(None):
                    self._rest()
        except Exception as error:
            if not started.done():
                started.set_exception(error)
                return
            logger.exception("the thread %s failed", self._name)
            if self._on_crash is not None:
                self._on_crash(error)
        finally:
            while not self._take():  # a driver sees that this is the end, or that the thread has failed
                self._bell.wait(REST_S)
            with self._lock:
                self._ended = True
            try:
                self._run_rest()
                self._closed()
            finally:
                self.context.destroy(linger=200)
                self._wake_read.close()
                self._wake_write.close()

    def _take(self) -> bool:
        """Lead, unless a driver does."""
        with self._lock:
            lead = self._lead
            if lead is None:
                lead = self._lead = _Lead()
        return lead.thread == threading.get_ident()

    def _needed(self) -> bool:
        """Whether there is work for the thread where it rests."""
        return bool(self._commands) or self._closing or self._torn or self._broken is not None

    def _rest(self) -> None:
        """Leave the sockets to whoever drives, until there is work for the thread or nobody has driven for a while."""
        with self._lock:
            if self._commands or self._closing:
                return
            self._lead, self._wanted, self._driven = None, 0, time.monotonic()
        while True:
            left = self._driven + self._rest_s - time.monotonic()
            if (left <= 0 or self._needed()) and self._take():
                break
            self._bell.wait(left if left > 0 else self._rest_s)
        if self._broken is not None:
            raise self._broken
        if self._torn:
            self._begin_anew()
        self._run_commands()
        self._turned()

    def _begin_anew(self) -> None:
        """A driver was interrupted anywhere: in the middle of a message, of waking, of noting what was read."""
        if self._renew is None:
            raise RuntimeError(f"a thread was ended from outside while it drove the sockets of {self._name}")
        with contextlib.suppress(BlockingIOError):
            self._wake_read.recv(4096)
        self._signalled = False
        self._readiness = Readiness()
        self.watch(self._wake_read.fileno(), self._woken)
        self._renew()
        self._torn = False

    def _turn(self) -> None:
        self._wait()
        if self._commands:
            self._run_commands()
        self._turned()

    def _wait(self, until: float = math.inf) -> None:
        wake = min(until, self._next_wake()) - time.monotonic()
        timeout = (
            min(_LONGEST_POLL_MS, max(0, math.ceil(wake * 1000))) if wake < math.inf else _LONGEST_POLL_MS
        )
        self._readiness.turn(timeout)

    def _run_commands(self) -> None:
        while self._commands:
            self._commands.popleft()()

    def _run_rest(self) -> None:
        """What was accepted before the end still runs, even after a crash: somebody may wait for it."""
        while self._commands:
            try:
                self._commands.popleft()()
            except Exception:
                logger.exception("a command of the thread %s failed at its end", self._name)

    def _woken(self) -> None:
        # In this order: whoever finds the flag set has put its command where this turn still finds it, and whoever
        # finds it cleared sends a byte that is not read here any more.
        with contextlib.suppress(BlockingIOError):
            self._wake_read.recv(4096)
        self._signalled = False
