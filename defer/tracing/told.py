"""What the dispatcher and the agents noted of one traced request, as a tree of spans. Pure.

defer.request                     dispatcher: from its arrival to its answer
├── wait                          for credit of the first stage
├── transfer dispatcher → a
├── stage 0                       device a: from its arrival to its hand-over
│   ├── wait  decode  wait  run  wait  encode  wait
├── transfer a → b
├── stage 1 …
├── transfer b → dispatcher
└── wait                          in the dispatcher
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from defer import api
from defer.tracing.clocks import Clock
from defer.tracing.timeline import DISPATCHER
from node_agent.messages import HopTrace

Values = Mapping[str, str | int | float]


@dataclass(frozen=True, slots=True)
class Told:
    """A span.

    Attributes:
        name: What it was.
        where: `dispatcher` or a device.
        kind: `server` for what a process did for a request in all, `internal` for a part of it.
        begun_ns: On the dispatcher's clock.
        ended_ns: Likewise; not before `begun_ns`.
        parent: Index of the span that it is part of; -1 for the first, whose parent is the client's.
        values: What else is known.
        failed: Code of the error that ended it; empty for none.
    """

    name: str
    where: str
    kind: Literal["server", "internal"]
    begun_ns: int
    ended_ns: int
    parent: int
    values: Values = field(default_factory=dict)
    failed: str = ""


def tell(
    request: api.RequestTrace, hops: Sequence[tuple[str, HopTrace]], clocks: Mapping[str, Clock], model: str
) -> tuple[Told, ...]:
    """The spans of one request that has returned.

    Args:
        request: The dispatcher's part.
        hops: Each hop with its device, in any order, of any attempt: the last one of each hop counts.
        clocks: The agents' as they stand to the dispatcher's; a hop of a device without one is left out.
        model: Its name.
    """
    steps: dict[int, tuple[str, HopTrace]] = {}
    for device, hop in hops:
        if (hop.epoch, hop.request) == (request.epoch, request.request) and device in clocks:
            steps[hop.hop] = (device, hop)
    ended = request.answered_ns or request.returned_ns
    spans = [
        Told(
            "defer.request",
            DISPATCHER,
            "server",
            request.arrived_ns,
            max(request.arrived_ns, ended),
            -1,
            {
                "model": model,
                "epoch": request.epoch,
                "request_number": request.request,
                "hops": request.hops,
            },
        )
    ]

    def add(name: str, where: str, begun: int, end: int, parent: int, **values: str | int | float) -> None:
        spans.append(Told(name, where, "internal", begun, max(begun, end), parent, values))

    add("wait", DISPATCHER, request.arrived_ns, request.sent_ns, 0, reason="for credit of the first stage")
    at, left = DISPATCHER, request.sent_ns
    whole = sorted(steps) == list(range(max(1, request.hops)))
    for number in sorted(steps):
        device, hop = steps[number]
        ours = clocks[device].ours
        arrived, sent = ours(hop.arrived_ns), ours(hop.sent_ns)
        if whole:
            add(f"transfer {at} → {device}", at, left, arrived, 0, bytes=hop.bytes_in)
        at, left = device, sent
        stage = len(spans)
        values: Values = {
            "hop": number,
            "bytes_in": hop.bytes_in,
            "bytes_out": hop.bytes_out,
            "batch": hop.batch,
        }
        spans.append(
            Told(f"stage {number}", device, "server", arrived, max(arrived, sent), 0, values, hop.failed)
        )
        mark = arrived
        for name, (begun, end) in (("decode", hop.decode), ("run", hop.run), ("encode", hop.encode)):
            if end:
                if ours(begun) > mark:
                    add("wait", device, mark, ours(begun), stage, reason=f"for {name}")
                add(name, device, ours(begun), ours(end), stage)
                mark = ours(end)
        if sent > mark:
            add("wait", device, mark, sent, stage, reason="to be sent")
    if whole:
        add(f"transfer {at} → {DISPATCHER}", at, left, request.returned_ns, 0)
    if ended > request.returned_ns:
        add("wait", DISPATCHER, request.returned_ns, ended, 0, reason="in the dispatcher")
    return tuple(spans)
