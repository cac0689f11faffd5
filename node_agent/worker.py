"""The run thread: runs partitions, one item at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from queue import SimpleQueue
from threading import Lock
from typing import Any

from node_agent.errors import AgentError, code_of
from node_agent.threads import Shell
from node_agent.work import Work

log = logging.getLogger(__name__)

SHORT_NS = 300_000
"""A run this short is done where its item came in: waking another thread for it would take longer."""


class Worker(Shell):
    """See the module.

    Args:
        name: This device's name.
        runs: Items to run, and calls to make in between. Its length is bounded by the credit granted
            upstream.
        forward: Takes items that have run or failed.
        drop: Lets go of an item whose epoch is gone.
    """

    def __init__(
        self,
        name: str,
        runs: SimpleQueue[Any],
        *,
        forward: Callable[[Work], None],
        drop: Callable[[Work], None],
    ) -> None:
        super().__init__("run")
        self.progress = 0
        self.started_ns = 0
        """Monotonic time when the item in work was begun; 0 when idle."""
        self._name = name
        self._runs = runs
        self._forward = forward
        self._drop = drop
        self._running = Lock()

    def try_now(self, work: Work) -> bool:
        """Runs `work` in the calling thread where that is quicker than waking this one; whether it did.

        It must be nobody's turn before it, and its partition must have shown that it is short.
        """
        if not 0 < work.loaded.last_run_ns < SHORT_NS or not self._runs.empty():
            return False
        if not self._running.acquire(blocking=False):
            return False
        try:
            if work.loaded.closed:
                return False
            self._run_one(work)
        finally:
            self._running.release()
        return True

    def call(self, action: Callable[[], None]) -> None:
        """Makes a call in this thread after everything that waits now."""
        self._runs.put(action)

    def wake(self) -> None:
        """See `Shell.wake`."""
        self._runs.put(_nothing)

    def turn(self) -> None:
        """See `Shell.turn`."""
        work = self._runs.get()
        if not isinstance(work, Work):
            # Not beside a run that the receive thread has in hand: a call may be followed by its session's end.
            with self._running:
                work()
        elif work.loaded.closed:
            work.loaded.counters.dropped += 1
            self._drop(work)
        else:
            with self._running:
                self._run_one(work)

    def _run_one(self, work: Work) -> None:
        begun = time.monotonic_ns()
        self.started_ns = begun
        counters = work.loaded.counters
        counters.wait_ns += begun - work.arrived_ns
        if not work.fail_if_expired(self._name):
            assert work.loaded.session is not None
            assert work.inputs is not None
            try:
                work.outputs = work.loaded.session.run(work.inputs)
                work.inputs = None
            except AgentError as error:
                work.fail(code_of(error), f"{error} {error.hint}".strip(), self._name)
            except Exception as error:
                # An engine's own exception that it did not translate ends one request, not the agent.
                log.exception("The engine raised.")
                work.fail("internal", f"{type(error).__name__}: {error}", self._name)
            work.loaded.last_run_ns = time.monotonic_ns() - begun
            counters.run_ns += work.loaded.last_run_ns
        self.progress += 1
        self.started_ns = 0
        self._forward(work)


def _nothing() -> None:
    """Wakes the thread."""
