"""Answers kept for a while, so that a client that asks again gets the same one and nothing runs twice."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from defer.dispatcher.events import Frames
from node_agent.messages import Rejection, Result


@dataclass(frozen=True, slots=True)
class Answer:
    """How an accepted request ended, with the frames of its result."""

    message: Result | Rejection
    frames: Frames = ()
    nbytes: int = 0


class RecentAnswers:
    """The latest answers by request id, bounded in number and in bytes; the oldest go first.

    Args:
        count: Answers kept at most.
        nbytes: Bytes of their frames at most; an answer larger than this is not kept.
    """

    def __init__(self, count: int, nbytes: int) -> None:
        self._count = count
        self._limit = nbytes
        self._answers: OrderedDict[bytes, Answer] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, request: bytes) -> Answer | None:
        """The answer that this request got, or None."""
        return self._answers.get(request)

    def put(self, request: bytes, answer: Answer) -> None:
        """Keep an answer, and let go of the oldest ones that no longer fit."""
        if answer.nbytes > self._limit or self._count == 0:
            return
        self._answers[request] = answer
        self.nbytes += answer.nbytes
        while len(self._answers) > self._count or self.nbytes > self._limit:
            _, oldest = self._answers.popitem(last=False)
            self.nbytes -= oldest.nbytes
