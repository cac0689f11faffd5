"""Best pipeline of convex stages on a graph of ops, by dynamic programming over ideals.

The load of a stage is its seconds on the kind of device plus what enters and leaves it, each tensor once (factor
`transfer` of the kind). Exact when every ideal is looked at; when there are too many, a seeded choice of them gives
a plan, and the work that must be done anyway gives a lower bound.

Method after Tarnawski et al., "Efficient Algorithms for Device Placement of DNN Graph Operators", NeurIPS 2020,
with several kinds of devices, and pruned by the best plan along a few topological orders.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from router.aside import negligible, put_back, without
from router.errors import NoRoute
from router.ideals import all_ideals, orders, prefixes, some_ideals
from router.instance import Floats
from router.opgraph import Condensed, DeviceKind, OpGraph, condense

IDEALS = 150_000
_TOLERANCE = 1 + 1e-12
_ROUNDING = 1 + 1e-9  # of sums that only prune

Bools = NDArray[np.bool_]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class GraphStage:
    """Ops that one device of a kind runs, and its load in seconds."""

    kind: str
    ops: tuple[int, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class GraphPlan:
    """Stages in order of execution.

    Attributes:
        value: largest load. bound: no plan has a smaller one. optimal: the two meet.
        ideals: how many were looked at.
    """

    stages: tuple[GraphStage, ...]
    value: float
    bound: float
    optimal: bool
    ideals: int

    @property
    def order(self) -> tuple[int, ...]:
        """All ops, stage after stage; every stage is contiguous in it."""
        return tuple(op for stage in self.stages for op in stage.ops)


def _sums(member: Bools, rows: Floats) -> Floats:
    """(r, N) sums of each of r rows over the members of each of N ideals, in pieces that keep memory small."""
    result = np.empty((len(rows), len(member)))
    for at in range(0, len(member), 8192):
        result[:, at : at + 8192] = rows @ member[at : at + 8192].T.astype(float)
    return result


class _Table:
    """Ideals as arrays, sorted so that every subset comes before its supersets."""

    def __init__(self, graph: Condensed, masks: Sequence[int], fastest: Floats) -> None:
        n = len(graph.members)
        words = max(1, (n + 63) // 64)
        raw = b"".join(mask.to_bytes(words * 8, "little") for mask in masks)
        bits = np.frombuffer(raw, np.uint64).reshape(len(masks), words)
        member = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little")[:, :n].astype(bool)
        # Whole multiples of a small unit add up without rounding, so no superset ever sorts before its subset.
        unit = max(float(fastest.sum()), 1e-300) / 2**44
        units = np.floor(fastest / unit)
        work = _sums(member, units[None])[0]
        order = np.lexsort((member.sum(axis=1), work))
        self.bits, member, self.work = bits[order], member[order], work[order] * unit
        self.count = len(masks)
        self.size = _sums(member, graph.size[None])[0]
        cannot = np.isinf(graph.seconds)
        self.seconds = _sums(member, np.where(cannot, 0.0, graph.seconds))  # (kinds, N)
        self.cannot = _sums(member, cannot.astype(float))
        readers = np.zeros((len(graph.cost), n), np.float32)
        for row, mask in enumerate(graph.readers):
            for node in range(n):
                readers[row, node] = mask >> node & 1
        self.total = readers.sum(axis=1).astype(np.uint16)
        self.made = member.T[list(graph.producer)] if len(graph.cost) else np.zeros((0, self.count), bool)
        self.read = np.empty((len(graph.cost), self.count), np.uint16)
        for row in range(len(graph.cost)):
            self.read[row] = member[:, readers[row] > 0].sum(axis=1)
        self.cost = graph.cost
        open_at = self.made & (self.read < self.total[:, None])
        self.open_at = np.ascontiguousarray(open_at.T)
        self.frontier = _sums(self.open_at, graph.cost[None])[0]

    def supersets(self, at: int, stop: int) -> Indices:
        """Indices in (at, stop) of ideals that contain ideal `at`."""
        inside = np.ones(stop - at - 1, bool)
        for word in range(self.bits.shape[1]):
            own = self.bits[at, word]
            if own:
                inside &= (self.bits[at + 1 : stop, word] & own) == own
        return np.flatnonzero(inside) + at + 1

    def traffic(self, at: int, chosen: Indices) -> Floats:
        """Seconds of what enters and leaves the stages `chosen - at`."""
        moved: Floats = self.frontier[chosen].copy()
        for row in np.flatnonzero(self.open_at[at]):
            read = self.read[row, chosen]
            # What was open before the stage: it enters if the stage reads it, and it is not the stage's to send on.
            entered, remains = read > self.read[row, at], read < self.total[row]
            moved += float(self.cost[row]) * (entered.astype(float) - remains)
        return moved


class _Program:
    """F[p, I] = least largest load of covering ideal I with the devices that p counts."""

    def __init__(self, graph: Condensed, kinds: Sequence[DeviceKind]) -> None:
        self.graph, self.kinds = graph, kinds
        self.fastest = graph.seconds.min(axis=0)
        self.shape = tuple(kind.count + 1 for kind in kinds)
        self.places = math.prod(self.shape)
        self.strides = [math.prod(self.shape[d + 1 :]) for d in range(len(kinds))]
        some = self.fastest > 0
        slower = graph.seconds[:, some] / self.fastest[some]
        # At best, a device of a kind does this much of the fastest kind's work per second.
        self.rate = [1 / float(row.min()) if row.size else 1.0 for row in slower]
        self.memory = [math.inf if kind.memory is None else kind.memory for kind in kinds]

    def counts(self, place: int) -> tuple[int, ...]:
        return tuple(place // stride % size for stride, size in zip(self.strides, self.shape, strict=True))

    def floor(self) -> float:
        """Least load that the work alone imposes."""
        power = sum(kind.count * rate for kind, rate in zip(self.kinds, self.rate, strict=True))
        return max(float(self.fastest.sum()) / power, float(self.fastest.max(initial=0.0)))

    def run(self, masks: Sequence[int], ceiling: float) -> tuple[float, list[tuple[int, int]]]:
        """Best value below `ceiling` and its stages (kind, mask of nodes), or (ceiling, [])."""
        table = _Table(self.graph, masks, self.fastest)
        count, last = table.count, table.count - 1
        value = np.full((self.places, count), np.inf)
        value[:, 0] = 0.0
        origin = np.full((self.places, count), -1, np.int32)
        by_kind = np.full((self.places, count), -1, np.int8)
        whole = float(table.work[last])
        left = np.array(
            [
                sum(
                    (k.count - used) * r
                    for k, used, r in zip(self.kinds, self.counts(p), self.rate, strict=True)
                )
                for p in range(self.places)
            ]
        )
        used_of = np.array([self.counts(p) for p in range(self.places)])
        best = ceiling
        for at in range(last):
            alive = value[:, at] < best
            if math.isfinite(best):
                alive &= whole - table.work[at] <= left * best * _ROUNDING
            if not alive.any():
                continue
            reach = table.work[at] + best * max(self.rate) * _ROUNDING
            stop = int(np.searchsorted(table.work, reach, "right"))
            chosen = table.supersets(at, stop)
            if not chosen.size:
                continue
            traffic = table.traffic(at, chosen)
            for d, kind in enumerate(self.kinds):
                places = np.flatnonzero(alive & (used_of[:, d] < kind.count))
                if not places.size:
                    continue
                load = table.seconds[d, chosen] - table.seconds[d, at] + kind.transfer * traffic
                good = (load < best) & (table.size[chosen] - table.size[at] <= self.memory[d] * _ROUNDING)
                good &= table.cannot[d, chosen] == table.cannot[d, at]
                into, load = chosen[good], load[good]
                for p in places:
                    then = p + self.strides[d]
                    reached = np.maximum(load, value[p, at])
                    better = reached < value[then, into]
                    where = into[better]
                    value[then, where] = reached[better]
                    origin[then, where] = at
                    by_kind[then, where] = d
            best = min(best, float(value[:, last].min()))
        if not best < ceiling:
            return ceiling, []
        return best, self._trace(table, value, origin, by_kind)

    def _trace(
        self, table: _Table, value: Floats, origin: NDArray[np.int32], by_kind: NDArray[np.int8]
    ) -> list[tuple[int, int]]:
        at, place = table.count - 1, int(np.argmin(value[:, -1]))
        whole = int.from_bytes(table.bits[at].tobytes(), "little")
        stages = []
        while at:
            before, kind = int(origin[place, at]), int(by_kind[place, at])
            earlier = int.from_bytes(table.bits[before].tobytes(), "little")
            stages.append((kind, whole & ~earlier))
            at, place, whole = before, place - self.strides[kind], earlier
        return stages[::-1]


def _load(graph: Condensed, kind: DeviceKind, seconds: Floats, mask: int) -> float:
    """Load of one stage, straight from the definition."""
    own = [node for node in range(len(graph.members)) if mask >> node & 1]
    moved = 0.0
    for producer, cost, readers in zip(graph.producer, graph.cost, graph.readers, strict=True):
        if mask >> producer & 1:
            moved += float(cost) if readers & ~mask else 0.0
        elif readers & mask:
            moved += float(cost)
    return float(seconds[own].sum()) + kind.transfer * moved


def _value(graph: Condensed, kinds: Sequence[DeviceKind], stages: Sequence[tuple[int, int]]) -> float:
    """Largest load of some stages, inf when one does not fit."""
    worst = 0.0
    for d, mask in stages:
        kind = kinds[d]
        needed = sum(float(graph.size[node]) for node in range(len(graph.members)) if mask >> node & 1)
        if kind.memory is not None and needed > kind.memory * _ROUNDING:
            return math.inf
        worst = max(worst, _load(graph, kind, graph.seconds[d], mask))
    return worst


class _Best:
    """Best plan and bound so far."""

    def __init__(self, graph: Condensed, kinds: Sequence[DeviceKind]) -> None:
        self.graph, self.kinds = graph, kinds
        self.program = _Program(graph, kinds)
        self.value, self.bound, self.ideals = math.inf, 0.0, 0
        self.stages: list[tuple[int, int]] = []
        self.tried: list[set[int]] = []

    def offer(self, masks: Sequence[int], every: bool = False) -> None:
        """Look at the pipelines along some ideals (or along every one, which settles it)."""
        self.ideals = max(self.ideals, len(masks))
        found, stages = self.program.run(masks, self.value)
        if stages:
            self.value, self.stages = found, stages
        if every:
            self.bound = self.value

    def offer_aside(self, threshold: float, limit: int) -> None:
        """Solve the graph without its negligible nodes; its value bounds, its plan with them put back is offered."""
        gone = negligible(self.graph, threshold)
        if not gone or len(gone) == len(self.graph.members) or gone in self.tried:
            return
        self.tried.append(gone)
        reduced, stay, heavy = without(self.graph, gone)
        masks = all_ideals(reduced, limit)
        if masks is None:
            return
        self.ideals = max(self.ideals, len(masks))
        # First with the memory of what will be put back, for a plan that fits; then without, for a bound.
        for size in (heavy, reduced.size):
            found, stages = _Program(replace(reduced, size=size), self.kinds).run(masks, self.value)
            if stages:
                whole = put_back(self.graph, stay, stages)
                value = _value(self.graph, self.kinds, whole)
                if value < self.value:
                    self.value, self.stages = value, whole
            if size is reduced.size:
                self.bound = max(self.bound, min(found, self.value))


def split_graph(
    graph: OpGraph, kinds: Sequence[DeviceKind], *, ideals: int = IDEALS, seed: int = 0
) -> GraphPlan:
    """Least largest load over all pipelines of convex stages.

    Args:
        graph: ops, tensors and what must stay together.
        kinds: the devices; every device holds one stage or none.
        ideals: how many ideals to look at before giving up the proof.
        seed: of the choice of ideals when there are more.

    Raises:
        InvalidProblem: the graph contradicts itself.
        NoRoute: no pipeline fits the memory or the ops that devices can run.
    """
    small = condense(graph, kinds)
    stuck = np.flatnonzero(np.isinf(small.seconds.min(axis=0)))
    if stuck.size:
        ops = small.members[int(stuck[0])]
        raise NoRoute(f"no kind of device can run op {ops[0]} and what must stay with it", limit="block")
    best = _Best(small, kinds)
    best.bound = floor = best.program.floor()
    families = orders(small, 12, seed)
    for order in families[:4]:
        best.offer(prefixes(order))
    every = all_ideals(small, ideals)
    if every is not None:
        best.offer(every, every=True)
    else:
        for share in (1e-5, 1e-4, 1e-3, 1e-2):
            best.offer_aside(share * floor, ideals)
            if best.value <= best.bound * 1.02:
                break
        if best.value > best.bound * 1.02:
            best.offer(some_ideals(families, ideals // 20))
    if not best.stages:
        raise NoRoute(
            "no pipeline of convex stages fits the memory of the devices and the ops they can run",
            limit="memory",
            hint="add devices or memory",
        )
    result = []
    for d, mask in best.stages:
        own = [node for node in range(len(small.members)) if mask >> node & 1]
        ops = tuple(op for node in own for op in small.members[node])
        result.append(GraphStage(kinds[d].name, ops, _load(small, kinds[d], small.seconds[d], mask)))
    reached = max(stage.seconds for stage in result)
    optimal = best.value <= best.bound * _TOLERANCE
    bound = reached if optimal else min(best.bound, reached)
    return GraphPlan(tuple(result), reached, bound, optimal, best.ideals)
