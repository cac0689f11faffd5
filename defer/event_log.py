"""What happened in a dispatcher, newest last: a bounded log with numbers, so that a reader knows what it has missed.

Safe to use from any thread. Times are given by the clock that the owner passes in.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from node_agent.json_log import one_line

SIZE: Final = 1024
"""Events kept; older ones are forgotten."""

SELDOM_S: Final = 5.0
"""Events that anybody can provoke are noted this often at most, with how many they were."""

SUBJECTS: Final = 64
"""Kinds of provoked events that are counted apart at most."""

Level = Literal["info", "warning", "error"]


class EventInfo(msgspec.Struct, frozen=True):
    """Something that happened.

    Attributes:
        seq: Its number; each is one more than the one before, and none is used twice by one process.
        at: Seconds since 1970, UTC, by the dispatcher's clock.
        kind: What, as `agent-lost`; docs/operations.md lists them.
        text: One sentence for people.
        level: `info`, `warning` (something works less well), `error` (something does not work).
        device: The device that it is about, if any.
        model: The model that it is about, if any.
        epoch: The deployment that it is about; 0 for none.
        count: How many times, where several were put together.
    """

    seq: int
    at: float
    kind: str
    text: str
    level: Level = "info"
    device: str = ""
    model: str = ""
    epoch: int = 0
    count: int = 1


@dataclass(slots=True)
class _Untold:
    """Events of one subject that happened since the last one that was noted."""

    due: float
    count: int = 0
    event: EventInfo | None = None


class EventLog:
    """The last events.

    Args:
        clock: Seconds since 1970.
        size: How many are kept.
    """

    def __init__(self, clock: Callable[[], float], size: int = SIZE) -> None:
        self._clock = clock
        self._events: deque[EventInfo] = deque(maxlen=size)
        self._untold: dict[tuple[str, str], _Untold] = {}
        self._next = 1
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def note(
        self,
        kind: str,
        text: str,
        *,
        level: Level = "info",
        device: str = "",
        model: str = "",
        epoch: int = 0,
    ) -> None:
        """Note that something happened now; see `EventInfo`."""
        with self._lock:
            self._append(EventInfo(0, self._clock(), kind, text, level, device, model, epoch))

    def note_seldom(
        self, kind: str, subject: str, text: str, *, level: Level = "warning", model: str = ""
    ) -> None:
        """Note what may happen thousands of times a second: once per `SELDOM_S` and subject, with a count.

        Args:
            kind: What.
            subject: Events of a kind with the same subject are put together.
            text: The last one's sentence is the one that is kept.
            level: How bad.
            model: Which model.
        """
        now = self._clock()
        with self._lock:
            key = (kind, subject)
            untold = self._untold.get(key)
            if untold is None:
                if len(self._untold) >= SUBJECTS:
                    key = (kind, "")
                untold = self._untold.setdefault(key, _Untold(now))
            untold.count += 1
            untold.event = EventInfo(0, now, kind, text, level, model=model)
            self._tell_due(now)

    def since(self, seq: int, limit: int = SIZE) -> tuple[EventInfo, ...]:
        """Events with numbers above `seq`, the oldest first; the newest `limit` of them."""
        with self._lock:
            self._tell_due(self._clock())
            found = [event for event in self._events if event.seq > seq]
        return tuple(found[-limit:] if limit else ())

    @property
    def last(self) -> int:
        """Number of the newest event; 0 before the first."""
        with self._lock:
            return self._next - 1

    @property
    def counts(self) -> dict[str, int]:
        """How many events of each kind there have been, those that are no longer kept among them."""
        with self._lock:
            return dict(self._counts)

    def _append(self, event: EventInfo) -> None:
        self._counts[event.kind] += event.count
        # What clients and agents send may be quoted here, and must not look like a line of its own in a terminal.
        self._events.append(msgspec.structs.replace(event, seq=self._next, text=one_line(event.text)))
        self._next += 1

    def _tell_due(self, now: float) -> None:
        for untold in self._untold.values():
            if untold.event is not None and now >= untold.due:
                self._append(msgspec.structs.replace(untold.event, count=untold.count))
                untold.due, untold.count, untold.event = now + SELDOM_S, 0, None
