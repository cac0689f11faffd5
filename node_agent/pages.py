"""A few pages over HTTP for probes and scrapers: GET only, nothing kept alive, nothing that a slow reader can hold up.

The standard library's server is enough for that, and an edge box needs nothing more installed.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from node_agent.errors import AddressInUseError, AddressInvalidError

log = logging.getLogger(__name__)

PATIENCE_S: Final = 2.0
"""A reader that sends or takes nothing for this long is hung up on."""

AT_ONCE: Final = 16
"""Readers that are answered at the same time; more are told to come again."""

PLAIN: Final = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Page:
    """An answer.

    Attributes:
        body: Its text.
        status: HTTP status.
        kind: Content type.
    """

    body: str
    status: int = 200
    kind: str = PLAIN


Pages = Mapping[str, Callable[[], Page]]
"""What makes each page, by path; called in a thread of the reader's own."""


class PageServer:
    """Serves pages at an address; use it as a context manager, or `start` and `close`.

    Args:
        host: Address to bind.
        port: Port; 0 takes a free one.
        pages: What there is.
    """

    def __init__(self, host: str, port: int, pages: Pages) -> None:
        self._host, self._wanted = host, port
        self._handler = _handler(pages, threading.BoundedSemaphore(AT_ONCE))
        self._server: _Server | None = None

    def start(self) -> None:
        """Bind and serve.

        Raises:
            AddressInUseError: Another process listens there.
            AddressInvalidError: This machine has no such address.
        """
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        kind = type("_Bound", (_Server,), {"address_family": family})
        try:
            self._server = kind((self._host, self._wanted), self._handler)
        except OSError as error:
            where = f"{self._host}:{self._wanted}"
            if error.errno == errno.EADDRINUSE:
                raise AddressInUseError(f"{where} is in use.", hint="Choose another port.") from None
            raise AddressInvalidError(f"Cannot listen on {where}: {error.strerror or error}.") from None
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="pages", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens, once started."""
        assert self._server is not None
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop; readers that are being answered get `PATIENCE_S` at most."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
            self._thread.join()

    def __enter__(self) -> PageServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # `server_close` waits for them, which `PATIENCE_S` bounds
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """A reader that went away is nobody's fault."""
        log.debug("A reader of %s went away.", client_address, exc_info=True)


def _handler(pages: Pages, at_once: threading.BoundedSemaphore) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = PATIENCE_S
        server_version = "defer"
        sys_version = ""

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def _answer(self, *, with_body: bool) -> None:
            if not at_once.acquire(blocking=False):
                self._send(Page("too many readers\n", 503), with_body=with_body)
                return
            try:
                self._send(_page(pages, self.path.partition("?")[0]), with_body=with_body)
            finally:
                at_once.release()

        def _send(self, page: Page, *, with_body: bool) -> None:
            body = page.body.encode()
            self.send_response(page.status)
            self.send_header("Content-Type", page.kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            if with_body:
                with contextlib.suppress(OSError):
                    self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            log.debug(format, *args)

    return Handler


def _page(pages: Pages, path: str) -> Page:
    make = pages.get(path)
    if make is None:
        return Page(f"there is no {path}; there is {', '.join(pages)}\n", 404)
    try:
        return make()
    except Exception as error:
        log.exception("A page failed.")
        return Page(f"{type(error).__name__}: {error}\n", 500)
