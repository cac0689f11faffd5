"""What client, dispatcher and agents noted of traced requests, as spans of one clock: the dispatcher's. Pure.

    client      │encode│                                                            │
    transfer           ├──┐                                                      ┌──┤
    dispatcher            │wait│                                            │answer│
    transfer                   ├──┐                                      ┌──┤
    agents                        │wait│decode│wait│run│wait│encode│wait│     (each hop, with a transfer between)

The spans of a request follow each other without a gap from its begin to its end, so they add up to its latency. Spans of
one process are exact; a transfer begins by one clock and ends by another, so it may be off by what both clocks may.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from defer import api
from defer.tracing.clocks import OURS, Clock, Reading
from node_agent.messages import HopTrace

Kind = Literal["wait", "decode", "run", "encode", "transfer"]
KINDS: tuple[Kind, ...] = ("wait", "decode", "run", "encode", "transfer")

CLIENT, DISPATCHER = "client", "dispatcher"
"""What the two are called that are no devices of the cluster."""


@dataclass(frozen=True, slots=True)
class ClientTrace:
    """One request as the client saw it, ns on its monotonic clock.

    Attributes:
        trace: Its trace context.
        begun_ns: Before its inputs were checked and encoded.
        sent_ns: After that, when it was left to the connection.
        ended_ns: Its outputs were there, decoded.
    """

    trace: str
    begun_ns: int
    sent_ns: int
    ended_ns: int


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took a request's time.

    Attributes:
        kind: What it was.
        where: Device, `client` or `dispatcher`; for a transfer the one that sent.
        to: The one that received; empty for all but transfers.
        hop: Index of the hop it belongs to, for a transfer of the hop that it leads to; -1 before and after the hops.
        request: Number of the request in the run, from 0.
        begun_s: Seconds since the run began.
        ended_s: Not before `begun_s`, but for a transfer within its error.
        error_s: Begin and end together may be off by this much.
        nbytes: Tensor bytes that were moved.
        detail: What it waited for, where it waited; of a run, with how many others.
    """

    kind: Kind
    where: str
    request: int
    begun_s: float
    ended_s: float
    to: str = ""
    hop: int = -1
    error_s: float = 0.0
    nbytes: int = 0
    detail: str = ""

    @property
    def seconds(self) -> float:
        """How long it lasted."""
        return self.ended_s - self.begun_s


@dataclass(frozen=True, slots=True)
class Timeline:
    """A traced run.

    Attributes:
        model: What was asked.
        places: `client`, `dispatcher` and the devices in the order in which requests pass them.
        requests: The spans of each request in order.
        errors: By place, what its clock may be off by, s.
        lost: Traced requests of which too little is known.
    """

    model: str
    places: tuple[str, ...]
    requests: tuple[tuple[Span, ...], ...]
    errors: Mapping[str, float]
    lost: int = 0

    @property
    def seconds(self) -> float:
        """From the first begin to the last end."""
        spans = [span for request in self.requests for span in request]
        return max((span.ended_s for span in spans), default=0.0)

    @property
    def latencies(self) -> tuple[float, ...]:
        """Of each request, s."""
        return tuple(spans[-1].ended_s - spans[0].begun_s for spans in self.requests)

    def spans(self) -> Iterable[Span]:
        """Of all requests, one request after the other."""
        return (span for request in self.requests for span in request)


def agent_clocks(before: api.Traces, after: api.Traces) -> dict[str, Clock]:
    """The agents' clocks by what was read before and after a run; those that were not read are left out."""
    taken: dict[str, list[Reading]] = {}
    for traces in (before, after):
        for agent in traces.agents:
            if agent.error_ns >= 0:
                reading = Reading(agent.at_ns, agent.ahead_ns, agent.error_ns)
                taken.setdefault(agent.device, []).append(reading)
    return {device: Clock(readings[0], readings[-1]) for device, readings in taken.items()}


def make_timeline(
    model: str, seen: Sequence[ClientTrace], traces: api.Traces, clocks: Mapping[str, Clock]
) -> Timeline:
    """Puts together what was noted.

    Args:
        model: The model's name.
        seen: The client's part, in the order in which the requests were sent.
        traces: The dispatcher's and the agents' part.
        clocks: Of the agents, and of the client under `CLIENT`, as they stand to the dispatcher's.

    Returns:
        The requests of which every part is known; the others are counted in `lost`.
    """
    passed = {request.trace: request for request in traces.requests}
    hops: dict[tuple[str, int, int], dict[int, tuple[str, HopTrace]]] = {}
    for agent in traces.agents:
        for hop in agent.hops:
            # The last one counts: a request that was sent again passed here twice.
            hops.setdefault((hop.trace, hop.epoch, hop.request), {})[hop.hop] = (agent.device, hop)
    clocks = {**clocks, DISPATCHER: OURS}
    stories = []
    for client in seen:
        request = passed.get(client.trace)
        steps = hops.get((client.trace, request.epoch, request.request), {}) if request else {}
        if request is not None and request.returned_ns and _whole(steps, request.hops, clocks):
            stories.append((client, request, [steps[number] for number in sorted(steps)]))
    zero = min((clocks[CLIENT].ours(client.begun_ns) for client, _, _ in stories), default=0)
    told = [_tell(number, *story, clocks, zero) for number, story in enumerate(stories)]
    devices = dict.fromkeys(device for _, _, steps in stories for device, _ in steps)
    places = (CLIENT, DISPATCHER, *devices)
    errors = {place: clocks[place].error_ns / 1e9 for place in places if place in clocks}
    return Timeline(model, places, tuple(told), errors, len(seen) - len(told))


def _whole(steps: Mapping[int, tuple[str, HopTrace]], hops: int, clocks: Mapping[str, Clock]) -> bool:
    """Whether every hop is there, each with a clock."""
    return sorted(steps) == list(range(max(1, hops))) and all(
        device in clocks for device, _ in steps.values()
    )


class _Teller:
    """Adds spans one after the other, each from where the one before ended."""

    def __init__(self, request: int, clocks: Mapping[str, Clock], zero_ns: int) -> None:
        self.spans: list[Span] = []
        self._request = request
        self._clocks = clocks
        self._zero = zero_ns
        self._where = ""
        self._at = 0.0

    def seconds(self, place: str, ns: int) -> float:
        return (self._clocks[place].ours(ns) - self._zero) / 1e9

    def start(self, place: str, ns: int) -> None:
        self._where, self._at = place, self.seconds(place, ns)

    def add(self, kind: Kind, ns: int, hop: int = -1, detail: str = "") -> None:
        """Something at this place that ended at `ns` of its clock."""
        end = self.seconds(self._where, ns)
        if end > self._at or kind != "wait":
            self.spans.append(Span(kind, self._where, self._request, self._at, end, hop=hop, detail=detail))
            self._at = end

    def move(self, place: str, ns: int, hop: int, nbytes: int = 0) -> None:
        """A transfer to another place, where it arrived at `ns` of that place's clock."""
        end = self.seconds(place, ns)
        error = (self._clocks[self._where].error_ns + self._clocks[place].error_ns) / 1e9
        self.spans.append(
            Span("transfer", self._where, self._request, self._at, end, place, hop, error, nbytes)
        )
        self._where, self._at = place, end


def _tell(
    number: int,
    client: ClientTrace,
    request: api.RequestTrace,
    steps: Sequence[tuple[str, HopTrace]],
    clocks: Mapping[str, Clock],
    zero_ns: int,
) -> tuple[Span, ...]:
    tell = _Teller(number, clocks, zero_ns)
    tell.start(CLIENT, client.begun_ns)
    tell.add("encode", client.sent_ns)
    first, last = steps[0][1], steps[-1][1]
    tell.move(DISPATCHER, request.arrived_ns, -1, first.bytes_in)
    tell.add("wait", request.sent_ns, detail="for credit of the first stage")
    for device, hop in steps:
        tell.move(device, hop.arrived_ns, hop.hop, hop.bytes_in)
        before = "in the queue"
        marks: tuple[tuple[Kind, tuple[int, int]], ...] = (
            ("decode", hop.decode),
            ("run", hop.run),
            ("encode", hop.encode),
        )
        for kind, (begun, ended) in marks:
            if ended:
                tell.add("wait", begun, hop.hop, detail=before)
                together = f"in a batch of {hop.batch}" if kind == "run" and hop.batch > 1 else ""
                tell.add(kind, ended, hop.hop, detail=together)
                before = "for the sending thread" if kind == "run" else before
        tell.add("wait", hop.sent_ns, hop.hop, detail="to be sent")
    tell.move(DISPATCHER, request.returned_ns, -1, last.bytes_out)
    tell.add("wait", request.answered_ns or request.returned_ns, detail="in the dispatcher")
    tell.move(CLIENT, client.ended_ns, -1, last.bytes_out)
    return tuple(tell.spans)
