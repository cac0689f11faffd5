"""One schedule of many hours: every promise is kept throughout, and no table of the product's cores grows.

What the product holds is found by walking: from the dispatcher's shell and cores, each agent's core and data path, and
the clients' sessions through every attribute, to every dict, list, set and queue, however deep. Their sizes are added up
by path, again and again while the hours pass.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.simulation.client import Client
from benchmarks.simulation.schedule import Ended, Schedule
from defer.dispatcher import events as e
from defer.dispatcher import links

HOUR_S = 3600.0
REQUESTS_PER_HOUR, FAULTS_PER_HOUR = 600, 60

LOOKS = 48
"""How often sizes are taken, in all."""

BEFORE, AFTER = (0.25, 0.5), 0.875
"""Parts of the time: what tables hold in the second quarter, when they are full, is compared with the last eighth."""

SLACK = 8
"""What a table may hold more at the end than it ever did before."""

SHARE = 0.25
"""Or, of a larger one, this part."""

POOLS = ("lender._free",)
"""What every connection has a thousand of from its start: one connection more at the end is no growth."""

PEERS = 16
"""Connections that the dispatcher remembers in place of a thousand."""

LIMITS = e.Limits(requests=64, nbytes=1 << 20, answers=64, spent=256, longest_s=30.0)
"""Such that the tables of what was answered are full within the first hours."""

_PRODUCT = ("node_agent.", "defer.")
_CONTAINERS = (dict, list, set, frozenset, deque, tuple)
_DEEP = 12


class Day(Schedule):
    """A schedule of hours whose clients are replaced when they die, and whose tables are measured.

    Args:
        seed: Decides everything.
        hours: How long things happen.
    """

    def __init__(self, seed: int, hours: float) -> None:
        super().__init__(
            seed,
            busy_s=hours * HOUR_S,
            requests=int(hours * REQUESTS_PER_HOUR),
            faults=int(hours * FAULTS_PER_HOUR),
            limits=LIMITS,
        )
        self.looks: list[Counter[str]] = []
        for number in range(LOOKS):
            self.world.after(self.busy_s * (number + 1) / LOOKS, self._measure)

    def play(self) -> Ended:
        """See `Schedule.play`."""
        usual, links.PEERS = links.PEERS, PEERS
        try:
            ended = super().play()
        finally:
            links.PEERS = usual
        if not self.world.problems:
            for what in grown(self.looks):
                self.world.broken(what)
        return ended

    def _measure(self) -> None:
        self.looks.append(self.sizes())
        # What has ended is looked at when all is over; a history of a day would be most of what is held.
        self.world.history.clear()

    def sizes(self) -> Counter[str]:
        """How much every table of the product holds, by path."""
        found: Counter[str] = Counter()
        shell, agents = self.dispatcher.shell, self.dispatcher.agents
        walk("dispatcher", shell, found)
        walk("dispatcher agents", agents, found)
        for agent in self.agents.values():
            if agent.process.alive:
                walk("agent core", agent.core, found)
                walk("agent plane", agent.plane, found)
        for client in self.clients:
            if client.process.alive:
                walk("client", client.session, found)
        return found

    def _do_client(self, kind: str) -> None:
        super()._do_client(kind)
        for number, client in enumerate(self.clients):
            if not client.process.alive:
                self.clients[number] = fresh = Client(client.name)
                fresh.asked = client.asked


def walk(path: str, value: Any, found: Counter[str], seen: set[int] | None = None, deep: int = 0) -> None:
    """Add the sizes of all tables that are reached from a value.

    Args:
        path: How the value was reached.
        value: Where to begin.
        found: Sizes by path.
        seen: Identities of what has been walked.
        deep: How far the beginning is.
    """
    seen = set() if seen is None else seen
    if deep > _DEEP or id(value) in seen:
        return
    if isinstance(value, _CONTAINERS):
        seen.add(id(value))
        found[path] += len(value)
        inside = [*value.values()] if isinstance(value, Mapping) else [*value]
        for each in inside:
            if not isinstance(each, int | float | str | bytes | None):
                walk(f"{path}[]", each, found, seen, deep + 1)
        return
    if type(value).__module__.startswith(_PRODUCT):
        seen.add(id(value))
        for name, each in _attributes(value):
            walk(f"{path}.{name}", each, found, seen, deep + 1)


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    yield from list(getattr(value, "__dict__", {}).items())
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                yield name, getattr(value, name)


def grown(looks: list[Counter[str]]) -> list[str]:
    """What holds more at the end, each time that somebody looked, than it ever did before.

    Args:
        looks: Sizes by path, in order of time.
    """
    count = len(looks)
    first, last = int(BEFORE[0] * count), int(BEFORE[1] * count)
    told = []
    for path in sorted({path for look in looks for path in look}):
        before = max((look[path] for look in looks[first:last]), default=0)
        # The least: what is held for a moment only is no growth.
        after = min((look[path] for look in looks[int(AFTER * count) :]), default=0)
        if after > before + max(SLACK, SHARE * before) and not path.endswith(POOLS):
            told.append(f"{path} holds {after}, at most {before} before")
    return told
