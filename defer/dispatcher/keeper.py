"""The thread that owns the store: what is asked of it while it writes goes into its next transaction, all at once."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import TypeVar

from defer.dispatcher.store import Change, KeptAnswer, Snapshot, Store
from defer.errors import DeferError, FileProblem
from defer.translating import translate

T = TypeVar("T")

logger = logging.getLogger("defer.dispatcher")

GROUP = 256
"""Changes of one transaction at most: whoever came first need not wait for all."""

WAIT_S = 30.0
"""A disk that takes longer than this for one transaction is broken."""

Build = Callable[[], Sequence[Change]]
"""Makes changes in the store's thread: joining the frames of a large request takes time."""


@dataclass(frozen=True, slots=True)
class _Write:
    build: Build
    done: Callable[[DeferError | None], None]


@dataclass(frozen=True, slots=True)
class _Read:
    request: bytes
    done: Callable[[KeptAnswer | None], None]


class Keeper:
    """Writes to a store in a thread of its own, in the order in which it is asked.

    Args:
        store: Opened, used and closed in that thread alone.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._queue: deque[_Write | _Read] = deque()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False

    def open(self) -> Snapshot:
        """Start the thread and open the store.

        Raises:
            DeferError: The store cannot be used.
        """
        opened: Future[Snapshot] = Future()
        self._thread = threading.Thread(target=self._run, args=(opened,), name="defer-store", daemon=True)
        self._thread.start()
        try:
            return opened.result(WAIT_S)
        except FutureTimeout:
            raise FileProblem(f"the dispatcher's state did not open within {WAIT_S:g} s") from None

    def close(self) -> None:
        """Write what was asked for, and end."""
        thread, self._thread = self._thread, None
        with self._wake:
            self._closing = True
            self._wake.notify()
        if thread is not None:
            thread.join(WAIT_S)

    def write(self, build: Build, done: Callable[[DeferError | None], None]) -> None:
        """Take changes soon; returns at once.

        Args:
            build: Makes the changes, in the store's thread; all are taken, or none.
            done: Called in the store's thread when they are safe, or with what was wrong.
        """
        if not self._put(_Write(build, done)):
            done(_ended())

    def read(self, request: bytes, done: Callable[[KeptAnswer | None], None]) -> None:
        """Look an answer up; `done` is called in the store's thread, with None also where it cannot be read."""
        if not self._put(_Read(request, done)):
            done(None)

    def commit(self, changes: Sequence[Change]) -> None:
        """Take changes, and wait until they are safe.

        Raises:
            DeferError: They are not.
        """
        self.begin(changes)()

    def begin(self, changes: Sequence[Change]) -> Callable[[], None]:
        """Take changes soon; what is returned waits until they are safe, and raises as `commit` does."""
        written: Future[None] = Future()

        def done(problem: DeferError | None) -> None:
            if problem is None:
                written.set_result(None)
            else:
                written.set_exception(problem)

        def wait() -> None:
            try:
                written.result(WAIT_S)
            except FutureTimeout:
                raise FileProblem(f"the dispatcher's state was not written within {WAIT_S:g} s") from None

        self.write(lambda: changes, done)
        return wait

    def _put(self, entry: _Write | _Read) -> bool:
        with self._wake:
            if self._closing or self._thread is None:
                return False
            self._queue.append(entry)
            self._wake.notify()
            return True

    # -------------------------------------------------------------------------------------------- in the thread

    def _run(self, opened: Future[Snapshot]) -> None:
        try:
            snapshot = self._store.open()
        except BaseException as error:
            self._store.close()
            opened.set_exception(translate(error))
            return
        opened.set_result(snapshot)
        try:
            while True:
                with self._wake:
                    self._wake.wait_for(lambda: self._queue or self._closing)
                    taken = [self._queue.popleft() for _ in range(min(GROUP, len(self._queue)))]
                if not taken:
                    return
                self._take(taken)
        finally:
            self._store.close()

    def _take(self, taken: list[_Write | _Read]) -> None:
        """Writes that stand together are one transaction; where it fails each is tried alone."""
        writes: list[_Write] = []
        for entry in taken:
            if isinstance(entry, _Write):
                writes.append(entry)
                continue
            self._write(writes)
            writes = []
            _call(entry.done, self._read(entry.request))
        self._write(writes)

    def _write(self, writes: list[_Write]) -> None:
        if not writes:
            return
        problem = self._apply(writes)
        if problem is not None and len(writes) > 1:
            for write in writes:
                self._write([write])
            return
        for write in writes:
            _call(write.done, problem)

    def _apply(self, writes: list[_Write]) -> DeferError | None:
        try:
            self._store.apply([change for write in writes for change in write.build()])
        except Exception as error:
            told = translate(error)
            logger.error("the dispatcher's state was not written: %s", told)
            return told
        return None

    def _read(self, request: bytes) -> KeptAnswer | None:
        try:
            return self._store.answer(request)
        except Exception as error:
            logger.error("an answer cannot be read: %s", translate(error))
            return None


def _call(done: Callable[[T], None], value: T) -> None:
    try:
        done(value)
    except Exception:
        logger.exception("who asked the store for something failed at its answer")


def _ended() -> DeferError:
    return FileProblem("the dispatcher's state is closed: it is shutting down")
