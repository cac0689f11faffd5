"""Shortest paths on the layered graph, one layer at a time, never vertex by vertex.

The layered graph has, per boundary i, a *compute* copy of every device and one *transit* copy per codec. Its
transfer edges are the same links in every layer and its compute edges only lead onwards, so the cost to go
from boundary i follows from that of i + 1 by array operations: one relaxation over the links per codec, one
addition per device. Time O(L · K · rounds · m) with m links; `rounds` is the largest number of hops that
pays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from router.additive import Additive
from router.instance import Floats, Instance, Ints
from router.route import Route, Stage, Transfer

_ROUNDS_BEFORE_DIJKSTRA = 48


@dataclass(frozen=True, slots=True, eq=False)
class Potentials:
    """Least cost to go to (sink, L).

    Attributes:
        closed: (L+1, n) from a device that holds the decoded boundary but runs no stage.
        running: (L+1, n) from a device whose stage has just computed the block before the boundary.
        transit: (L+1, K, n) from a device that holds the boundary encoded.
        start: from the source with the inputs.
    """

    closed: Floats
    running: Floats
    transit: Floats
    start: float


class Network:
    """The links, grouped by sender, for cost-to-go relaxations."""

    def __init__(self, instance: Instance) -> None:
        self.order: Ints = np.argsort(instance.src, kind="stable").astype(np.int64)
        self.dst: Ints = instance.dst[self.order]
        self.src: Ints = instance.src[self.order]
        self.n = instance.n
        # Where senders have about equally many links, one row per n-th link of every device lets numpy take the
        # minimum row by row, three times as fast as over runs of unequal length.
        degree = np.bincount(self.src, minlength=self.n)
        self.rows = int(degree.max(initial=0)) if self.rows_pay(degree) else 0
        start = np.concatenate([[0], np.cumsum(degree)])
        self.slot: Ints = (np.arange(len(self.src)) - start[self.src]) * self.n + self.src
        self.target: Ints = np.zeros(self.rows * self.n, np.int64)
        if self.rows:
            self.target[self.slot] = self.dst
        self.senders, first = np.unique(self.src, return_index=True)
        self.first: Ints = first.astype(np.int64)

    @staticmethod
    def rows_pay(degree: Ints) -> bool:
        """Whether padding every device to the largest number of links wastes little."""
        return bool(degree.max(initial=0) * len(degree) <= 2 * degree.sum())

    def to_go(self, leave: Floats, link_cost: Floats) -> Floats:
        """Least cost over any number of hops, then leaving at the last device.

        Args:
            leave: (K, n) cost of leaving transit at each device, inf where that is impossible.
            link_cost: (K, m) cost of each link, in the instance's order.

        Returns:
            (K, n) least cost from each device.
        """
        if not len(self.order):
            return leave
        return np.stack(
            [self._relax(row, cost.take(self.order)) for row, cost in zip(leave, link_cost, strict=True)]
        )

    def _relax(self, leave: Floats, weight: Floats) -> Floats:
        """Rounds of relaxation over all links at once, until none changes."""
        best = leave.copy()
        if self.rows:
            padded = np.full(len(self.target), np.inf)
            padded[self.slot] = weight
            through, reached = np.empty(len(padded)), np.empty(self.n)
            for _ in range(_ROUNDS_BEFORE_DIJKSTRA):
                np.take(best, self.target, out=through, mode="clip")
                through += padded
                through.reshape(self.rows, self.n).min(axis=0, out=reached)
                if not (reached < best).any():
                    return best
                np.minimum(best, reached, out=best)
            return self._dijkstra(leave, weight)
        for _ in range(_ROUNDS_BEFORE_DIJKSTRA):
            reached = np.minimum.reduceat(best[self.dst] + weight, self.first)
            now = best[self.senders]
            if not (reached < now).any():
                return best
            best[self.senders] = np.minimum(now, reached)
        return self._dijkstra(leave, weight)

    def _dijkstra(self, leave: Floats, weight: Floats) -> Floats:
        """The same by a compiled Dijkstra from a virtual root, for networks of large diameter."""
        at = np.flatnonzero(np.isfinite(leave))
        if not at.size:
            return leave
        # A stored zero is an edge for csgraph only in explicit sparse input; the smallest float keeps it one.
        tiny = np.finfo(float).tiny
        rows = np.concatenate([self.dst, np.full(len(at), self.n)])
        columns = np.concatenate([self.src, at])
        values = np.maximum(np.concatenate([weight, leave[at]]), tiny)
        graph = csr_array((values, (rows, columns)), shape=(self.n + 1, self.n + 1))
        result: Floats = dijkstra(graph, indices=[self.n])[0, : self.n]
        return np.where(result <= tiny * self.n, 0.0, result)


def potentials(instance: Instance, cost: Additive, network: Network | None = None) -> Potentials:
    """Least cost to go from every vertex of the layered graph."""
    network = network or Network(instance)
    n, blocks, codecs = instance.n, instance.blocks, instance.codecs
    closed = np.full((blocks + 1, n), np.inf)
    running = np.full((blocks + 1, n), np.inf)
    transit = np.empty((blocks + 1, codecs, n))
    closed[blocks, instance.sink] = 0.0
    for i in range(blocks, -1, -1):
        if i < blocks:
            onward = cost.block[:, i] + running[i + 1]
            closed[i] = cost.start + onward
            running[i] = onward
        else:
            running[i] = closed[i]
        transit[i] = network.to_go(cost.decode[:, :, i] + closed[i], cost.hops(instance.wire[:, i]))
        np.minimum(running[i], (cost.encode[:, :, i] + transit[i]).min(axis=0), out=running[i])
    at = instance.source
    start = min(float(closed[0, at]), float((cost.encode[:, at, 0] + transit[0, :, at]).min()))
    return Potentials(closed, running, transit, start)


class _Trace:
    """Follows edges whose cost equals the difference of potentials."""

    def __init__(self, instance: Instance, cost: Additive, network: Network, table: Potentials) -> None:
        self.instance, self.cost, self.network, self.table = instance, cost, network, table

    def transfer(self, device: int, boundary: int) -> Transfer:
        """Best way of leaving `device` at `boundary` through transit."""
        instance, cost, table = self.instance, self.cost, self.table
        codec = int(np.argmin(cost.encode[:, device, boundary] + table.transit[boundary, :, device]))
        to_go = table.transit[boundary, codec]
        leave = cost.decode[codec, :, boundary] + table.closed[boundary]
        weight = cost.hops(instance.wire[codec, boundary])[self.network.order]
        # Hops of cost zero can form cycles among tight edges, so walk breadth first rather than greedily.
        # Costs to go of the two relaxations differ by rounding, hence the tolerance.
        came: dict[int, int] = {device: -1}
        queue = [device]
        for at in queue:
            if at != device and leave[at] <= to_go[at] * (1 + 1e-12):
                path = [at]
                while came[path[-1]] >= 0:
                    path.append(came[path[-1]])
                names = tuple(instance.names[each] for each in reversed(path))
                return Transfer(boundary, names, instance.problem.codecs[codec].name)
            low, high = np.searchsorted(self.network.src, [at, at + 1])
            for edge in range(int(low), int(high)):
                then = int(self.network.dst[edge])
                if then not in came and weight[edge] + to_go[then] <= to_go[at] * (1 + 1e-12):
                    came[then] = at
                    queue.append(then)
        raise AssertionError("a finite potential has a tight path")


def trace(instance: Instance, cost: Additive, network: Network, table: Potentials) -> Route:
    """The shortest route that belongs to finite potentials."""
    follow = _Trace(instance, cost, network, table)
    names, blocks = instance.names, instance.blocks
    at, boundary = instance.source, 0
    stages: list[Stage] = []
    transfers: list[Transfer] = []
    through = float((cost.encode[:, at, 0] + table.transit[0, :, at]).min())
    if table.closed[0, at] <= through:
        transfers.append(Transfer(0, (names[at],)))
    else:
        transfers.append(follow.transfer(at, 0))
        at = instance.index[transfers[-1].path[-1]]
    while boundary < blocks:
        begin = boundary
        boundary += 1
        while boundary < blocks:
            onward = cost.block[at, boundary] + table.running[boundary + 1, at]
            if table.running[boundary, at] < onward:
                break
            boundary += 1
        stages.append(Stage(names[at], begin, boundary))
        if boundary == blocks and at == instance.sink:
            transfers.append(Transfer(blocks, (names[at],)))
        else:
            transfers.append(follow.transfer(at, boundary))
            at = instance.index[transfers[-1].path[-1]]
    return Route(tuple(stages), tuple(transfers))


def shortest(instance: Instance, cost: Additive) -> tuple[float, Route | None]:
    """Least cost of any route, memory and stage limits aside, and a route that has it (None: no route)."""
    network = Network(instance)
    table = potentials(instance, cost, network)
    if not np.isfinite(table.start):
        return float("inf"), None
    return table.start, trace(instance, cost, network, table)
