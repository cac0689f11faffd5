"""When traced requests passed the dispatcher; bounded, and empty where nobody traces."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from defer.api import RequestTrace
from node_agent.messages import Infer, Item

KEPT = 8192
"""Traced requests that are remembered; the oldest are forgotten first."""


@dataclass(slots=True)
class _Noted:
    epoch: int = 0
    request: int = 0
    arrived: int = 0
    sent: int = 0
    returned: int = 0
    answered: int = 0
    hops: int = 0


class RequestTraces:
    """By trace context; used in one thread.

    Args:
        kept: How many are remembered.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._noted: dict[str, _Noted] = {}
        self.open: dict[bytes, str] = {}
        """Traces of requests that are not answered yet, by the client's id; empty where nobody traces."""
        self.exported = False
        """Whether somebody takes the traces of requests that were answered."""
        self._done: deque[str] = deque(maxlen=kept)

    def arrived(self, infer: Infer, now_ns: int) -> None:
        """A client's request was read; where it asks again the first time counts."""
        if infer.trace not in self._noted:
            while len(self._noted) >= self._kept:
                del self._noted[next(iter(self._noted))]
            self._noted[infer.trace] = _Noted(arrived=now_ns)
            while len(self.open) >= self._kept:  # of requests that ended without a result
                del self.open[next(iter(self.open))]
            self.open[infer.request] = infer.trace

    def sent(self, item: Item, now_ns: int) -> None:
        """It was handed to ZeroMQ for its first stage; where it is sent again the last time counts."""
        noted = self._noted.get(item.trace)
        if noted is not None:
            noted.epoch, noted.request, noted.sent = item.epoch, item.request, now_ns

    def returned(self, item: Item, now_ns: int) -> None:
        """Its result was read; what comes back later, or of another route, is of a request that was answered."""
        noted = self._noted.get(item.trace)
        if noted is not None and not noted.returned and noted.request == item.request:
            noted.epoch, noted.returned, noted.hops = item.epoch, now_ns, item.hop

    def answered(self, request: bytes, now_ns: int) -> None:
        """A result, of whichever request, is handed to ZeroMQ for the client."""
        trace = self.open.pop(request, "")
        noted = self._noted.get(trace)
        if noted is not None:
            noted.answered = now_ns
            if self.exported:
                self._done.append(trace)

    def take(self, most: int) -> tuple[str, ...]:
        """Traces of the requests that were answered since the last time, the oldest first; at most so many."""
        return tuple(self._done.popleft() for _ in range(min(most, len(self._done))))

    def find(self, traces: Iterable[str]) -> tuple[RequestTrace, ...]:
        """What is remembered of some traces, in their order."""
        return tuple(
            RequestTrace(trace, n.epoch, n.request, n.arrived, n.sent, n.returned, n.answered, n.hops)
            for trace in traces
            if (n := self._noted.get(trace)) is not None
        )
