"""Requests that come before a restarted dispatcher has its models back: they wait, instead of being refused. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from defer.dispatcher import events as e
from node_agent.messages import NO_DEADLINE, Rejection

_S = 1_000_000_000

Parked = e.InferArrived | e.RecallArrived | e.CancelArrived


@dataclass(slots=True)
class Parking:
    """What came while the dispatcher resumes; bounded like accepted requests.

    Attributes:
        limits: The dispatcher's.
        open: Whether requests wait here now.
    """

    limits: e.Limits
    open: bool = False
    nbytes: int = 0
    _waiting: list[tuple[float, Parked]] = field(default_factory=list)
    _held: list[tuple[float, e.InferArrived]] = field(default_factory=list)

    def take(self, event: Parked, now: float) -> list[e.Instruction]:
        """Let a request, or what is said of one, wait; refuse it where too much waits."""
        if isinstance(event, e.InferArrived):
            size = sum(header.nbytes for header in event.infer.tensors)
            many = len(self._waiting) >= self.limits.requests
            if many or (self.nbytes and self.nbytes + size > self.limits.nbytes):
                text = f"the dispatcher is coming back, and {len(self._waiting)} requests wait already"
                return [e.Reject(event.client, Rejection(event.infer.request, "overloaded", text))]
            self.nbytes += size
        elif isinstance(event, e.CancelArrived):
            if len(self._waiting) >= self.limits.requests:
                return []
        elif len(self._waiting) >= self.limits.requests:
            text = "the dispatcher is coming back; ask again in a moment"
            return [e.Reject(event.client, Rejection(event.request, "overloaded", text))]
        self._waiting.append((now, event))
        return []

    def leave(self, now: float) -> list[Parked]:
        """Everything that waited, in order, with the time that it waited taken off."""
        self.open, self.nbytes = False, 0
        waiting, self._waiting = self._waiting, []
        return [_later(event, now - since) for since, event in waiting]

    def back(self, taken: Callable[[e.InferArrived], bool], now: float) -> list[Parked]:
        """Requests that need not wait any longer, in order, with the time that they waited taken off."""
        waiting, self._waiting = self._waiting, []
        out: list[Parked] = []
        for since, event in waiting:
            if isinstance(event, e.InferArrived) and taken(event):
                self.nbytes -= sum(header.nbytes for header in event.infer.tensors)
                out.append(_later(event, now - since))
            else:
                self._waiting.append((since, event))
        return out

    def hold(self, event: e.InferArrived, now: float) -> None:
        """A request from the store waits until a model is ready again; the store bounds how many there are."""
        self._held.append((now, event))

    def let_go(self, request: bytes) -> e.InferArrived | None:
        """Have a request wait for its model no longer; None where it does not."""
        for place, (_, event) in enumerate(self._held):
            if event.infer.request == request:
                del self._held[place]
                return event
        return None

    def held(self, now: float) -> list[Parked]:
        """Those that wait for a model, with the time that they waited taken off."""
        waiting, self._held = self._held, []
        return [_later(event, now - since) for since, event in waiting]


def _later(event: Parked, waited: float) -> Parked:
    if not isinstance(event, e.InferArrived) or event.infer.remaining_ns == NO_DEADLINE:
        return event
    left = max(0, event.infer.remaining_ns - int(waited * _S))
    return msgspec.structs.replace(event, infer=msgspec.structs.replace(event.infer, remaining_ns=left))
