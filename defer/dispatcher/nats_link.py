"""The shared state's records on NATS: what a leader writes, and what others read.

Every write says after which message of the whole stream it wants to be, and the server refuses it elsewhere. A leader
is the only one that writes; the lease lies in the same stream. So whoever takes the lease fences off everything that
the leader before still has on its way, on any record.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from defer.dispatcher.election import Lease
from defer.dispatcher.nats_connection import CONNECT_S, NatsConnection
from defer.dispatcher.state_url import StateUrl
from defer.errors import CorruptFile, NotReady

ANSWER_S = 0.5
"""A write or read that takes longer is asked again: a leader cannot wait long, or its lease ends."""

BATCH = 256
"""Records that are asked for at once."""

RECORDS: Final = "records"
PIECES: Final = "pieces"
LEASE: Final = "lease"
LIST: Final = "files"

_EXPECTED = "Nats-Expected-Last-Sequence"
_EXPECTED_OF_SUBJECT = "Nats-Expected-Last-Subject-Sequence"
_WRONG_LAST: Final = (10071, 10164)
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


class NatsLink(NatsConnection):
    """A connection by which the state's records are read and written; the coroutines are for its own thread.

    Args:
        url: Where.
    """

    def __init__(self, url: StateUrl) -> None:
        super().__init__(url)
        self._last = 0
        self._mine: tuple[str, int] | None = None  # holder and term of the lease under which it writes
        self._writing: asyncio.Lock | None = None

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
                self.jetstream().get_msg(self.stream, subject=self.prefix + subject), ANSWER_S
            )
        except NotFoundError:
            return None
        except Exception as error:
            raise self.told(error) from error
        return Entry(subject, found.seq or 0, found.headers or {}, found.data or b"")

    async def subjects(self, prefix: str) -> list[str]:
        """Records whose subject begins like this.

        Raises:
            NotReady: The store did not answer.
        """
        try:
            info = await asyncio.wait_for(
                self.jetstream().stream_info(self.stream, subjects_filter=f"{self.prefix}{prefix}>"),
                ANSWER_S,
            )
        except Exception as error:
            raise self.told(error) from error
        return [subject.removeprefix(self.prefix) for subject in info.state.subjects or {}]

    async def fetch(self, number: int) -> bytes:
        """The bytes of a message.

        Raises:
            CorruptFile: There is none of this number any more.
            NotReady: The store did not answer.
        """
        from nats.js.errors import NotFoundError

        try:
            found = await asyncio.wait_for(self.jetstream().get_msg(self.stream, number), CONNECT_S)
        except NotFoundError as error:
            raise CorruptFile(f"the state at {self.url} lacks message {number}") from error
        except Exception as error:
            raise self.told(error) from error
        return found.data or b""

    async def forget(self, number: int) -> None:
        """Remove a message by its number, which never means another one later.

        Raises:
            NotReady: The store did not answer.
        """
        question = msgspec.json.encode({"seq": number, "no_erase": True})
        try:
            await self.connected().request(
                f"$JS.API.STREAM.MSG.DELETE.{self.stream}", question, timeout=ANSWER_S
            )
        except Exception as error:
            raise self.told(error) from error

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
            filter_subject=f"{self.prefix}{RECORDS}.>",
            inactive_threshold=30.0,
            mem_storage=True,
        )
        found: list[Entry] = []
        last = self._last
        try:
            made = await self.jetstream().add_consumer(self.stream, config)
            sub = await self.jetstream().pull_subscribe_bind(made.name, self.stream)
            try:
                while True:
                    for message in await sub.fetch(BATCH, timeout=CONNECT_S):
                        subject = message.subject.removeprefix(self.prefix)
                        number = message.metadata.sequence.stream
                        found.append(Entry(subject, number, message.headers or {}, message.data))
                    # In order, and the message that was the last at the begin is there, or the lease renewed after
                    # it. What the server says is still to come is wrong where records are replaced meanwhile.
                    if number >= last:
                        return found
            finally:
                await sub.unsubscribe()
                await self.jetstream().delete_consumer(self.stream, made.name)
        except Exception as error:
            raise self.told(error) from error

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
            info = await asyncio.wait_for(self.jetstream().stream_info(self.stream), ANSWER_S)
        except Exception as error:
            raise self.told(error) from error
        self._last = max(number, info.state.last_seq)

    async def _publish(self, subject: str, data: bytes, headers: Mapping[str, str]) -> int:
        from nats.js.errors import APIError

        try:
            answer = await self.jetstream().publish(
                self.prefix + subject, data, timeout=ANSWER_S, stream=self.stream, headers=dict(headers)
            )
        except APIError as error:
            if error.err_code in _WRONG_LAST:
                raise Fenced("another dispatcher leads now") from error
            raise self.told(error) from error
        except Exception as error:
            raise self.told(error) from error
        return int(answer.seq)
