"""The gateway's thread: uvicorn on an event loop of its own, beside whatever else the process does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import uvicorn
from starlette.applications import Starlette

from defer.documents.address import Address
from defer.errors import FileMissing, UsageError, translate
from defer.gateway.app import create_app
from defer.gateway.service import Service

logger = logging.getLogger("defer.gateway")

BACKLOG = 1024
HELPERS = 4
"""Threads for what would hold the event loop up: questions to the dispatcher, compression, codecs."""

CLOSE_S = 5.0
"""Seconds that connections have to end when the gateway closes."""


@dataclass(frozen=True, slots=True)
class Options:
    """How the gateway listens.

    Attributes:
        http: Where, for HTTP.
        token: What callers must show; empty lets everyone in.
        certificate: PEM file of the server's certificate (chain); None for plain HTTP.
        key: PEM file of its key; None where the certificate's file holds it.
    """

    http: Address
    token: str = ""
    certificate: Path | None = None
    key: Path | None = None


class Gateway:
    """Serves the protocol until it is closed; use it as a context manager.

    Args:
        service: What answers.
        options: How it listens.
        more: Routes besides the protocol's.
        on_crash: Called when the thread ends by an error.
    """

    def __init__(
        self,
        service: Service,
        options: Options,
        *,
        more: Sequence[Any] = (),
        on_crash: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.service = service
        self._options = options
        self._more = more
        self._on_crash = on_crash
        self._thread: threading.Thread | None = None
        self.address = options.http

    def start(self) -> None:
        """Listen and serve.

        Raises:
            PortInUse: Another process listens there.
            UsageError: This machine has no such address, or the certificate cannot be used.
        """
        options = self._options
        _check_tls(options)
        listener = _listen(options.http)
        self.address = Address(options.http.host, listener.getsockname()[1])
        config = uvicorn.Config(
            self._app(),
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            ssl_certfile=options.certificate,
            ssl_keyfile=options.key,
            timeout_graceful_shutdown=int(CLOSE_S),
        )
        self._server = uvicorn.Server(config)
        self.helpers = ThreadPoolExecutor(HELPERS, thread_name_prefix="defer-gateway")
        started: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(config, listener, started), name="defer-gateway", daemon=True
        )
        self._thread.start()
        started.result(timeout=30)

    def _app(self) -> Starlette:
        return create_app(self.service, token=self._options.token, more=self._more)

    def _run(self, config: uvicorn.Config, listener: socket.socket, started: Future[None]) -> None:
        factory = config.get_loop_factory()
        try:
            with asyncio.Runner(loop_factory=factory) as runner, listener:
                runner.run(self._serve(listener, started))
        except BaseException as error:
            if not started.done():
                started.set_exception(error)
                return
            logger.exception("the gateway failed")
            if self._on_crash is not None:
                self._on_crash(error)

    async def _serve(self, listener: socket.socket, started: Future[None]) -> None:
        asyncio.get_running_loop().set_default_executor(self.helpers)
        serving = asyncio.ensure_future(self._server.serve(sockets=[listener]))
        while not self._server.started and not serving.done():
            await asyncio.sleep(0.005)
        if not serving.done():
            started.set_result(None)
        await serving

    def drain(self, seconds: float) -> None:
        """Let no new requests in (the ready probe says no), and wait for those under way."""
        self.service.draining = True
        deadline = time.monotonic() + seconds
        while self.service.under_way and time.monotonic() < deadline:
            time.sleep(0.01)

    def close(self) -> None:
        """Stop listening, end connections and the thread."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self.service.draining = True
        self._server.should_exit = True
        thread.join(2 * CLOSE_S)
        self.service.backend.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _listen(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address.host, address.port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        told = translate(error)
        told.where = f"--http {address}"
        raise told from error
    return listener


def _check_tls(options: Options) -> None:
    """Say what is wrong with a certificate before anything listens."""
    if options.certificate is None:
        if options.key is not None:
            raise UsageError("a TLS key is given without a certificate", hint="give --tls-certificate too")
        return
    for path in filter(None, (options.certificate, options.key)):
        if not path.is_file():
            raise FileMissing("no such file", where=str(path))
    with contextlib.suppress(OSError):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(options.certificate, options.key)
        except ssl.SSLError as error:
            raise UsageError(
                f"the TLS certificate and key cannot be used: {error.reason or error}",
                where=str(options.certificate),
            ) from None
