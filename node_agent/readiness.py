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

from node_agent.sockets import Socket, readable, used, was_used

Handler = Callable[[], None]


class Readiness:
    """See the module. Used by one thread."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._handlers: dict[int, tuple[Handler, Socket | None]] = {}
        self._sockets: dict[Socket, int] = {}

    def watch(self, source: Socket | int, handler: Handler) -> None:
        """Calls `handler` whenever something waits on `source`, a ZeroMQ socket or a descriptor.

        A handler need not take everything: it is called again until nothing is left.
        """
        if isinstance(source, int):
            self._handlers[source] = (handler, None)
            self._poll.register(source, select.POLLIN)
            return
        number = int(source.getsockopt(zmq.FD))
        used(source)  # what came before is not told any more
        self._sockets[source] = number
        self._handlers[number] = (handler, source)
        self._poll.register(number, select.POLLIN)

    def unwatch(self, source: Socket | int) -> None:
        """Before `source` is closed."""
        number = source if isinstance(source, int) else self._sockets.pop(source)
        self._poll.unregister(number)
        del self._handlers[number]

    def turn(self, timeout_ms: float | None) -> None:
        """Waits until something can be read, or for so long (None: without end), and calls the handlers."""
        ready = [number for socket, number in self._sockets.items() if was_used(socket) and readable(socket)]
        for number, _ in self._poll.poll(0 if ready else timeout_ms):
            if number not in ready:
                ready.append(number)
        for number in ready:
            known = self._handlers.get(number)
            if known is None:
                continue  # closed by a handler before it
            handler, socket = known
            if socket is not None:
                used(socket)
            handler()
