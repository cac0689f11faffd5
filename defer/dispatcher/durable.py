"""Durable requests: which of them are safe in the store, and who waits for that. Pure.

A durable request runs while it is being written, and its answer is handed over when that is safe: so whoever has the
answer knows that the request does not run again, whatever becomes of the dispatcher.

    Infer ──▶ accepted ──written──▶ Accepted ──▶ … ──result──▶ owed ──written──▶ answered, kept for a while
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from defer.dispatcher import events as e
from defer.dispatcher.answers import Answer, say
from defer.dispatcher.store import (
    AnswerKept,
    AnswersDropped,
    Change,
    KeptAnswer,
    KeptRequest,
    RequestKept,
    Spent,
)
from node_agent.messages import Infer, Rejection


@dataclass(frozen=True, slots=True)
class Retention:
    """How much of what was answered is kept for clients that ask again.

    Attributes:
        seconds: How long.
        count: Answers at most; the oldest go first.
        nbytes: Bytes of their frames at most.
    """

    seconds: float = 3600.0
    count: int = 65_536
    nbytes: int = 1 << 30


@dataclass(slots=True)
class _Owed:
    """An answer that is being written, and who gets it then."""

    client: bytes
    answer: Answer
    spent: Spent


class Durable:
    """The durable requests of one dispatcher.

    Args:
        retention: What is kept of answered ones.
    """

    def __init__(self, retention: Retention | None = None) -> None:
        self._retention = retention or Retention()
        self._enabled = False
        self._stopping = False
        self._wall = 0.0
        self._now = 0.0
        self._unsaved: set[bytes] = set()
        self._owed: dict[bytes, _Owed] = {}
        self._kept: OrderedDict[bytes, Spent] = OrderedDict()
        self._nbytes = 0

    @property
    def owed(self) -> int:
        """Answers that are being written."""
        return len(self._owed)

    def enable(self, answers: Iterable[Spent], wall: float, most: int | None = None) -> None:
        """There is a store.

        Args:
            answers: Those that it holds, the oldest first.
            wall: What is added to the core's clock for seconds since 1970.
            most: Answers that it keeps at most; None for what the retention says.
        """
        self._enabled, self._wall = True, wall
        if most is not None:
            self._retention = replace(self._retention, count=most)
        for spent in answers:
            self._add(spent)

    def at(self, now: float) -> None:
        """The core's clock; before anything else of an event."""
        self._now = now

    def stop(self) -> None:
        """From now on what has no answer stays in the store for the next process."""
        self._stopping = True

    def problem(self, infer: Infer) -> Rejection | None:
        """Why a durable request cannot be taken."""
        if self._enabled or not infer.durable:
            return None
        text = "this dispatcher keeps no state, and so no durable request; start it with --state DIR"
        return Rejection(infer.request, "usage", text)

    def accepted(self, infer: Infer, frames: e.Frames, deadline: float) -> list[e.Instruction]:
        """A request was accepted; `deadline` is on the core's clock."""
        if not infer.durable:
            return []
        self._unsaved.add(infer.request)
        wall = deadline + self._wall

        def build() -> Sequence[Change]:
            return (RequestKept(KeptRequest(infer, _joined(frames), wall)),)

        return [e.Keep(infer.request, "request", build)]

    def again(self, client: bytes, infer: Infer) -> list[e.Instruction]:
        """A request that runs was asked for again."""
        saved = infer.durable and infer.request not in self._unsaved
        return [e.Acknowledge(client, infer.request)] if saved else []

    def known(self, client: bytes, request: bytes) -> list[e.Instruction] | None:
        """What whoever asks for an answered durable request gets; None where it is none."""
        owed = self._owed.get(request)
        if owed is not None:
            owed.client = client
            return []
        return [e.Recall(client, request)] if request in self._kept else None

    def ended(self, client: bytes, infer: Infer, answer: Answer) -> list[e.Instruction]:
        """An accepted durable request ended."""
        self._unsaved.discard(infer.request)
        if self._stopping and isinstance(answer.message, Rejection):
            return []  # it is in the store, and runs when a dispatcher is back
        at = self._now + self._wall
        spent = Spent(infer.request, answer.nbytes, at)
        self._owed[infer.request] = _Owed(client, answer, spent)
        old = self._outdated(spent)

        def build() -> Sequence[Change]:
            kept = AnswerKept(KeptAnswer(answer.message, _joined(answer.frames), at))
            return (kept, AnswersDropped(old)) if old else (kept,)

        return [e.Keep(infer.request, "answer", build)]

    def answer_kept(self, request: bytes, problem: str) -> list[e.Instruction]:
        """An answer was written, or could not be: then it is handed over all the same, since it is right."""
        owed = self._owed.pop(request, None)
        if owed is None:
            return []
        if not problem:
            self._add(owed.spent)
        return [say(owed.client, owed.answer)]

    def request_kept(self, client: bytes | None, request: bytes) -> list[e.Instruction]:
        """A request was written; `client` is None where it has ended meanwhile."""
        self._unsaved.discard(request)
        return [] if client is None else [e.Acknowledge(client, request)]

    def recalled(self, client: bytes, request: bytes, kept: KeptAnswer | None) -> list[e.Instruction]:
        """An answer was looked up."""
        if kept is None:
            return [e.Reject(client, gone(request))]
        return [say(client, Answer(kept.message, kept.split()))]

    def _add(self, spent: Spent) -> None:
        self._kept[spent.request] = spent
        self._nbytes += spent.nbytes

    def _outdated(self, coming: Spent) -> tuple[bytes, ...]:
        """Answers that go because another one comes."""
        bounds = self._retention
        old = []
        while self._kept:
            request, first = next(iter(self._kept.items()))
            room = len(self._kept) < bounds.count and self._nbytes + coming.nbytes <= bounds.nbytes
            if room and first.at >= coming.at - bounds.seconds:
                break
            del self._kept[request]
            self._nbytes -= first.nbytes
            old.append(request)
        return tuple(old)


def gone(request: bytes) -> Rejection:
    """What is said of a request that nothing is known of."""
    text = "nothing is known of this request: it was never accepted, or its answer is not kept any longer"
    return Rejection(request, "request-failed", text)


def _joined(frames: e.Frames) -> bytes:
    return b"".join(frames)  # type: ignore[arg-type]
