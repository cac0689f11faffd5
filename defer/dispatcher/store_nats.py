"""A dispatcher's state on NATS JetStream, shared with those that stand by: see `nats_link` for what keeps them apart.

    records.last.0                  the highest epoch ever given
    records.epochs.NUMBER           devices that may hold it
    records.models.NAME             a deployment
    records.splits.NAME             what a model's name stands for
    records.requests.ID             a durable request without an answer
    records.files.NAME              what `shared_files` keeps of a model
    records.answers.ID              how one ended; goes before a request of the same id
    pieces.NUMBER.INDEX             what is too long for one message, written before the record that names it

Names are in hexadecimal. Changes are written one after the other, so a crash leaves the first ones: each is whole by
itself, and what belongs together is written in an order in which the first ones mean the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar
from uuid import uuid4

import msgspec

from defer.dispatcher import store as s
from defer.dispatcher.nats_link import LEASE, LIST, PIECES, RECORDS, Entry, Fenced, NatsLink
from defer.dispatcher.rollout import Split
from defer.errors import CorruptFile, FileProblem, NotReady
from node_agent.messages import Infer, Rejection, Result

T = TypeVar("T")

APPLY_S = 25.0
"""Longest wait for one group of changes."""

OPEN_S = 25.0
"""How long a new leader tries to read what the one before has left."""

OPEN_AGAIN_S = 0.2
"""Pause between two attempts."""

INLINE_ANSWER = 1024
"""Bytes of an answer up to which they stand in its record: records are all read at a takeover."""

_GONE = "Defer-Gone"
_PIECES = "Defer-Pieces"
_encode = msgspec.msgpack.encode


class _Request(msgspec.Struct, frozen=True, array_like=True):
    infer: Infer
    deadline: float
    frames: bytes = b""


class _Answer(msgspec.Struct, frozen=True, array_like=True):
    message: Result | Rejection
    at: float
    nbytes: int
    frames: bytes = b""


@dataclass(slots=True)
class _Held:
    """Where a record is: its message, and those of its pieces."""

    number: int
    pieces: list[int] = field(default_factory=list)


class NatsStore:
    """See `defer.dispatcher.store.Store`; for whoever holds the lease.

    Args:
        link: The connection, which leads; it outlives the store.
        told: Hears of deployments that are kept and dropped, when that is written.
    """

    def __init__(
        self, link: NatsLink, told: Callable[[s.ModelKept | s.ModelDropped], None] | None = None
    ) -> None:
        self._link = link
        self._told = told
        self._held: dict[str, _Held] = {}
        self._order: dict[bytes, int] = {}
        self._garbage: deque[int] = deque()
        self._sweeping: asyncio.Task[None] | None = None
        self._last = 0
        self._open = False

    def open(self) -> s.Snapshot:
        """See `Store`.

        Raises:
            NotReady: The servers do not answer.
            CorruptFile: What is there was not written by this version of defer.
        """
        deadline = time.monotonic() + OPEN_S
        while True:
            try:
                return self._link.run(self._read_all(), deadline - time.monotonic())
            except Fenced:
                raise
            except NotReady:  # servers that have just agreed on who leads them still settle the rest
                if time.monotonic() + OPEN_AGAIN_S > deadline:
                    raise
                time.sleep(OPEN_AGAIN_S)

    def apply(self, changes: Sequence[s.Change]) -> None:
        """See `Store`.

        Raises:
            Fenced: Another dispatcher leads.
            DiskFull: The servers have no room.
            NotReady: They do not answer.
        """
        if not self._open:
            raise FileProblem("the state is not open")
        self._link.run(self._apply(changes), APPLY_S)

    def answer(self, request: bytes) -> s.KeptAnswer | None:
        """See `Store`."""
        return self._link.run(self._answer(request), APPLY_S)

    def close(self) -> None:
        """See `Store`."""
        if self._open:
            self._open = False
            with contextlib.suppress(NotReady):
                self._link.run(self._sweep(), 1.0)

    # ---------------------------------------------------------------------------------------------- in the loop

    async def _read_all(self) -> s.Snapshot:
        self._held, self._last = {}, 0
        epochs: dict[int, tuple[str, ...]] = {}
        models: list[s.KeptModel] = []
        splits: list[Split] = []
        requests: dict[str, s.KeptRequest] = {}
        answers: dict[str, s.Spent] = {}
        for entry in await self._link.records():
            kind, _, key = entry.subject.removeprefix(f"{RECORDS}.").partition(".")
            if kind in (LEASE, LIST):
                continue
            self._held[f"{kind}.{key}"] = held = _Held(entry.number, _pieces(entry))
            if _GONE in entry.headers:
                self._drop(f"{kind}.{key}")
                continue
            data = entry.data
            if kind == "models" and not data:
                data = await self._joined(held.pieces)
            match kind:
                case "last":
                    self._last = int(data)
                case "epochs":
                    epochs[int(key)] = _decode(data, tuple[str, ...])
                case "models":
                    models.append(_decode(data, s.KeptModel))
                case "splits":
                    splits.append(_decode(data, Split))
                case "requests":
                    request = _decode(data, _Request)
                    frames = await self._joined(held.pieces) if held.pieces else request.frames
                    requests[key] = s.KeptRequest(request.infer, frames, request.deadline)
                case "answers":
                    answer = _decode(data, _Answer)
                    answers[key] = s.Spent(answer.message.request, answer.nbytes, answer.at)
        for key in requests.keys() & answers.keys():
            del requests[key]
            self._drop(f"requests.{key}")
        self._last = max(self._last, *epochs, 0)
        self._open = True
        return s.Snapshot(
            self._last,
            dict(sorted(epochs.items())),
            tuple(sorted(models, key=lambda each: each.name)),
            tuple(requests.values()),
            tuple(sorted(answers.values(), key=lambda each: each.at)),
            tuple(sorted(splits, key=lambda each: each.name)),
        )

    async def _apply(self, changes: Sequence[s.Change]) -> None:
        for change in changes:
            match change:
                case s.EpochBegun(epoch, devices):
                    if epoch > self._last:
                        await self._put("last.0", str(epoch).encode())
                        self._last = epoch
                    await self._put(f"epochs.{epoch}", _encode(devices))
                case s.EpochEnded(epoch):
                    await self._remove(f"epochs.{epoch}")
                case s.ModelKept(model):
                    kept = _encode(model)
                    short = len(kept) <= self._link.piece_bytes
                    await self._put(
                        f"models.{_key(model.name)}", kept if short else b"", b"" if short else kept
                    )
                    self._tell(change)
                case s.ModelDropped(name):
                    await self._remove(f"models.{_key(name)}")
                    self._tell(change)
                case s.SplitKept(split):
                    await self._put(f"splits.{_key(split.name)}", _encode(split))
                case s.SplitDropped(name):
                    await self._remove(f"splits.{_key(name)}")
                case s.RequestKept(s.KeptRequest(infer, frames, deadline)):
                    inline, tail = _parted(frames, self._link.piece_bytes // 2)
                    request = _encode(_Request(infer, deadline, inline))
                    await self._put(f"requests.{infer.request.hex()}", request, tail)
                case s.AnswerKept(s.KeptAnswer(message, frames, at)):
                    key = message.request.hex()
                    if f"answers.{key}" not in self._held:
                        inline, tail = _parted(frames, INLINE_ANSWER)
                        answer = _encode(_Answer(message, at, len(frames), inline))
                        await self._put(f"answers.{key}", answer, tail)
                    self._drop(f"requests.{key}")
                case s.AnswersDropped(requests):
                    for old in requests:
                        key = f"answers.{old.hex()}"
                        held = self._held.get(key)
                        if held is not None and held.number >= self._link.last:
                            await self._remove(key)  # the last message stays until there is another one
                        else:
                            self._drop(key)
        if self._garbage and (self._sweeping is None or self._sweeping.done()):
            self._sweeping = asyncio.get_running_loop().create_task(self._sweep())

    def _tell(self, change: s.ModelKept | s.ModelDropped) -> None:
        if self._told is not None:
            self._told(change)

    async def _answer(self, request: bytes) -> s.KeptAnswer | None:
        entry = await self._link.get(f"{RECORDS}.answers.{request.hex()}")
        if entry is None or _GONE in entry.headers:
            return None
        kept = _decode(entry.data, _Answer)
        pieces = _pieces(entry)
        return s.KeptAnswer(kept.message, await self._joined(pieces) if pieces else kept.frames, kept.at)

    async def _put(self, key: str, head: bytes, tail: bytes = b"") -> None:
        """Write a record; what stood under its key before is replaced at once."""
        size = self._link.piece_bytes
        pieces = [
            await self._link.append(f"{PIECES}.{key}.{uuid4().hex}", tail[at : at + size])
            for at in range(0, len(tail), size)
        ]
        headers = {_PIECES: " ".join(map(str, pieces))} if pieces else {}
        number = await self._link.append(f"{RECORDS}.{key}", head, headers)
        before = self._held.get(key)
        if before is not None:
            self._garbage.extend(before.pieces)
        self._held[key] = _Held(number, pieces)

    async def _remove(self, key: str) -> None:
        """Remove a record such that a leader that is none any more cannot: the mark of it is a write like others."""
        if key in self._held:
            before = self._held[key]
            number = await self._link.append(f"{RECORDS}.{key}", b"", {_GONE: "1"})
            self._garbage.extend(before.pieces)
            self._held[key] = _Held(number)
            self._drop(key)

    def _drop(self, key: str) -> None:
        """Have a record's messages removed soon; where that fails, the next leader does it."""
        held = self._held.pop(key, None)
        if held is not None:
            self._garbage.append(held.number)
            self._garbage.extend(held.pieces)

    async def _sweep(self) -> None:
        for _ in range(len(self._garbage)):
            if not self._garbage:
                return
            number = self._garbage.popleft()
            try:
                if number < self._link.last:
                    await self._link.forget(number)
                else:  # numbers are counted from the last message: it stays until there is another one
                    self._garbage.append(number)
            except NotReady:
                self._garbage.append(number)
                return

    async def _joined(self, pieces: Sequence[int]) -> bytes:
        return b"".join([await self._link.fetch(number) for number in pieces])


def _key(name: str) -> str:
    return name.encode().hex()


def _parted(frames: bytes, most: int) -> tuple[bytes, bytes]:
    """Frames that stand in the record, and frames that stand in pieces."""
    return (frames, b"") if len(frames) <= most else (b"", frames)


def _pieces(entry: Entry) -> list[int]:
    return [int(number) for number in entry.headers.get(_PIECES, "").split()]


def _decode(data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise CorruptFile(
            f"a record of the shared state was not written by this version of defer: {error}",
            hint="start the version that wrote it, or choose another name for the state",
        ) from error
