"""Answers kept for a while, so that a client that asks again gets the same one and nothing runs twice."""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from defer.dispatcher.events import Deliver, Frames, Instruction, Reject
from node_agent.messages import Rejection, Result


class Answer(msgspec.Struct, frozen=True, gc=False):
    """How an accepted request ended, with the frames of its result."""

    message: Result | Rejection
    frames: Frames = ()
    nbytes: int = 0


class RecentAnswers:
    """The latest answers by request id, bounded in number and in bytes; the oldest go first.

    Of an answer that is not kept, its request's id still is: whoever asks again learns that it was answered, and the
    request does not run twice.

    Args:
        count: Answers kept at most.
        nbytes: Bytes of their frames at most; an answer larger than this is not kept.
        spent: Ids kept beyond those.
    """

    def __init__(self, count: int, nbytes: int, spent: int) -> None:
        self._count = count
        self._limit = nbytes
        self._most_spent = spent
        self._answers: OrderedDict[bytes, Answer] = OrderedDict()
        self._spent: OrderedDict[bytes, None] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, request: bytes) -> Answer | None:
        """What to tell whoever sends this request again; None for a request that may run."""
        if request in self._spent:
            text = "the request was answered already, and its answer is not kept any longer"
            return Answer(Rejection(request, "request-failed", text))
        return self._answers.get(request)

    def put(self, request: bytes, answer: Answer) -> None:
        """Keep an answer, and let go of the oldest ones that no longer fit."""
        if answer.nbytes > self._limit or self._count == 0:
            self._spend(request)
            return
        self._answers[request] = answer
        self.nbytes += answer.nbytes
        while len(self._answers) > self._count or self.nbytes > self._limit:
            name, oldest = self._answers.popitem(last=False)
            self.nbytes -= oldest.nbytes
            self._spend(name)

    def _spend(self, request: bytes) -> None:
        self._spent[request] = None
        if len(self._spent) > self._most_spent:
            self._spent.popitem(last=False)


def say(client: bytes, answer: Answer) -> Instruction:
    """Tell a client how its request ended."""
    if isinstance(answer.message, Result):
        return Deliver(client, answer.message, answer.frames)
    return Reject(client, answer.message)
