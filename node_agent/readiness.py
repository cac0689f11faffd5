"""Waits for many sockets and descriptors in one thread, and calls whoever reads them.

ZeroMQ's own poll asks each socket twice in every call, which costs more than the short item that woke it. This one
waits for the descriptors behind the sockets. Such a descriptor tells once that something has changed since its socket
was used last, and using the socket may take that news away. So a socket that was read from or written to
(`node_agent.sockets.used`) is asked itself before the next wait; one that was left alone need not be.
"""

from __future__ import annotations

import select
from collections.abc import Callable

import zmq

from node_agent.sockets import POLLIN, Asked, Socket, note_use, poll_now, used

Handler = Callable[[], None]

OTHERS_EVERY = 8
"""While sockets that were used have more, the others are asked after so many turns."""


class Readiness:
    """See the module. Used by one thread."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._handlers: dict[int, tuple[Handler, Socket | None]] = {}
        self._numbers: dict[Socket, int] = {}
        self._used: set[Asked] = set()
        self._passed = 0
        self.waits = False
        """Whether it waits: what is raised then, from outside, has come between two turns."""

    def watch(self, source: Socket | int, handler: Handler) -> None:
        """Calls `handler` whenever something waits on `source`, a ZeroMQ socket or a descriptor.

        A handler need not take everything: it is called again until nothing is left.
        """
        if isinstance(source, int):
            number = source
            self._handlers[number] = (handler, None)
        else:
            number = int(source.getsockopt(zmq.FD))
            self._handlers[number] = (handler, source)
            self._numbers[source] = number
            note_use(source, self._used)
            used(source)  # what came before is not told any more
        self._poll.register(number, select.POLLIN)

    def unwatch(self, source: Socket | int) -> None:
        """Before `source` is closed."""
        if isinstance(source, int):
            number = source
        else:
            number = self._numbers.pop(source)
            self._used.discard((source, POLLIN))
            note_use(source, None)
        self._poll.unregister(number)
        del self._handlers[number]

    def turn(self, timeout_ms: float | None) -> None:
        """Waits until something can be read, or for so long (None: without end), and calls the handlers."""
        used = self._used
        handlers = self._handlers
        if used:
            ready = poll_now(list(used))
            used.clear()
            for socket, _ in ready:
                number = self._numbers.get(socket)
                if number is not None:  # not closed by a handler before it
                    used.add((socket, POLLIN))
                    handlers[number][0]()
            if ready:
                # The others get their turn, but to ask for them after each short item would cost more than the item.
                self._passed = (self._passed + 1) % OTHERS_EVERY
                if self._passed:
                    return
                timeout_ms = 0
        self.waits = True
        found = self._poll.poll(timeout_ms)
        self.waits = False
        for number, _ in found:
            if number in handlers:  # not closed by a handler before it
                handler, source = handlers[number]
                if source is not None:
                    used.add((source, POLLIN))
                handler()
