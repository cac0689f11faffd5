"""Where a traced request's time went in this agent: noted while it passes, kept in a ring, fetched afterwards.

A request that is not traced pays for one look at an empty string. Nothing is added to what travels: whoever traces
asks each agent for its part when the requests are done (`TraceRequest`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from node_agent.messages import HopTrace, Item

if TYPE_CHECKING:
    from node_agent.work import Work

KEPT = 8192
"""Traced items that an agent remembers; the oldest are forgotten first."""

NEVER = (0, 0)


@dataclass(slots=True, eq=False)
class Marks:
    """Begin and end of what was done to one item, ns on the monotonic clock; `NEVER` for what was not."""

    decode: tuple[int, int] = NEVER
    run: tuple[int, int] = NEVER
    encode: tuple[int, int] = NEVER
    batch: int = 1


class TraceRing:
    """The latest traced items of this agent.

    One thread notes, any other may look.

    Args:
        kept: How many at most.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._ring: deque[HopTrace] = deque(maxlen=kept)

    def note(self, work: Work, bytes_out: int, sent_ns: int) -> None:
        """Remembers an item with marks that was handed to ZeroMQ at `sent_ns`, as a result or as a failure."""
        item, marks = work.item, work.marks
        assert isinstance(item, Item)
        assert marks is not None
        failed = work.failure.code if work.failure is not None else ""
        self._ring.append(
            HopTrace(
                item.trace,
                item.epoch,
                item.request,
                item.hop,
                work.arrived_ns,
                sent_ns,
                marks.decode,
                marks.run,
                marks.encode,
                work.nbytes,
                bytes_out,
                failed,
                marks.batch,
            )
        )

    def find(self, traces: tuple[str, ...]) -> tuple[HopTrace, ...]:
        """What is remembered of these traces, the oldest first."""
        if not traces:
            return ()
        wanted = frozenset(traces)
        # A copy is taken in one step, so another thread may note meanwhile.
        return tuple(hop for hop in self._ring.copy() if hop.trace in wanted)
