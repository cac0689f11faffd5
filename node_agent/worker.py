"""The run thread: runs partitions, one item at a time, and the thread that asks it can run a short one itself."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

from node_agent.errors import AgentError, code_of
from node_agent.threads import Shell
from node_agent.work import Work

log = logging.getLogger(__name__)

SHORT_NS = 300_000
"""A run below this takes less than what waking two threads for it costs, on a slow or busy core."""


class Worker(Shell):
    """See the module.

    Args:
        name: This device's name.
        done: Takes items that have run or failed, in the run thread.
        drop: Lets go of an item whose epoch is gone, in the run thread.
    """

    def __init__(self, name: str, *, done: Callable[[Work], None], drop: Callable[[Work], None]) -> None:
        super().__init__("run")
        self.progress = 0
        self.started_ns = 0
        """Monotonic time when the item in work was begun; 0 when idle."""
        self._name = name
        # Its length is bounded by the credit granted upstream.
        self._runs: SimpleQueue[Work | Callable[[], None]] = SimpleQueue()
        self._busy = threading.Lock()
        self._done = done
        self._drop = drop

    def put(self, work: Work | Callable[[], None]) -> None:
        """Runs an item, or makes a call, in this thread after everything that waits now."""
        self._runs.put(work)

    def run_here(self, work: Work) -> bool:
        """Runs an item in the calling thread if that is short and nothing else runs or waits; whether it did."""
        if (
            not 0 < work.loaded.run_ns < SHORT_NS
            or not self._runs.empty()
            or not self._busy.acquire(blocking=False)
        ):
            return False
        try:
            self._run_one(work)
        finally:
            self._busy.release()
        return True

    def wake(self) -> None:
        """See `Shell.wake`."""
        self._runs.put(_nothing)

    def turn(self) -> None:
        """See `Shell.turn`."""
        work = self._runs.get()
        if not isinstance(work, Work):
            work()
        elif work.loaded.closed:
            work.loaded.counters.dropped += 1
            self._drop(work)
        else:
            with self._busy:
                self._run_one(work)
            self._done(work)

    def _run_one(self, work: Work) -> None:
        begun = time.monotonic_ns()
        self.started_ns = begun
        loaded = work.loaded
        counters = loaded.counters
        counters.wait_ns += begun - work.arrived_ns
        if not work.fail_if_expired(self._name):
            assert loaded.session is not None
            assert work.inputs is not None
            try:
                work.outputs = loaded.session.run(work.inputs)
                work.inputs = None
            except AgentError as error:
                work.fail(code_of(error), f"{error} {error.hint}".strip(), self._name)
            except Exception as error:
                # An engine's own exception that it did not translate ends one request, not the agent.
                log.exception("The engine raised.")
                work.fail("internal", f"{type(error).__name__}: {error}", self._name)
            ended = time.monotonic_ns()
            took = ended - begun
            counters.run_ns += took
            if work.marks is not None:
                work.marks.run = (begun, ended)
            # Moves by an eighth towards what was measured, so that one interrupted run counts no more than another.
            step = loaded.run_ns >> 3
            loaded.run_ns = (loaded.run_ns + (step if took > loaded.run_ns else -step)) or took
        self.progress += 1
        self.started_ns = 0


def _nothing() -> None:
    """Wakes the thread."""
