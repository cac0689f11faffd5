"""One thread that owns sockets: it polls them, and runs what other threads put on its queue."""

from __future__ import annotations

import contextlib
import logging
import math
import socket as sockets
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

from node_agent.link import Context, Socket, new_context
from node_agent.readiness import Readiness
from node_agent.security import OPEN, Security

logger = logging.getLogger("defer")

_LONGEST_POLL_MS = 3_600_000


class SocketLoop:
    """The thread, its ZeroMQ context, and what wakes it.

    All callables run in the thread.

    Args:
        name: Of the thread.
        opened: Called first; makes the sockets. Its error is raised by `start`.
        next_wake: When `turned` must run even if nothing arrives, on the monotonic clock; infinity for never.
        turned: Called after the sockets and commands of each turn.
        closed: Called last, when every accepted command has run; what it leaves open is closed with the context.
        on_crash: Called when the thread ends by an error.
        security: How its sockets are protected.
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
    ) -> None:
        self._name = name
        self.security = security
        self._opened, self._next_wake, self._turned, self._closed = opened, next_wake, turned, closed
        self._on_crash = on_crash
        self._commands: deque[Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._ended = False
        self._signalled = False
        self._lock = threading.Lock()

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
        self._wake()
        return True

    def _wake(self) -> None:
        if not self._signalled:
            self._signalled = True
            with contextlib.suppress(BlockingIOError, OSError):
                self._wake_write.send(b"\0")

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
            self._opened()
            started.set_result(None)
            while not self._closing:
                self._turn()
        except Exception as error:
            if not started.done():
                started.set_exception(error)
                return
            logger.exception("the thread %s failed", self._name)
            if self._on_crash is not None:
                self._on_crash(error)
        finally:
            with self._lock:
                self._ended = True
            try:
                self._run_rest()
                self._closed()
            finally:
                self.context.destroy(linger=200)

    def _turn(self) -> None:
        wake = self._next_wake() - time.monotonic()
        timeout = (
            min(_LONGEST_POLL_MS, max(0, math.ceil(wake * 1000))) if wake < math.inf else _LONGEST_POLL_MS
        )
        self._readiness.turn(timeout)
        self._run_commands()
        self._turned()

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
