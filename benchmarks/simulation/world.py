"""The virtual clock, the one scheduler, and the processes that live on it."""

from __future__ import annotations

import heapq
import random
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

BEGIN_S = 1000.0
"""Where the clock starts; not 0, which some code takes for `never`."""

Action = Callable[..., None]


@dataclass(slots=True)
class World:
    """Everything that happens, in order of virtual time; of equal times in the order in which it was planned.

    Attributes:
        seed: Of every random choice.
        now: Seconds.
        history: What happened: (time, who, what).
        problems: Promises that were broken, one sentence each.
    """

    seed: int
    now: float = BEGIN_S
    history: list[tuple[float, str, tuple[Any, ...]]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    random: random.Random = field(init=False)
    _events: list[tuple[float, int, Action, tuple[Any, ...]]] = field(default_factory=list)
    _planned: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def at(self, when: float, action: Action, *arguments: Any) -> None:
        """Plan `action(*arguments)`."""
        self._planned += 1
        heapq.heappush(self._events, (when, self._planned, action, arguments))

    def after(self, delay: float, action: Action, *arguments: Any) -> None:
        """Plan `action(*arguments)` in `delay` seconds."""
        self._planned += 1
        heapq.heappush(self._events, (self.now + delay, self._planned, action, arguments))

    def note(self, who: str, *what: Any) -> None:
        """Write into the history."""
        self.history.append((self.now, who, what))

    def broken(self, what: str) -> None:
        """A promise was broken."""
        self.problems.append(f"{self.now - BEGIN_S:.4f} s: {what}")
        self.note("!", what)

    def run(self, until: float) -> None:
        """Let everything happen that is planned up to `until`, or until a promise is broken."""
        events = self._events
        while events and events[0][0] <= until and not self.problems:
            self.now, _, action, arguments = heapq.heappop(events)
            try:
                action(*arguments)
            except Exception:
                self.broken(f"an exception ended a thread: {traceback.format_exc()}")
        self.now = max(self.now, until)

    @property
    def handled(self) -> int:
        """Events planned so far."""
        return self._planned


class Process:
    """What dies as one, and is stopped as one.

    Args:
        world: Where it lives.
        name: Also the host that it is reached at.
    """

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self.paused = False
        self._parked: list[tuple[Action, tuple[Any, ...]]] = []

    def soon(self, action: Action, *arguments: Any) -> None:
        """Do something when the operating system gives this process the processor."""
        world = self.world
        world.after(world.random.random() * 0.0004, self._do, action, arguments)

    def after(self, delay: float, action: Action, *arguments: Any) -> None:
        """Do something in `delay` seconds, if the process still lives and is not stopped."""
        self.world.after(delay, self._do, action, arguments)

    def _do(self, action: Action, arguments: tuple[Any, ...]) -> None:
        if self.paused:
            self._parked.append((action, arguments))
        elif self.alive:
            action(*arguments)

    def pause(self) -> None:
        """SIGSTOP: nothing is done, and nothing forgotten."""
        self.paused = True

    def resume(self) -> None:
        """SIGCONT."""
        self.paused = False
        parked, self._parked = self._parked, []
        for action, arguments in parked:
            self.soon(action, *arguments)
