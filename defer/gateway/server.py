"""The gateway's thread: uvicorn and gRPC on an event loop of its own, beside whatever else the process does."""

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
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import uvicorn

from defer.documents.address import Address
from defer.errors import FileMissing, UsageError
from defer.gateway.app import create_app
from defer.gateway.protocol import Http
from defer.gateway.service import Service
from defer.translating import translate

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
        http: Where, for HTTP; None for not at all.
        grpc: Where, for gRPC; None for not at all.
        token: What callers must show; empty lets everyone in.
        certificate: PEM file of the server's certificate (chain); None for plain HTTP.
        key: PEM file of its key; None where the certificate's file holds it.
    """

    http: Address | None = None
    grpc: Address | None = None
    token: str = ""
    certificate: Path | None = None
    key: Path | None = None


class Gateway:
    """Serves the protocol until it is closed; use it as a context manager.

    Args:
        service: What answers.
        options: How it listens.
        more: Routes besides the protocol's.
        open_paths: Those of them that need no token.
        on_crash: Called when the thread ends by an error.
    """

    def __init__(
        self,
        service: Service,
        options: Options,
        *,
        more: Sequence[Any] = (),
        open_paths: Sequence[str] = (),
        on_crash: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.service = service
        self._options = options
        self._more, self._open_paths = more, open_paths
        self._on_crash = on_crash
        self._thread: threading.Thread | None = None
        self._stop: Callable[[], object] = _nothing
        self.http: Address | None = None
        """Where HTTP is served, its port resolved."""
        self.grpc: Address | None = None
        """Where gRPC is served, its port resolved."""

    def start(self) -> None:
        """Listen and serve.

        Raises:
            PortInUse: Another process listens there.
            UsageError: This machine has no such address, or the certificate cannot be used.
        """
        _check_tls(self._options)
        listener = None if self._options.http is None else _listen(self._options.http)
        self.helpers = ThreadPoolExecutor(HELPERS, thread_name_prefix="defer-gateway")
        started: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(listener, started), name="defer-gateway", daemon=True
        )
        self._thread.start()
        try:
            started.result(timeout=30)
        except BaseException:
            self.close()
            raise

    def _run(self, listener: socket.socket | None, started: Future[None]) -> None:
        try:
            with asyncio.Runner(
                loop_factory=uvicorn.Config(_nothing, log_config=None).get_loop_factory()
            ) as runner:
                runner.run(self._serve(listener, started))
        except BaseException as error:
            if not started.done():
                started.set_exception(error)
                return
            logger.exception("the gateway failed")
            if self._on_crash is not None:
                self._on_crash(error)
        finally:
            if listener is not None:
                listener.close()

    async def _serve(self, listener: socket.socket | None, started: Future[None]) -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(self.helpers)
        self._stopping = asyncio.Event()
        self._stop = partial(loop.call_soon_threadsafe, self._stopping.set)
        async with contextlib.AsyncExitStack() as stack:
            if self._options.grpc is not None:
                await self._serve_grpc(self._options.grpc, stack)
            if listener is not None:
                await self._serve_http(listener, stack)
            started.set_result(None)
            await self._stopping.wait()

    async def _serve_grpc(self, address: Address, stack: contextlib.AsyncExitStack) -> None:
        from defer.gateway.rpc import RpcServer

        options = self._options
        server = RpcServer(self.service, address, options.token, options.certificate, options.key)
        await server.start()
        stack.push_async_callback(server.stop, CLOSE_S)
        self.grpc = server.address

    async def _serve_http(self, listener: socket.socket, stack: contextlib.AsyncExitStack) -> None:
        options = self._options
        config = uvicorn.Config(
            create_app(self.service, token=options.token, more=self._more, open_paths=self._open_paths),
            http=Http,  # type: ignore[arg-type]  # it wants no more of it than the protocol's methods
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            ssl_certfile=options.certificate,
            ssl_keyfile=options.key,
            timeout_graceful_shutdown=int(CLOSE_S),
        )
        server = uvicorn.Server(config)
        assert options.http is not None
        self.http = Address(options.http.host, listener.getsockname()[1])
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.005)

        async def stop() -> None:
            server.should_exit = True
            await serving

        stack.push_async_callback(stop)

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
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            self._stop()
        thread.join(3 * CLOSE_S)
        self.service.backend.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _nothing() -> None:
    pass


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
