"""What a client of the dispatcher does with its requests: events in, instructions out, no socket or clock.

A request keeps its 16-byte id until it is answered. When the connection breaks it is sent again under the
same id as soon as there is a new one; the dispatcher never runs it twice.

    Submit ──connected──▶ sent ──Result──▶ Resolve
       │                   │ ▲
       └─ waits for the ───┘ └── connection back, or (patient) after a pause when it was overloaded
          connection             Rejection, deadline ──▶ Fail
"""

from __future__ import annotations

import math
from collections import deque

import msgspec

from defer.client_events import (
    Closed,
    Connected,
    Disconnected,
    Event,
    Fail,
    GivenUp,
    Instruction,
    Refused,
    RejectionArrived,
    Resolve,
    ResultArrived,
    SendGiveUp,
    SendInfer,
    Submit,
    Tick,
)
from node_agent.messages import NO_DEADLINE, Infer, Recall, Rejection

CLIENT = "@client"
"""What a client calls itself in its greeting; no device may be called so."""

GRACE_S = 0.25
"""The dispatcher's own answer to a passed deadline says more than ours: we wait so much longer for it, and no more,
since a deadline is a promise."""

STALL_S = GRACE_S + 5.0
"""Whoever waits for a request is told by another thread at its deadline; so much later its machine must have stalled."""

ALIVE_S = 2.0
"""A dispatcher that answered anything within this time is alive."""

BRIEF_S = 0.5
"""A request that had less than this to connect says nothing about whether a dispatcher is there."""

UNTOLD = 1024
"""Durable requests given up while there was no connection, of which the dispatcher is told when there is one."""

PAUSE_S = 0.02
PAUSE_LIMIT_S = 1.0
"""First and longest pause before a patient request is sent again to an overloaded dispatcher."""

OWN = "this is what the request itself was given when it was sent, not how long it is waited for now"
"""Of a deadline that had passed before somebody asked for the answer."""

_S = 1_000_000_000


class _Pending(msgspec.Struct, gc=False):
    submit: Submit
    submitted: float
    tries: int = 0
    again_at: float = math.inf


class ClientCore:
    """The client's decisions.

    Args:
        address: The dispatcher's, for messages.
        absence_s: Longest that a request waits for a connection, its own deadline aside.
    """

    def __init__(self, address: str, absence_s: float = math.inf) -> None:
        self.address = address
        self._absence_s = absence_s
        self._gone_at = -math.inf  # since when there is no connection
        self.connected = False
        self.late = 0
        self._ever = False
        self._heard = -math.inf
        self._wake = math.inf
        self._pending: dict[bytes, _Pending] = {}
        self._paused: dict[bytes, None] = {}
        self._untold: deque[bytes] = deque(maxlen=UNTOLD)

    @property
    def unanswered(self) -> int:
        """Requests under way."""
        return len(self._pending)

    @property
    def owed_since(self) -> float:
        """When the oldest request that has no answer was made; infinity where there is none."""
        return next((pending.submitted for pending in self._pending.values()), math.inf)

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Take in one event at `now` (seconds, monotonic) and say what to do."""
        match event:
            case ResultArrived(result, frames):
                self._heard = now
                if self._pending.pop(result.request, None) is None:
                    self.late += 1
                    return []
                resolved = Resolve(result.request, result.tensors, frames)
                return [resolved, *self._resume(now)] if self._paused else [resolved]
            case Submit():
                pending = self._pending[event.request] = _Pending(event, now)
                self._wake = min(self._wake, self._limit(pending))
                return [self._send(pending, now)] if self.connected else []
            case RejectionArrived(rejection):
                self._heard = now
                return self._rejected(rejection, now)
            case GivenUp(request):
                return self._given_up(request, now)
            case Connected():
                self.connected = self._ever = True
                told = [SendGiveUp(request) for request in self._untold]
                self._untold.clear()
                return [*told, *(self._send(pending, now) for pending in self._pending.values())]
            case Disconnected():
                if self.connected:
                    self._gone_at = now
                self.connected = False
                self._wake = now  # without a connection the grace is void
                return []
            case Refused(code, message, hint):
                return self._fail_all(code, message, hint)
            case Closed():
                return self._fail_all("cancelled", "the client was closed before the answer came")
            case Tick():
                return self._tick(now)

    def next_wake(self) -> float:
        """When `Tick` is due next, perhaps with nothing to do; infinity when nothing waits."""
        return self._wake

    def _resume(self, now: float) -> list[Instruction]:
        """The dispatcher has room again, as one of ours has left it: the one that was paused first may try."""
        while self._paused and self.connected:
            request = next(iter(self._paused))
            del self._paused[request]
            if request in self._pending:
                return [self._send(self._pending[request], now)]
        return []

    def _send(self, pending: _Pending, now: float) -> SendInfer:
        submit = pending.submit
        self._paused.pop(submit.request, None)
        pending.again_at = math.inf
        return SendInfer(asked(submit, now), submit.frames)

    def _rejected(self, rejection: Rejection, now: float) -> list[Instruction]:
        pending = self._pending.get(rejection.request)
        if pending is None:
            self.late += 1
            return []
        if rejection.code == "overloaded" and pending.submit.patient:
            pending.again_at = now + pause_s(pending.tries)
            pending.tries += 1
            self._paused[rejection.request] = None
            self._wake = min(self._wake, pending.again_at)
            return []
        del self._pending[rejection.request]
        return [
            Fail(rejection.request, rejection.code, rejection.message, advice(pending.submit, rejection.code))
        ]

    def _given_up(self, request: bytes, now: float) -> list[Instruction]:
        pending = self._pending.pop(request, None)
        if pending is None:
            return []
        self._paused.pop(request, None)
        told: list[Instruction] = []
        # Whoever asked for an answer by its id alone only waits no longer: the request is not its to end.
        if not pending.submit.recall:
            if self.connected:
                told.append(SendGiveUp(request))
            elif pending.submit.durable:
                self._untold.append(request)  # the dispatcher may have it in its store, and would run it
        return [*told, *self._resume(now)]

    def _tick(self, now: float) -> list[Instruction]:
        out: list[Instruction] = []
        self._wake = math.inf
        for request, pending in list(self._pending.items()):
            limit = self._limit(pending)
            if now >= limit:
                del self._pending[request]
                out.append(self._overdue(request, pending, limit, now))
                continue
            if now >= pending.again_at and self.connected:
                out.append(self._send(pending, now))
            again = pending.again_at if self.connected else math.inf
            self._wake = min(self._wake, limit, again)
        return out

    def _limit(self, pending: _Pending) -> float:
        """When a request is given up as things are now."""
        deadline = pending.submit.deadline
        if self.connected:
            return deadline + GRACE_S
        return min(deadline, max(pending.submitted, self._gone_at) + self._absence_s)

    def _overdue(self, request: bytes, pending: _Pending, limit: float, now: float) -> Fail:
        took = max(0.0, min(limit, pending.submit.deadline) - pending.submitted)
        if not self._ever and took < BRIEF_S and limit >= pending.submit.deadline:
            return Fail(
                request,
                "deadline-exceeded",
                f"the time was up before the connection to the dispatcher at {self.address} stood",
                _longer(pending.submit),
            )
        if self.connected:
            what = f"the dispatcher at {self.address} did not answer within {took:.3g} s"
            if self._heard >= max(pending.submitted, now - ALIVE_S):
                what += "; it is alive, and answers other requests: it has more to do than it keeps up with"
            return Fail(
                request,
                "deadline-exceeded",
                what,
                _longer(pending.submit),
            )
        what = "the connection was lost" if self._ever else "nobody answers there"
        return Fail(
            request,
            "dispatcher-unreachable",
            f"no dispatcher at {self.address} within {took:.3g} s: {what}",
            "start one with `defer serve`, or correct the address",
        )

    def _fail_all(self, code: str, message: str, hint: str = "") -> list[Instruction]:
        failed: list[Instruction] = [Fail(request, code, message, hint) for request in self._pending]
        self._pending.clear()
        self._paused.clear()
        return failed


def asked(submit: Submit, now: float) -> Infer | Recall:
    """What is said to the dispatcher of a request at `now`, on the clock of its deadline."""
    if submit.recall:
        return Recall(submit.request)
    left = NO_DEADLINE if submit.deadline == math.inf else max(1, int((submit.deadline - now) * _S))
    return Infer(
        submit.request,
        submit.model,
        left,
        submit.tensors,
        submit.outputs,
        submit.trace,
        submit.durable,
        submit.priority,
    )


def pause_s(tries: int) -> float:
    """Seconds before a patient request is sent to an overloaded dispatcher once more, after so many tries again."""
    return min(PAUSE_LIMIT_S, PAUSE_S * 2.0 ** min(tries, 10))


def advice(submit: Submit, code: str) -> str:
    """What to do about a request that failed with `code`; empty where its kind of error says it."""
    if code != "deadline-exceeded":
        return ""
    return OWN if submit.recall else _longer(submit)


def _longer(submit: Submit) -> str:
    """What to do about a deadline that passed, with what the request was given, as far as that is known."""
    advice = "`timeout` in Python and --timeout on the command line give a request longer"
    return f"it was given {submit.timeout:g} s; {advice}" if submit.timeout < math.inf else advice
