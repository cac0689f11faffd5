"""Threads that encode and decode beside the run, where a codec takes time; raw tensors never pass here."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue

from node_agent.threads import Shell
from node_agent.work import Work


class Coder(Shell):
    """Does one thing to each item and hands it on.

    Args:
        name: Of the thread.
        code: What to do.
        then: Takes the item afterwards.
    """

    def __init__(self, name: str, code: Callable[[Work], None], then: Callable[[Work], None]) -> None:
        super().__init__(name)
        self._code = code
        self._then = then
        self._waiting: SimpleQueue[Work | None] = SimpleQueue()
        self.put = self._waiting.put
        """Takes an item; from any thread. What waits is bounded by the credit granted upstream."""

    def wake(self) -> None:
        """See `Shell.wake`."""
        self._waiting.put(None)

    def turn(self) -> None:
        """See `Shell.turn`."""
        work = self._waiting.get()
        if work is not None:
            if work.failure is None:
                self._code(work)
            self._then(work)
