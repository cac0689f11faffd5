"""The data thread: one loop over every data socket, receiving and sending.

ZeroMQ's own thread moves the bytes, so one thread for both directions loses no overlap, and an item that needs no other
thread passes the agent without waking one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from node_agent.inbox import Inbox
from node_agent.readiness import Readiness
from node_agent.threads import Shell
from node_agent.work import Work

GREET_AGAIN_S = 2.0
"""A dialled peer that refused is greeted again this often: it may have been updated, or have forgotten this side."""

GREETING_S = 5.0
"""A dialled peer that has not answered a greeting for this long is greeted again: one of the two got lost."""

_NEVER = float("inf")


class Part(Protocol):
    """What lives in the loop."""

    def open(self) -> None:
        """Opens its sockets, in the thread."""

    def shut(self) -> None:
        """Closes what it has opened."""

    def greet_again(self, now: float) -> None:
        """Greets the dialled peers that will not talk; `DataLoop.remind` asks for this call."""


class DataLoop(Shell):
    """See the module.

    Args:
        submit: Takes items that other threads have finished with.
    """

    def __init__(self) -> None:
        super().__init__("data")
        self.parts: tuple[Part, ...] = ()
        self.submit: Callable[[Work], None]
        self._inbox: Inbox[Work | Callable[[], None]] = Inbox()
        self._readiness = Readiness()
        self.watch, self.unwatch = self._readiness.watch, self._readiness.unwatch
        """See `Readiness`; in the data thread."""
        self._due = _NEVER

    # ------------------------------------------------------------------------------------- from other threads

    def put(self, entry: Work | Callable[[], None]) -> None:
        """Submits an item, or makes a call, in the data thread."""
        self._inbox.put(entry)

    def wake(self) -> None:
        """See `Shell.wake`."""
        self._inbox.put(_nothing)

    def close(self) -> None:
        """Gives the inbox's descriptors back, once every thread has ended."""
        self._inbox.close()

    # -------------------------------------------------------------------------------------------- the thread

    def remind(self) -> None:
        """Has `greet_again` called in a while, however busy the sockets are."""
        self._due = min(self._due, time.monotonic() + GREET_AGAIN_S)

    def open(self) -> None:
        """See `Shell.open`."""
        self.watch(self._inbox.fd, self._take)
        for part in self.parts:
            part.open()

    def turn(self) -> None:
        """See `Shell.turn`."""
        due = self._due
        if due == _NEVER:
            self._readiness.turn(None)
            return
        self._readiness.turn(max(0.0, (due - time.monotonic()) * 1000 + 1))
        if time.monotonic() >= due:
            self._due = _NEVER
            for part in self.parts:
                part.greet_again(time.monotonic())

    def shut(self) -> None:
        """See `Shell.shut`."""
        for part in self.parts:
            part.shut()

    def _take(self) -> None:
        for entry in self._inbox.take():
            if isinstance(entry, Work):
                self.submit(entry)
            else:
                entry()


def _nothing() -> None:
    """Wakes the thread."""
