"""Requests that were accepted and are not answered yet, with their deadlines, and what keeps one from being accepted."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator

import msgspec

from defer.dispatcher import events as e
from defer.dispatcher.routes import REMEMBERED, RouteState
from defer.signature import input_problem, output_problem
from defer.units import show_size
from node_agent.messages import NO_DEADLINE, USUAL_PRIORITY, Infer, Item

_S = 1_000_000_000


class Request(msgspec.Struct, gc=False):
    """An accepted request that is not answered yet.

    Attributes:
        number: The dispatcher's number for it.
        client: Whom to tell.
        infer: What was asked.
        frames: Its tensors.
        nbytes: Their bytes.
        epoch: The route that it waits for, or is on.
        arrived: When it was accepted.
        deadline: When it ends at the latest.
        pinned: It means this route and no other: a canary, a sample.
        sent: Whether it is on its way.
        losses: How many devices were lost while it was on its way.
    """

    number: int
    client: bytes
    infer: Infer
    frames: e.Frames
    nbytes: int
    epoch: int
    arrived: float
    deadline: float
    pinned: bool
    sent: bool = False
    losses: int = 0

    @property
    def priority(self) -> int:
        """From 1 on; the smallest goes first."""
        return self.infer.priority or USUAL_PRIORITY

    def item(self, now: float) -> Item:
        """The request as its first hop gets it."""
        infer = self.infer
        left = NO_DEADLINE if infer.remaining_ns == NO_DEADLINE else max(0, int((self.deadline - now) * _S))
        return Item(self.epoch, self.number, 0, left, infer.tensors, infer.trace, infer.priority)


class Ledger:
    """The requests of one dispatcher.

    Args:
        longest_s: A request that names no deadline ends after this many seconds.
    """

    def __init__(self, longest_s: float) -> None:
        self.by_number: dict[int, Request] = {}
        self.nbytes = 0
        self._longest = longest_s
        self._by_id: dict[bytes, Request] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._next_number = 1

    def named(self, request: bytes) -> Request | None:
        """The request that a client calls so."""
        return self._by_id.get(request)

    def add(self, event: e.InferArrived, nbytes: int, epoch: int, now: float) -> Request:
        """Accept a request."""
        infer = event.infer
        left = (
            self._longest
            if infer.remaining_ns == NO_DEADLINE
            else min(self._longest, infer.remaining_ns / _S)
        )
        number, self._next_number = self._next_number, self._next_number + 1
        request = Request(
            number,
            event.client,
            infer,
            event.frames,
            nbytes,
            epoch,
            now,
            now + left,
            pinned=event.epoch is not None,
        )
        self.by_number[number] = self._by_id[infer.request] = request
        self.nbytes += nbytes
        heapq.heappush(self._deadlines, (request.deadline, number))
        if len(self._deadlines) > 4 * len(self.by_number) + 64:  # mostly of requests that have ended
            self._deadlines = [(held.deadline, n) for n, held in self.by_number.items()]
            heapq.heapify(self._deadlines)
        return request

    def remove(self, request: Request) -> None:
        """A request is answered."""
        del self.by_number[request.number]
        del self._by_id[request.infer.request]
        self.nbytes -= request.nbytes

    def next_expiry(self) -> float:
        """When the next deadline passes; infinity where nothing waits."""
        while self._deadlines and self._deadlines[0][1] not in self.by_number:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else math.inf

    def expired(self, now: float) -> Iterator[Request]:
        """The requests whose deadlines have passed; each must be answered before the next is asked for."""
        while self.next_expiry() <= now:
            yield self.by_number[heapq.heappop(self._deadlines)[1]]


def obstacle(
    state: RouteState, infer: Infer, nbytes: int, held: int, limits: e.Limits
) -> tuple[str, str] | None:
    """Why a request cannot be accepted on a route, as code and sentence; None where it can.

    Args:
        state: The route.
        infer: What is asked.
        nbytes: Its input bytes.
        held: Input bytes of all that is accepted and unanswered.
        limits: What may be held.
    """
    route, tensors = state.route, infer.tensors
    if infer.outputs or state.fits.get(id(tensors)) is not tensors:
        problem = mismatch(route, infer)
        if problem is not None:
            return "wrong-input", f"model {route.model!r}: {problem}"
        if not infer.outputs:
            if len(state.fits) >= REMEMBERED:
                state.fits.clear()
            state.fits[id(tensors)] = tensors  # held, so that nothing else gets its identity
    if nbytes > limits.nbytes:  # trying again does not help
        return "too-large", (
            f"the request's inputs are too large: {show_size(nbytes)}, at most {show_size(limits.nbytes)}"
        )
    busy = len(state.waiting) + len(state.sent)
    if busy >= limits.requests:
        return "overloaded", (
            f"{busy} requests for model {route.model!r} wait already (limit {limits.requests})"
        )
    if held + nbytes > limits.nbytes:
        return "overloaded", (
            f"requests of {held} bytes wait already, {nbytes} more would pass the limit of {limits.nbytes}"
        )
    return None


def mismatch(route: e.Route, infer: Infer) -> str | None:
    """What a request brings or wants that the route's model does not; None where both fit."""
    return input_problem(route.inputs, infer.tensors) or output_problem(route.outputs, infer.outputs)
