"""The data thread: one loop over every data socket, receiving and sending.

ZeroMQ's own thread moves the bytes, so one thread for both directions loses no overlap, and an item that needs no other
thread passes the agent without waking one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import zmq

from node_agent.inbox import Inbox
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
        self._handlers: dict[Any, Callable[[], None]] = {}
        self._poller = zmq.Poller()
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

    def watch(self, socket: Any, handler: Callable[[], None]) -> None:
        """Calls `handler` whenever something waits on `socket`."""
        self._handlers[socket] = handler
        self._poller.register(socket, zmq.POLLIN)

    def unwatch(self, socket: Any) -> None:
        """Before a socket is closed."""
        self._poller.unregister(socket)
        del self._handlers[socket]

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
        wait = None if due == _NEVER else max(0, int((due - time.monotonic()) * 1000) + 1)
        ready = self._poller.poll(wait)
        for socket, _ in ready:
            handler = self._handlers.get(socket)
            if handler is not None:  # not closed by a handler before it
                handler()
        if wait is not None and time.monotonic() >= due:
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
