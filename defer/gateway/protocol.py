"""uvicorn's HTTP protocol, with large bodies read from the socket straight into the buffer where they stay.

uvicorn reads 64 KiB at a time, has the parser slice it, appends the slices, and hands them on as copies: five copies of
a tensor before it is whole. Here a connection reads into a buffer that the protocol names. That is a common one for
heads and small bodies, which the parser takes; once an application asks for a large body whose length was stated, it is
that body's own, up to its last byte. What follows is a request that a fresh parser takes. All else is uvicorn's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import httptools
import numpy as np
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from defer.gateway.reading import Gone
from node_agent.noise import Seldom

logger = logging.getLogger("defer.gateway")

_INVALID = "Invalid HTTP request received."
"""uvicorn's line about it, without a peer."""

_seldom = Seldom()
"""Of all connections: whoever sends such things sends many."""


def _not_invalid(record: logging.LogRecord) -> bool:
    return record.msg != _INVALID


logging.getLogger("uvicorn.error").addFilter(_not_invalid)

COMMON = 64 << 10
"""Bytes of the buffer for heads and small bodies."""

LARGE = 2 * COMMON
"""Bodies of at least so many bytes are read where they stay; more than the common buffer holds."""

CONNECTION = "defer.connection"
"""The key of a request's `Connection` in the extensions of ASGI's scope."""

WHOLE_BODY = "defer.whole_body"
"""The key of its `WholeBody`; absent where there is none."""

_common = bytearray(COMMON)
_common_view = memoryview(_common)
"""Of all connections: between a call of `get_buffer` and that of `buffer_updated` nothing else runs."""


class WholeBody:
    """A large body; nothing of it is read, and no memory taken, before it is asked for.

    Args:
        cycle: The request.
        length: Its stated bytes.
    """

    __slots__ = ("_at", "_cycle", "_length", "_view")

    def __init__(self, cycle: RequestResponseCycle, length: int) -> None:
        self._cycle, self._length = cycle, length
        self._at = 0
        self._view: memoryview | None = None

    async def read(self) -> Any:
        """All of it, in one buffer that is nobody else's.

        Raises:
            Gone: The client went.
        """
        cycle = self._cycle
        early = cycle.body
        if cycle.more_body:
            view = np.empty(self._length, np.uint8).data
            self._at = len(early)
            view[: self._at] = early
            cycle.body = bytearray()
            self._view = view
            cycle.flow.resume_reading()
            while not (self._at == self._length or cycle.disconnected):
                cycle.message_event.clear()
                await cycle.message_event.wait()
        else:
            view = memoryview(early)
            cycle.body = bytearray()
        # uvicorn's request is a cycle of objects that only the collector ends: the body is not to wait for that.
        self._view = None
        if cycle.disconnected:
            raise Gone
        cycle.message_event.clear()
        return view

    @property
    def room(self) -> memoryview | None:
        """Where the next bytes belong; None as long as nobody has asked for the body."""
        return None if self._view is None else self._view[self._at :]

    def filled(self, count: int) -> bool:
        """So many bytes have come; whether they were the last."""
        self._at += count
        return self._at == self._length


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, and what an application may know of its connection.

    Attributes:
        whole: The large body that comes in now, if one does.
        lost: Whether the client has gone.
        gone: Called when it goes; for whoever runs the present request.
    """

    whole: WholeBody | None = None
    lost = False
    gone: Callable[[], None] | None = None

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP, and says who sent it."""
        more = _seldom.told(time.monotonic())
        if more is not None:
            peer = f"{self.client[0]}:{self.client[1]}" if self.client else "a peer"
            logger.warning("What %s sent is no HTTP request%s", peer, more)
        super().send_400_response(msg)

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport's."""
        self.lost = True
        super().connection_lost(exc)
        if self.gone is not None:
            self.gone()

    def on_headers_complete(self) -> None:
        """The parser's."""
        super().on_headers_complete()
        extensions: dict[str, Any] = {CONNECTION: self}
        self.scope["extensions"] = extensions
        if self.pipeline or self.expect_100_continue or self.parser.should_upgrade():
            return
        for name, value in self.headers:
            if name == b"content-length" and int(value) >= LARGE:
                self.flow.pause_reading()  # until somebody asks, which may be after a look at a token
                self.whole = extensions[WHOLE_BODY] = WholeBody(self.cycle, int(value))
                return

    def whole_read(self) -> None:
        """The body is whole, and the parser has not seen it: the next request is a fresh one's."""
        self.whole = None
        self.cycle.more_body = False
        self.cycle.message_event.set()
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)


class Http(asyncio.BufferedProtocol):
    """One connection, for `uvicorn.Config(http=Http)`.

    Args:
        config: uvicorn's.
        server_state: uvicorn's.
        app_state: uvicorn's.
        _loop: The event loop; the running one by default.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._http = http = Connection(config, server_state, app_state, _loop)
        self.connection_made = http.connection_made  # type: ignore[method-assign, assignment]
        self.connection_lost = http.connection_lost  # type: ignore[method-assign]
        self.eof_received = http.eof_received  # type: ignore[method-assign]
        self.pause_writing = http.pause_writing  # type: ignore[method-assign]
        self.resume_writing = http.resume_writing  # type: ignore[method-assign]

    def get_buffer(self, _sizehint: int) -> memoryview:
        """Where the next bytes are read to."""
        whole = self._http.whole
        if whole is not None and (room := whole.room) is not None:
            return room
        return _common_view

    def buffer_updated(self, nbytes: int) -> None:
        """They were read."""
        http = self._http
        whole = http.whole
        if whole is None or whole.room is None:
            http.data_received(_common_view[:nbytes])  # type: ignore[arg-type]
        elif whole.filled(nbytes):
            http.whole_read()
