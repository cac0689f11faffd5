"""Items that were handed to their device and not taken back yet, in the order in which they were handed over.

A session with `submit` and `collect` can hold several: while one is computed, the next is copied to the device and the
one before is copied back. For the run thread alone.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from node_agent.engines.base import OverlappingSession
from node_agent.work import Work


@dataclass(slots=True, eq=False)
class Flight:
    """One item that its device has.

    Attributes:
        work: The item.
        session: What runs it.
        begun_ns: Monotonic time when it was handed over.
        alone: Whether the device had no other then, so that its time is that of a run.
        error: Why it was not handed over after all; it waits here all the same, so that it leaves in order.
        device_ns: Time in which it was the oldest; 0 before it has landed.
    """

    work: Work
    session: OverlappingSession
    begun_ns: int
    alone: bool
    error: Exception | None = None
    device_ns: int = 0


class InFlight:
    """See the module. As many items per session as it has slots, and every session's in one order."""

    def __init__(self) -> None:
        self._flights: deque[Flight] = deque()
        self._landed_ns = 0

    def __len__(self) -> int:
        return len(self._flights)

    def full(self, session: OverlappingSession) -> bool:
        """Whether every slot of a session is taken."""
        return sum(flight.session is session for flight in self._flights) >= session.slots

    def launch(self, work: Work, session: OverlappingSession, now_ns: int) -> None:
        """Hands an item to its device; one that has failed already, or fails here, only keeps its place."""
        flight = Flight(work, session, now_ns, alone=not self._flights)
        if work.failure is None:
            assert work.inputs is not None
            try:
                session.submit(work.inputs)
            except Exception as error:
                flight.error = error
            work.inputs = None
        self._flights.append(flight)

    def land(self) -> Flight:
        """Waits for the oldest item; its outputs are in it, or its error beside it."""
        flight = self._flights.popleft()
        if flight.work.failure is None and flight.error is None:
            try:
                flight.work.outputs = flight.session.collect()
            except Exception as error:
                flight.error = error
        return flight

    def landed(self, flight: Flight, now_ns: int) -> None:
        """Notes when `land` returned: until the one before had landed, the device was not this item's."""
        flight.device_ns = now_ns - max(flight.begun_ns, self._landed_ns)
        self._landed_ns = now_ns
