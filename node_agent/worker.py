"""The run thread: runs partitions, one item at a time, and the thread that asks it can run a short one itself.

Where a partition lies on a device whose copies run beside its computation (`OverlappingSession`), the thread hands over
what waits before it takes back what is done: as many items as the session has slots, taken back in their order.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import Empty

from node_agent.batching import Batching, joined, parted
from node_agent.engines.base import OverlappingSession
from node_agent.errors import AgentError, code_of, said
from node_agent.in_flight import InFlight
from node_agent.line import Waiting
from node_agent.thread_clock import ThreadClock
from node_agent.threads import Shell
from node_agent.work import LoadedRoute, Work

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
        """Monotonic time when the item in work was begun, and had the device for itself; 0 when idle."""
        self._name = name
        # Its length is bounded by the credit granted upstream.
        self._runs: Waiting[Work | Callable[[], None]] = Waiting()
        # What was taken from there while a batch was gathered, and is for later; for the run thread alone.
        self._ahead: deque[Work | Callable[[], None]] = deque()
        self._in_flight = InFlight()
        # Held while something runs here or there, or is in flight.
        self._busy = threading.Lock()
        self._clocks: dict[bool, ThreadClock] = {}
        """Of this thread (False) and of the one that runs short items itself (True)."""
        self._elsewhere = False
        self._done = done
        self._drop = drop
        self.processor_ns: Callable[[], int] | None = None
        """Processor time that runs use, read in the thread that runs; None where nobody counts it."""
        self._used_ns = 0

    def put(self, work: Work | Callable[[], None]) -> None:
        """Runs an item, or makes a call, in this thread: a call after everything that waits now, an item in its line."""
        self._runs.put(work, work.priority if isinstance(work, Work) else None)

    def run_here(self, work: Work) -> bool:
        """Runs an item in the calling thread if that is short and nothing else runs or waits; whether it did."""
        if not self.begin(work.loaded):
            return False
        try:
            self._run_one(work)
        finally:
            self._busy.release()
        return True

    def begin(self, loaded: LoadedRoute) -> bool:
        """Whether the calling thread may run an item now, as `run_here`; if so `end` must follow."""
        if (
            not 0 < loaded.run_ns < SHORT_NS
            or loaded.batching is not None
            or self._ahead
            or not self._runs.empty()
            or not self._busy.acquire(blocking=False)
        ):
            return False
        if not self._elsewhere:
            self._elsewhere = True
            self._clock()
        if self.processor_ns is not None:
            self._used_ns = self.processor_ns()
        self.started_ns = time.monotonic_ns()
        return True

    def cpu_s(self) -> float:
        """Seconds in which the thread with the item in work had or wanted a processor; 0 where nobody tells."""
        clock = self._clocks.get(self._elsewhere)
        return clock.seconds() if clock is not None else 0.0

    def _clock(self) -> None:
        """Notes the calling thread's clock."""
        if self._elsewhere not in self._clocks:
            self._clocks[self._elsewhere] = ThreadClock()

    def end(self, loaded: LoadedRoute, arrived_ns: int) -> int:
        """After the run that `begin` allowed; what time it is."""
        now = time.monotonic_ns()
        if self.processor_ns is not None:
            loaded.counters.processor_ns += self.processor_ns() - self._used_ns
        loaded.counters.wait_ns += self.started_ns - arrived_ns
        loaded.ran(now - self.started_ns)
        self.progress += 1
        self.started_ns = 0
        self._busy.release()
        return now

    def open(self) -> None:
        """See `Shell.open`."""
        self._clock()

    def wake(self) -> None:
        """See `Shell.wake`."""
        self._runs.put(_nothing, None)

    def turn(self) -> None:
        """See `Shell.turn`."""
        if self._in_flight:
            work = self._taken_now()
            if work is None:
                self._land()
                return
            if (
                not isinstance(work, Work)
                or work.loaded.overlapping is None
                or work.loaded.batching is not None
            ):
                self._land_all()
        else:
            work = self._ahead.popleft() if self._ahead else self._runs.get()
        if not isinstance(work, Work):
            work()
        elif work.loaded.closed:
            work.loaded.counters.dropped += 1
            self._drop(work)
        elif work.loaded.batching is not None:
            batch = self._gather(work, work.loaded.batching)
            with self._busy:
                self._elsewhere = False
                self._run_batch(batch)
            for each in batch:
                self._done(each)
        elif work.loaded.overlapping is not None:
            self._launch(work, work.loaded.overlapping)
        else:
            with self._busy:
                self._elsewhere = False
                self._run_one(work)
            self._done(work)

    def _taken_now(self) -> Work | Callable[[], None] | None:
        """What waits; None where nothing does."""
        if self._ahead:
            return self._ahead.popleft()
        try:
            return self._runs.get_nowait()
        except Empty:
            return None

    def _launch(self, work: Work, session: OverlappingSession) -> None:
        """Hands an item to its device, and takes back older ones while every slot is taken."""
        while self._in_flight.full(session):
            self._land()
        first = not self._in_flight
        if first:
            self._busy.acquire()
            self._elsewhere = False
        begun = time.monotonic_ns()
        if first:
            self.started_ns = begun
        work.loaded.counters.wait_ns += begun - work.arrived_ns
        work.fail_if_expired(self._name)
        self._in_flight.launch(work, session, begun)

    def _land(self) -> None:
        """Takes back the oldest item, and hands it on."""
        flight = self._in_flight.land()
        work, ended = flight.work, time.monotonic_ns()
        self._in_flight.landed(flight, ended)
        if work.failure is None:
            if flight.alone:
                work.loaded.ran(flight.device_ns)
            else:
                # Part of it ran beside the one before: that is no length of a run.
                work.loaded.counters.run_ns += flight.device_ns
                work.loaded.counters.runs += 1
            if work.marks is not None:
                work.marks.run = (flight.begun_ns, ended)
            if flight.error is not None:
                self.failed(work, flight.error)
        self.progress += 1
        if self._in_flight:
            self.started_ns = ended
        else:
            self.started_ns = 0
            self._busy.release()
        self._done(work)

    def _land_all(self) -> None:
        while self._in_flight:
            self._land()

    def _gather(self, first: Work, batching: Batching) -> list[Work]:
        """Requests that run with `first`: those that wait already, and such as come before it must start."""
        gathering = _Gathering(first, batching)
        passed_by: list[Work | Callable[[], None]] = []
        while self._ahead and not gathering.full:
            entry = self._ahead.popleft()
            if not gathering.takes(entry):
                passed_by.append(entry)
        self._ahead.extendleft(reversed(passed_by))
        while not gathering.full:
            # Nobody else who waits for this thread is kept waiting.
            wait = 0.0 if self._ahead else gathering.patience_s()
            try:
                entry = self._runs.get(timeout=wait) if wait else self._runs.get_nowait()
            except Empty:
                break
            if not gathering.takes(entry):
                self._ahead.append(entry)
        return gathering.batch

    def _run_batch(self, batch: list[Work]) -> None:
        begun = time.monotonic_ns()
        self.started_ns = begun
        alive = [work for work in batch if not work.fail_if_expired(self._name)]
        loaded = batch[0].loaded
        if len(alive) > 1:
            try:
                assert loaded.session is not None
                outputs = loaded.session.run(joined([work.inputs or {} for work in alive]))
                parts = parted(outputs, len(alive))
            except Exception as error:
                # Each may be right by itself; from now on each has its own run.
                log.warning("A batch of %d of %s failed: %s", len(alive), loaded.route.model, error)
                loaded.batching, loaded.batch_note = None, f"a batch failed: {error}"
                parts = []
        else:
            parts = []
        if not parts:
            self.progress += len(batch) - len(alive)
            for work in alive:
                self._run_one(work)
            self.started_ns = 0
            return
        ended = time.monotonic_ns()
        counters = loaded.counters
        counters.runs += 1
        counters.run_ns += ended - begun
        for work, part in zip(alive, parts, strict=True):
            work.outputs, work.inputs = part, None
            counters.wait_ns += begun - work.arrived_ns
            if work.marks is not None:
                work.marks.run, work.marks.batch = (begun, ended), len(alive)
        self.progress += len(batch)
        self.started_ns = 0

    def _run_one(self, work: Work) -> None:
        begun = time.monotonic_ns()
        self.started_ns = begun
        loaded = work.loaded
        loaded.counters.wait_ns += begun - work.arrived_ns
        if not work.fail_if_expired(self._name):
            assert loaded.session is not None
            assert work.inputs is not None
            clock = self.processor_ns
            used = clock() if clock is not None else 0
            try:
                work.outputs = loaded.session.run(work.inputs)
                work.inputs = None
            except Exception as error:
                self.failed(work, error)
            ended = time.monotonic_ns()
            loaded.ran(ended - begun)
            if clock is not None:
                loaded.counters.processor_ns += clock() - used
            if work.marks is not None:
                work.marks.run = (begun, ended)
        self.progress += 1
        self.started_ns = 0

    def failed(self, work: Work, error: Exception) -> None:
        """Ends an item by what its run raised."""
        if isinstance(error, AgentError):
            work.fail(code_of(error), said(error), self._name)
        else:
            # An engine's own exception that it did not translate ends one request, not the agent.
            log.error("The engine raised.", exc_info=error)
            work.fail("internal", f"{type(error).__name__}: {error}", self._name)


class _Gathering:
    """A batch that is being put together."""

    def __init__(self, first: Work, batching: Batching) -> None:
        self.batch = [first]
        self._batching = batching
        self._shapes = _shapes(first)
        self._deadline = first.deadline_ns()

    @property
    def full(self) -> bool:
        return len(self.batch) >= self._batching.most

    def patience_s(self) -> float:
        """How long another request may be waited for; not at all where the batch has a preferred size already."""
        if len(self.batch) in self._batching.sizes:
            return 0.0
        start_by = self._batching.start_by(self.batch[0].arrived_ns, self._deadline, len(self.batch))
        return max(0, start_by - time.monotonic_ns()) / 1e9

    def takes(self, entry: Work | Callable[[], None]) -> bool:
        """Adds what belongs to the batch and makes nobody in it late."""
        if (
            not isinstance(entry, Work)
            or entry.loaded is not self.batch[0].loaded
            or _shapes(entry) != self._shapes
        ):
            return False
        due = entry.deadline_ns()
        deadline = min((each for each in (self._deadline, due) if each is not None), default=None)
        if not self._batching.may_grow(len(self.batch), deadline, time.monotonic_ns()):
            return False
        self.batch.append(entry)
        self._deadline = deadline
        return True


def _shapes(work: Work) -> list[tuple[str, tuple[int, ...], object]]:
    """What two requests must have in common to run as one."""
    inputs = work.inputs or {}
    return [(name, inputs[name].shape, inputs[name].dtype) for name in sorted(inputs)]


def _nothing() -> None:
    """Wakes the thread."""
