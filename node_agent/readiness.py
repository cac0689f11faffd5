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


class Readiness:
    """See the module. Used by one thread."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._handlers: dict[int, tuple[Handler, Socket | None]] = {}
        self._numbers: dict[Socket, int] = {}
        self._used: set[Asked] = set()

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
        ready: list[int] = []
        if self._used:
            ready = [self._numbers[socket] for socket, _ in poll_now(list(self._used))]
            self._used.clear()
        for number, _ in self._poll.poll(0 if ready else timeout_ms):
            if number not in ready:
                ready.append(number)
        handlers = self._handlers
        for number in ready:
            if number in handlers:  # not closed by a handler before it
                handler, socket = handlers[number]
                if socket is not None:
                    self._used.add((socket, POLLIN))
                handler()
