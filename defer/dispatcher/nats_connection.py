"""One connection to NATS in a thread of its own, and the JetStream stream of a state, made where there is none.

The stream keeps each record in its last version alone. What NATS says of its errors becomes ours in `nats_errors`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING, Any, Final, TypeVar

from defer.dispatcher.nats_errors import told
from defer.dispatcher.state_url import StateUrl
from defer.errors import DeferError, MissingExtra, NotReady, UsageError

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.js import JetStreamContext
    from nats.js.api import StreamConfig, StreamInfo

T = TypeVar("T")

logger = logging.getLogger("defer.dispatcher")

CONNECT_S = 5.0
"""A NATS server that runs answers within this."""

SETTLE_S = 2.0
"""Several servers that answer nothing for so long are electing one that leads them: they are asked again."""

_UNSETTLED: Final = 10008


class NatsConnection:
    """The connection; `start` before anything else. Coroutines are for its own thread, by `run` and `spawn`.

    Args:
        url: Where.
    """

    def __init__(self, url: StateUrl) -> None:
        self.url = url
        self.piece_bytes = 512 << 10
        """Bytes of one message at most."""
        self.stream = f"DEFER_{url.name}"
        self.prefix = f"defer.{url.name}."
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="defer-nats", daemon=True)
        self._client: Client | None = None
        self._trouble = ""
        self._refused = asyncio.Event()

    # ------------------------------------------------------------------------------------------- any thread's

    def start(self) -> None:
        """Connect, and make the stream where there is none.

        Raises:
            MissingExtra: The client library is not installed.
            NotReady: No server answers, or it has no JetStream.
            Unauthorised: It refuses the credentials.
        """
        self._thread.start()
        try:
            self.run(self._connect(), 2 * CONNECT_S + SETTLE_S + 1)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Disconnect, and end the thread."""
        if self._thread.is_alive():
            try:
                self.run(self._disconnect(), CONNECT_S)
            except DeferError as error:
                logger.debug("the connection to NATS did not end in order: %s", error)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CONNECT_S)
        if not self._loop.is_running() and not self._loop.is_closed():
            self._loop.close()

    def spawn(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Have a coroutine run in the thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T], timeout: float) -> T:
        """Have a coroutine run in the thread, and wait for what it gives.

        Raises:
            NotReady: It took longer than `timeout` seconds.
        """
        future = self.spawn(work)
        try:
            return future.result(timeout)
        except FutureTimeout:
            future.cancel()
            raise NotReady(f"the state at {self.url} did not answer within {timeout:g} s") from None

    def jetstream(self) -> JetStreamContext:
        """What the stream is read and written by; in the thread.

        Raises:
            NotReady: It is not connected.
        """
        return self.connected().jetstream(timeout=CONNECT_S)

    def told(self, error: Exception) -> DeferError:
        """What an error of the client library means; in the thread."""
        return told(error, self.url, self._trouble)

    def connected(self) -> Client:
        """The client, in the thread.

        Raises:
            NotReady: It is not connected.
        """
        if self._client is None:
            raise NotReady(f"the state at {self.url} is not connected")
        return self._client

    async def _connect(self) -> None:
        try:
            import nats
            from nats.js.api import DiscardPolicy, StorageType, StreamConfig
        except ImportError as error:
            raise MissingExtra(
                "a state on NATS needs its client", hint='install it with: pip install "defer-edge[ha]"'
            ) from error

        url = self.url
        options: dict[str, Any] = {"tls": url.tls()} if url.encrypted else {}
        options |= {"user": url.user, "password": url.password} if url.user else {}
        options |= {"user_credentials": str(url.creds)} if url.creds else {}
        options |= {"nkeys_seed": str(url.nkey)} if url.nkey else {}
        try:
            self._client = await self._unless_refused(
                nats.connect(
                    url.urls(),
                    name=f"defer {url.name}",
                    error_cb=self._went_wrong,
                    connect_timeout=2,
                    reconnect_time_wait=0.1,
                    max_reconnect_attempts=-1,
                    ping_interval=1,
                    max_outstanding_pings=2,
                    **options,
                )
            )
            self._trouble = ""
            self.piece_bytes = min(self.piece_bytes, self._client.max_payload - 4096)
            config = StreamConfig(
                name=self.stream,
                subjects=[f"{self.prefix}>"],
                storage=StorageType.FILE,
                max_msgs_per_subject=1,
                discard=DiscardPolicy.NEW,
                num_replicas=url.replicas,
            )
            info = await self._opened(config)
            if info.config.max_msgs_per_subject != 1:
                raise UsageError(
                    f"the stream {self.stream} at {url} is not one that defer made",
                    hint="choose another name",
                )
        except Exception as error:
            raise self.told(error) from error

    async def _opened(self, config: StreamConfig) -> StreamInfo:
        """The stream, made where there is none; servers that are electing one that leads them are asked again."""
        from nats.js.errors import APIError, BadRequestError, NotFoundError

        deadline = self._loop.time() + CONNECT_S
        while True:
            jetstream = self.connected().jetstream(timeout=SETTLE_S)
            try:
                try:
                    return await jetstream.stream_info(self.stream)
                except NotFoundError:
                    return await jetstream.add_stream(config)
            except BadRequestError:  # another dispatcher has made it meanwhile
                if self._loop.time() > deadline:
                    raise
            except (TimeoutError, APIError) as error:
                unsettled = not isinstance(error, APIError) or error.err_code == _UNSETTLED
                if not unsettled or self._loop.time() > deadline:
                    raise
            await asyncio.sleep(0.1)

    async def _unless_refused(self, connecting: Coroutine[Any, Any, Client]) -> Client:
        """Connect; the library tries for ever also where trying again is of no use."""
        from nats.errors import AuthorizationError

        self._refused = asyncio.Event()
        task = asyncio.create_task(connecting)
        refused = asyncio.create_task(self._refused.wait())
        try:
            await asyncio.wait({task, refused}, timeout=CONNECT_S, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            # not by what was reported last: the connection that the server closed may have been reset since
            raise AuthorizationError if self._refused.is_set() else TimeoutError
        finally:
            task.cancel()
            refused.cancel()

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()
        rest = [each for each in asyncio.all_tasks() if each is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _went_wrong(self, error: Exception) -> None:
        if str(error) and str(error) != self._trouble:
            self._trouble = str(error)
            if "uthorization" in self._trouble:
                self._refused.set()
            logger.debug("NATS: %s", error)
