"""Ways through the network between two devices that a transfer may take."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from router.instance import Floats, Instance, Ints

Path = tuple[int, ...]  # indices of links, in order


@dataclass(slots=True)
class SimplePaths:
    """All simple paths from one device to every other, fewest hops first, at most `cap` per source.

    Attributes:
        truncated: whether the cap has hidden a path.
    """

    instance: Instance
    cap: int
    truncated: bool = False
    _cache: dict[int, dict[int, list[Path]]] = field(default_factory=dict)
    _out: list[list[tuple[int, int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._out = [[] for _ in range(self.instance.n)]
        for edge, (a, b) in enumerate(zip(self.instance.src, self.instance.dst, strict=True)):
            self._out[int(a)].append((edge, int(b)))

    def to_all(self, source: int) -> dict[int, list[Path]]:
        """Target → paths (each at least one link long)."""
        if source in self._cache:
            return self._cache[source]
        found: dict[int, list[Path]] = {}
        queue: deque[tuple[int, frozenset[int], Path]] = deque([(source, frozenset([source]), ())])
        count = 0
        while queue:
            at, seen, path = queue.popleft()
            for edge, then in self._out[at]:
                if then in seen:
                    continue
                if count >= self.cap:
                    self.truncated = True
                    break
                count += 1
                longer = (*path, edge)
                found.setdefault(then, []).append(longer)
                queue.append((then, seen | {then}, longer))
        self._cache[source] = found
        return found

    def between(self, source: int, target: int) -> list[Path]:
        """Simple paths between two devices."""
        return self.to_all(source).get(target, [])


@dataclass(slots=True)
class ShortestPaths:
    """One cheapest path from one device to every other under one cost per link."""

    instance: Instance
    cost: Floats
    source: int
    _distance: Floats = field(init=False)
    _before: Ints = field(init=False)

    def __post_init__(self) -> None:
        n = self.instance.n
        # csgraph may take a stored zero for a missing edge; the smallest float is an edge and costs nothing.
        weight = np.maximum(self.cost, np.finfo(float).tiny)
        graph = csr_array((weight, (self.instance.src, self.instance.dst)), shape=(n, n))
        distance, before = dijkstra(graph, indices=[self.source], return_predecessors=True)
        self._distance, self._before = distance[0], before[0].astype(np.int64)

    def between(self, source: int, target: int) -> list[Path]:
        """The cheapest path, or nothing; `source` must be the one given."""
        if source != self.source or source == target or not np.isfinite(self._distance[target]):
            return []
        path: list[int] = []
        at = target
        while at != source:
            before = int(self._before[at])
            path.append(self.instance.edge[before, at])
            at = before
        return [tuple(reversed(path))]


def load_of(instance: Instance, path: Path, wire: float, load: Floats) -> None:
    """Add to `load` the busy seconds, per free share, of sending `wire` bytes along a path."""
    n, m = instance.n, len(instance.src)
    for edge in path:
        airtime = wire * instance.seconds_per_byte[edge]
        load[n + edge] += airtime / instance.free[n + edge]
        if (shared := int(instance.medium[edge])) >= 0:
            load[n + m + shared] += airtime / instance.free[n + m + shared]
        for end, device in ((0, instance.src[edge]), (1, instance.dst[edge])):
            load[device] += wire * instance.crypt[edge, end] / instance.free[device]
