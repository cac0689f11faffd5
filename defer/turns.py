"""Turns that overlap only where they take long."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Turn:
    begun: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)


class Turns:
    """Threads that do something one after the other, in the order in which they ask.

    Args:
        after_s: The next one begins so long after the one before began at the latest, in seconds.
    """

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._lock = threading.Lock()
        self._last: _Turn | None = None

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for the turn, and take it."""
        mine = _Turn()
        with self._lock:
            before, self._last = self._last, mine
        try:
            if before is not None:
                before.begun.wait()  # which comes, since each that is before it waits no longer than `after_s`
                before.ended.wait(self._after_s)
            mine.begun.set()
            yield
        finally:
            mine.begun.set()
            mine.ended.set()
