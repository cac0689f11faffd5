"""One connection to NATS in a thread of its own: records in a JetStream stream, each kept in its last version alone.

Every write says after which message of the whole stream it wants to be, and the server refuses it elsewhere. A leader
is the only one that writes; the lease lies in the same stream. So whoever takes the lease fences off everything that
the leader before still has on its way, on any record.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from defer.dispatcher.election import Lease
from defer.dispatcher.state_url import StateUrl
from defer.errors import (
    CorruptFile,
    DeferError,
    DiskFull,
    FileProblem,
    MissingExtra,
    NotReady,
    Unauthorised,
    UsageError,
)

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.js import JetStreamContext
    from nats.js.api import StreamConfig, StreamInfo

T = TypeVar("T")

logger = logging.getLogger("defer.dispatcher")

CONNECT_S = 5.0
"""A NATS server that runs answers within this."""

ANSWER_S = 0.5
"""A write or read that takes longer is asked again: a leader cannot wait long, or its lease ends."""

SETTLE_S = 2.0
"""Several servers that answer nothing for so long are electing one that leads them: they are asked again."""

BATCH = 256
"""Records that are asked for at once."""

RECORDS: Final = "records"
PIECES: Final = "pieces"
LEASE: Final = "lease"
LIST: Final = "files"

_EXPECTED = "Nats-Expected-Last-Sequence"
_EXPECTED_OF_SUBJECT = "Nats-Expected-Last-Subject-Sequence"
_UNSETTLED: Final = 10008
_WRONG_LAST: Final = (10071, 10164)
_NO_SPACE: Final = (10023, 10047, 10077, 10122)
_encode = msgspec.msgpack.encode
_lease = msgspec.msgpack.Decoder(Lease)


class Fenced(NotReady):
    """Another dispatcher leads: nothing of this one is written any more."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A message of the stream: its subject below the state's, its number, its headers and bytes."""

    subject: str
    number: int
    headers: Mapping[str, str]
    data: bytes


class NatsLink:
    """The connection; `start` before anything else. Coroutines are for its own thread, by `run` and `spawn`.

    Args:
        url: Where.
    """

    def __init__(self, url: StateUrl) -> None:
        self.url = url
        self.piece_bytes = 512 << 10
        """Bytes of one message at most."""
        self._stream = f"DEFER_{url.name}"
        self._prefix = f"defer.{url.name}."
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="defer-nats", daemon=True)
        self._client: Client | None = None
        self._last = 0  # the stream's last message, as far as this process has written it
        self._mine: tuple[str, int] | None = None  # holder and term of the lease under which it writes
        self._writing: asyncio.Lock | None = None
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

    @property
    def last(self) -> int:
        """Number of the stream's last message, as far as this process has written it."""
        return self._last

    # --------------------------------------------------------------------------------------------- the lease's

    async def read_lease(self) -> tuple[int, Lease | None]:
        """The lease's revision and what it says; 0 and None where there is none.

        Raises:
            NotReady: The store did not answer.
        """
        found = await self.get(f"{RECORDS}.{LEASE}")
        return (0, None) if found is None else (found.number, _lease.decode(found.data))

    async def write_lease(self, lease: Lease, revision: int) -> int:
        """Write the lease where its revision is still `revision`; returns the new one.

        Raises:
            Fenced: It is another one.
            NotReady: It is not known what became of it.
        """
        async with self._lock():
            number = await self._publish(
                f"{RECORDS}.{LEASE}", _encode(lease), {_EXPECTED_OF_SUBJECT: str(revision)}
            )
            self._last, self._mine = number, (lease.holder, lease.term)
            return number

    # ------------------------------------------------------------------------------------------------ records'

    async def append(self, subject: str, data: bytes, headers: Mapping[str, str] | None = None) -> int:
        """Write a record as the leader; returns its number.

        Raises:
            Fenced: Somebody else has taken the lease.
            DiskFull: The store has no room.
            NotReady: It is not known what became of it.
        """
        for attempt in (1, 2, 3):
            async with self._lock():
                expected = {_EXPECTED: str(self._last)}
                try:
                    self._last = await self._publish(subject, data, {**(headers or {}), **expected})
                    return self._last
                except (Fenced, NotReady) as error:
                    # An answer that was lost on the way looks like another writer: the lease says which it was.
                    await self._catch_up()
                    if attempt == 3:
                        raise NotReady(f"the state at {self.url} takes no record") from error
        raise AssertionError("unreachable")

    async def get(self, subject: str) -> Entry | None:
        """A record; None where there is none.

        Raises:
            NotReady: The store did not answer.
        """
        from nats.js.errors import NotFoundError

        try:
            found = await asyncio.wait_for(
                self._jetstream().get_msg(self._stream, subject=self._prefix + subject), ANSWER_S
            )
        except NotFoundError:
            return None
        except Exception as error:
            raise self._told(error) from error
        return Entry(subject, found.seq or 0, found.headers or {}, found.data or b"")

    async def subjects(self, prefix: str) -> list[str]:
        """Records whose subject begins like this.

        Raises:
            NotReady: The store did not answer.
        """
        try:
            info = await asyncio.wait_for(
                self._jetstream().stream_info(self._stream, subjects_filter=f"{self._prefix}{prefix}>"),
                ANSWER_S,
            )
        except Exception as error:
            raise self._told(error) from error
        return [subject.removeprefix(self._prefix) for subject in info.state.subjects or {}]

    async def fetch(self, number: int) -> bytes:
        """The bytes of a message.

        Raises:
            CorruptFile: There is none of this number any more.
            NotReady: The store did not answer.
        """
        from nats.js.errors import NotFoundError

        try:
            found = await asyncio.wait_for(self._jetstream().get_msg(self._stream, number), CONNECT_S)
        except NotFoundError as error:
            raise CorruptFile(f"the state at {self.url} lacks message {number}") from error
        except Exception as error:
            raise self._told(error) from error
        return found.data or b""

    async def forget(self, number: int) -> None:
        """Remove a message by its number, which never means another one later.

        Raises:
            NotReady: The store did not answer.
        """
        question = msgspec.json.encode({"seq": number, "no_erase": True})
        try:
            await self._connected().request(
                f"$JS.API.STREAM.MSG.DELETE.{self._stream}", question, timeout=ANSWER_S
            )
        except Exception as error:
            raise self._told(error) from error

    async def records(self) -> list[Entry]:
        """Every record as it was at the last write of this process, or later.

        Raises:
            NotReady: The store did not answer.
        """
        from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

        # Pulled, not pushed: the client answers the server's flow control of pushed messages a quarter of a second
        # late, each time.
        config = ConsumerConfig(
            deliver_policy=DeliverPolicy.ALL,
            ack_policy=AckPolicy.NONE,
            filter_subject=f"{self._prefix}{RECORDS}.>",
            inactive_threshold=30.0,
            mem_storage=True,
        )
        found: list[Entry] = []
        last = self._last
        try:
            made = await self._jetstream().add_consumer(self._stream, config)
            sub = await self._jetstream().pull_subscribe_bind(made.name, self._stream)
            try:
                while True:
                    for message in await sub.fetch(BATCH, timeout=CONNECT_S):
                        subject = message.subject.removeprefix(self._prefix)
                        number = message.metadata.sequence.stream
                        found.append(Entry(subject, number, message.headers or {}, message.data))
                    # In order, and the message that was the last at the begin is there, or the lease renewed after
                    # it. What the server says is still to come is wrong where records are replaced meanwhile.
                    if number >= last:
                        return found
            finally:
                await sub.unsubscribe()
                await self._jetstream().delete_consumer(self._stream, made.name)
        except Exception as error:
            raise self._told(error) from error

    def jetstream(self) -> JetStreamContext:
        """For what is no record: models' files. In the thread."""
        return self._jetstream()

    # ------------------------------------------------------------------------------------------------- inside

    def _lock(self) -> asyncio.Lock:
        if self._writing is None:
            self._writing = asyncio.Lock()
        return self._writing

    async def _catch_up(self) -> None:
        """Learn the stream's last message, if the lease is still ours; the next write is refused if not any more."""
        number, lease = await self.read_lease()
        if lease is None or (lease.holder, lease.term) != self._mine or lease.released:
            raise Fenced("another dispatcher leads now")
        try:
            info = await asyncio.wait_for(self._jetstream().stream_info(self._stream), ANSWER_S)
        except Exception as error:
            raise self._told(error) from error
        self._last = max(number, info.state.last_seq)

    async def _publish(self, subject: str, data: bytes, headers: Mapping[str, str]) -> int:
        from nats.js.errors import APIError

        try:
            answer = await self._jetstream().publish(
                self._prefix + subject, data, timeout=ANSWER_S, stream=self._stream, headers=dict(headers)
            )
        except APIError as error:
            if error.err_code in _WRONG_LAST:
                raise Fenced("another dispatcher leads now") from error
            raise self._told(error) from error
        except Exception as error:
            raise self._told(error) from error
        return int(answer.seq)

    def _connected(self) -> Client:
        if self._client is None:
            raise NotReady(f"the state at {self.url} is not connected")
        return self._client

    def _jetstream(self) -> JetStreamContext:
        return self._connected().jetstream(timeout=CONNECT_S)

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
                name=self._stream,
                subjects=[f"{self._prefix}>"],
                storage=StorageType.FILE,
                max_msgs_per_subject=1,
                discard=DiscardPolicy.NEW,
                num_replicas=url.replicas,
            )
            info = await self._opened(config)
            if info.config.max_msgs_per_subject != 1:
                raise UsageError(
                    f"the stream {self._stream} at {url} is not one that defer made",
                    hint="choose another name",
                )
        except Exception as error:
            raise self._told(error) from error

    async def _opened(self, config: StreamConfig) -> StreamInfo:
        """The stream, made where there is none; servers that are electing one that leads them are asked again."""
        from nats.js.errors import APIError, BadRequestError, NotFoundError

        deadline = self._loop.time() + CONNECT_S
        while True:
            jetstream = self._connected().jetstream(timeout=SETTLE_S)
            try:
                try:
                    return await jetstream.stream_info(self._stream)
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
        self._refused = asyncio.Event()
        task = asyncio.create_task(connecting)
        refused = asyncio.create_task(self._refused.wait())
        try:
            await asyncio.wait({task, refused}, timeout=CONNECT_S, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise TimeoutError
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

    def _told(self, error: Exception) -> DeferError:
        from nats import errors as ne
        from nats.js import errors as je

        if isinstance(error, DeferError):
            return error
        text = str(error).removeprefix("nats: ") or self._trouble or type(error).__name__
        if "ermissions violation" in text.lower():
            return Unauthorised(f"the state at {self.url} does not let this user in everywhere: {text}")
        if isinstance(error, ne.AuthorizationError) or "uthorization" in f"{text} {self._trouble}":
            return Unauthorised(
                f"the state at {self.url} refuses the credentials", hint="see `creds` in its URL"
            )
        if isinstance(error, je.APIError) and error.err_code in _NO_SPACE:
            return DiskFull(f"the state at {self.url} has no room: {error.description}")
        if isinstance(error, je.ServiceUnavailableError | ne.NoRespondersError | je.NoStreamResponseError):
            return NotReady(
                f"the server at {self.url} has no JetStream, or not yet",
                hint="start it with `nats-server -js`",
            )
        if isinstance(error, TimeoutError | ne.NoServersError | ne.ConnectionClosedError | OSError):
            why = f": {text}" if text != "TimeoutError" else ""
            return NotReady(
                f"the state at {self.url} does not answer{why}", hint="is nats-server running there?"
            )
        if isinstance(error, msgspec.MsgspecError):
            return FileProblem(f"the state at {self.url} is damaged: {error}")
        return NotReady(f"the state at {self.url} cannot be used: {text}")
