"""Exact search over routes, for instances that are small enough.

Best-first search with labels. A label is a route up to the end of a stage; it carries one vector of
everything that only grows (quantities that add up, stages and memory used per device, loads). Of two labels
at the same device and boundary, the one that is nowhere smaller is dropped; a label whose lower bound reaches
the best complete route is never expanded. The lower bound adds the least cost to go on the unlimited layered
graph, and for the period the largest load so far and what the remaining blocks need at least. When the label
budget runs out, the smallest bound left open still bounds the optimum.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from router.additive import Additive
from router.frontier import Frontier, undominated
from router.goal import Goal
from router.instance import Floats, Instance, Ints
from router.layers import Network, potentials
from router.limits import SLACK
from router.paths import Path, ShortestPaths, SimplePaths, load_of
from router.route import Route, Stage, Transfer

PATHS_PER_SOURCE = 2000
FEW_CODECS, FEW_PATHS = 4, 100  # paths per source where each is tried with many codecs
EFFORT_PER_LABEL = 1000  # children looked at, whether kept or not
EFFORT_PER_WAY = 50  # of a codec on a path, listed once per device and boundary
_TOLERANCE = 1e-12
FAN = 3
"""Stages on one device that the beam search goes on with."""
WIDTHS = (24, 192)
"""Of the beam: the second where the first finds nothing."""
BEAM_EFFORT = 50.0
"""Devices at which the beam has its full width: on larger clusters it is narrower."""


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Result of a search.

    Attributes:
        route: best route, None if there is none (or none was found).
        value: its value, inf without one.
        bound: proved lower bound of every route's value.
        labels: labels kept.
    """

    route: Route | None
    value: float
    bound: float
    labels: int


@dataclass(frozen=True, slots=True, eq=False)
class _Options:
    """Ways to leave one device at one boundary: p of them."""

    target: Ints
    codec: Ints
    paths: tuple[Path, ...]
    added: Floats  # (p, a) additive quantities, decode included
    load: Floats  # (p, R) busy seconds per free share, encode and decode included


@dataclass(frozen=True, slots=True, eq=False)
class _Label:
    """A route up to the end of a stage (the root: nothing but the inputs at the source)."""

    device: int
    boundary: int
    added: Floats  # (a,)
    used: Floats  # stages so far, then stages per device, then memory per device
    load: Floats  # largest load that is settled, then the load of every resource
    parent: _Label | None = None
    transfer: Transfer | None = None


class _Search:
    def __init__(self, instance: Instance, goal: Goal, budget: int, incumbent: float) -> None:
        self.instance, self.goal, self.budget = instance, goal, budget
        self.best = incumbent
        self.found: tuple[_Label, Transfer] | None = None
        problem, n, blocks = instance.problem, instance.n, instance.blocks
        self.has_primary = goal.primary is not None
        self.rows: list[Additive] = [] if goal.primary is None else [goal.primary]
        self.rows += [row for row, _ in goal.bounds]
        self.limits = np.array([math.inf] * self.has_primary + [limit * SLACK for _, limit in goal.bounds])
        network = Network(instance)
        tables = [potentials(instance, row, network) for row in self.rows]
        self.to_go = np.zeros((blocks + 1, n, len(tables)))
        for row, table in enumerate(tables):
            self.to_go[:, :, row] = table.running
        self.root_to_go = np.array([table.start for table in tables])
        self.loads = goal.loads_matter
        self.per_device = problem.stages_per_device or blocks
        self.max_stages = problem.max_stages or blocks
        self.simple = SimplePaths(instance, PATHS_PER_SOURCE if instance.codecs <= FEW_CODECS else FEW_PATHS)
        self.crypt = bool(instance.crypt.any())
        self.options_cache: dict[tuple[int, int], _Options] = {}
        self.stage_cache: dict[tuple[int, int], tuple[Floats, Floats]] = {}
        # Only what a limit can make scarce may keep a label alive.
        scarce = np.zeros(1 + 2 * n, bool)
        scarce[0] = problem.max_stages is not None
        scarce[1 : 1 + n] = self.per_device < blocks
        scarce[1 + n :] = (self.per_device > 1) & np.isfinite(instance.memory)
        self.scarce = np.flatnonzero(scarce)
        least = (instance.block / instance.free[:n, None]).min(axis=0)
        self.least_rest = np.concatenate([np.cumsum(least[::-1])[::-1], [0.0]])
        self.least_any = np.concatenate([np.maximum.accumulate(least[::-1])[::-1], [0.0]])
        self.workers = int(np.isfinite(instance.block).any(axis=1).sum())
        self.kept: dict[tuple[int, int], Frontier] = {}
        self.count = 0
        self.effort = 0

    def options(self, device: int, boundary: int) -> _Options:
        key = (device, boundary)
        if key not in self.options_cache:
            self.options_cache[key] = self._make_options(device, boundary)
        return self.options_cache[key]

    def _make_options(self, device: int, boundary: int) -> _Options:
        instance, rows = self.instance, self.rows
        last = boundary == instance.blocks
        able = [instance.sink] if last else np.flatnonzero(np.isfinite(instance.block[:, boundary])).tolist()
        ways: list[tuple[int, int, Path, Floats, Floats]] = []
        if device in able and (last or boundary == 0):
            ways.append((device, 0, (), np.zeros(len(rows)), np.zeros(instance.resources)))
        for c in self._codecs(device, boundary, able):
            wire = float(instance.wire[c, boundary])
            hops = [row.hops(np.asarray(wire)) for row in rows]
            one = not self.loads and len(rows) == 1
            paths = ShortestPaths(instance, hops[0], device) if one else self.simple
            for v in able:
                if v == device or not math.isfinite(instance.decode[c, v, boundary]):
                    continue
                for path in paths.between(device, v):
                    ends = [row.encode[c, device, boundary] + row.decode[c, v, boundary] for row in rows]
                    along = [float(hop[list(path)].sum()) for hop in hops]
                    busy = np.zeros(instance.resources)
                    if self.loads:
                        load_of(instance, path, wire, busy)
                        busy[device] += instance.encode[c, device, boundary] / instance.free[device]
                        busy[v] += instance.decode[c, v, boundary] / instance.free[v]
                    ways.append((v, c, path, np.array(ends) + np.array(along), busy))
        self.effort += EFFORT_PER_WAY * len(ways)
        if not ways:
            return _Options(
                np.zeros(0, np.int64), np.zeros(0, np.int64), (), np.zeros((0, 0)), np.zeros((0, 0))
            )
        target = np.array([way[0] for way in ways])
        added = np.stack([way[3] for way in ways])
        load = np.stack([way[4] for way in ways])
        keep = np.concatenate(
            [
                at[undominated(np.concatenate([added[at], load[at]], axis=1))]
                for at in (np.flatnonzero(target == v) for v in np.unique(target))
            ]
        )
        codec = np.array([way[1] for way in ways])
        return _Options(target[keep], codec[keep], tuple(ways[k][2] for k in keep), added[keep], load[keep])

    def _codecs(self, device: int, boundary: int, able: Sequence[int]) -> list[int]:
        """Codecs worth trying on a boundary: none of the others sends less, errs less and costs every device less.

        Whatever a path costs grows with the bytes on it, so one that is worse in all of these is never part of a
        better plan.
        """
        instance = self.instance
        usable = np.flatnonzero(np.isfinite(instance.encode[:, device, boundary]))
        costs = np.concatenate(
            [
                instance.wire[usable, boundary, None],
                instance.error[usable, boundary, None],
                instance.encode[usable, device, boundary, None],
                instance.decode[usable][:, list(able), boundary],
            ],
            axis=1,
        )
        return [int(codec) for codec in usable[undominated(np.minimum(costs, 1e300))]]

    def stage(self, device: int, start: int) -> tuple[Floats, Floats]:
        """(S, a) quantities and (S,) busy seconds of the stages [start, start + 1 … L) on a device."""
        key = (device, start)
        if key not in self.stage_cache:
            instance = self.instance
            added = np.zeros((instance.blocks - start, len(self.rows)))
            for at, row in enumerate(self.rows):
                added[:, at] = row.start[device] + np.cumsum(row.block[device, start:])
            busy = (instance.overhead[device] + np.cumsum(instance.block[device, start:])) / instance.free[
                device
            ]
            self.stage_cache[key] = (added, busy)
        return self.stage_cache[key]

    def run(self) -> Found:
        instance, goal = self.instance, self.goal
        if (self.root_to_go > self.limits).any():
            return Found(None, math.inf, math.inf, 0)
        used, load = np.zeros(1 + 2 * instance.n), np.zeros(1 + instance.resources)
        root = _Label(instance.source, 0, np.zeros(len(self.rows)), used, load)
        floor = goal.period_weight * self._rest(0, 0) if goal.period_weight else 0.0
        if self.has_primary:
            floor += float(self.root_to_go[0])
        heap: list[tuple[float, int, int, _Label]] = [(floor, 0, 0, root)]
        bound = math.inf
        while heap:
            value, _, _, label = heapq.heappop(heap)
            if value >= self.best * (1 - _TOLERANCE):
                break
            if self.count > self.budget or self.effort > EFFORT_PER_LABEL * self.budget:
                bound = value
                break
            if label.boundary == instance.blocks:
                self._finish(label)
            else:
                self._expand(label, heap)
        if self.simple.truncated:
            bound = min(bound, floor)
        return Found(self._route(), self.best, min(bound, self.best), self.count)

    def beam(self, width: int) -> Route | None:
        """A good route: of those that reach a boundary, only the most promising go on from there."""
        used, load = np.zeros(1 + 2 * self.instance.n), np.zeros(1 + self.instance.resources)
        root = _Label(self.instance.source, 0, np.zeros(len(self.rows)), used, load)
        reached: list[list[tuple[float, int, int, _Label]]] = [[] for _ in range(self.instance.blocks + 1)]
        reached[0].append((0.0, 0, 0, root))
        longest = self._longest()
        for boundary, level in enumerate(reached):
            for *_, label in heapq.nsmallest(width, level):
                if boundary == self.instance.blocks:
                    self._finish(label)
                    continue
                born: list[tuple[float, int, int, _Label]] = []
                self._expand(label, born, fan=FAN)
                for each in born:
                    stop, unused = each[3].boundary, each[3].used[1 : 1 + self.instance.n] < self.per_device
                    if longest[stop, unused].sum() >= self.instance.blocks - stop:
                        reached[stop].append(each)
            level.clear()
        return self._route()

    def _longest(self) -> Floats:
        """(L+1, n) most blocks of one stage on each device that starts at a boundary or later."""
        instance = self.instance
        at = np.arange(instance.blocks + 1)
        length = np.where(at[None] > at[:, None], at[None] - at[:, None], 0)
        found = np.zeros((instance.blocks + 1, instance.n))
        for v in range(instance.n):
            if self.per_device > 1:  # then nothing is used up, or only bytes
                found[:, v] = instance.blocks
                continue
            fits = instance.stage_bytes <= instance.memory[v]
            most = np.where(fits, length, 0).max(axis=1)
            found[:, v] = np.maximum.accumulate(most[::-1])[::-1]
        return found

    def _rest(self, boundary: int, stages: int) -> float:
        """Least period that the blocks from `boundary` on allow after so many stages."""
        if boundary == self.instance.blocks:
            return 0.0
        devices = min(self.workers, self.max_stages - stages)
        if self.per_device == 1:
            devices = min(devices, self.workers - stages)
        if devices <= 0:
            return math.inf
        return max(float(self.least_any[boundary]), float(self.least_rest[boundary]) / devices)

    def _loads_after(self, label: _Label, options: _Options) -> tuple[Floats, Floats]:
        """(p, R) loads and (p,) largest load after each option, before the next stage runs."""
        load = label.load[1:] + options.load
        return load, np.maximum(label.load[0], load.max(axis=1, initial=0.0))

    def _finish(self, label: _Label) -> None:
        options, goal = self.options(label.device, label.boundary), self.goal
        if not len(options.target):
            return
        added = label.added + options.added
        value = added[:, 0].copy() if self.has_primary else np.zeros(len(added))
        good = (added <= self.limits).all(axis=1)
        if self.loads:
            peak = self._loads_after(label, options)[1]
            if goal.period_weight:
                value += goal.period_weight * peak
            good &= peak <= goal.max_period * SLACK
        value[~good] = np.inf
        at = int(np.argmin(value))
        if value[at] < self.best * (1 - _TOLERANCE):
            self.best = float(value[at])
            self.found = label, self._transfer(label, options, at)

    def _expand(
        self, label: _Label, heap: list[tuple[float, int, int, _Label]], fan: int | None = None
    ) -> None:
        """Puts what follows on the heap; of the stages on each device, the `fan` best where that is given."""
        instance, goal, j = self.instance, self.goal, label.boundary
        n, stages = instance.n, int(label.used[0]) + 1
        options = self.options(label.device, j)
        if stages > self.max_stages or not len(options.target):
            return
        self.effort += len(options.target) * (instance.blocks - j)
        loads, peaks = self._loads_after(label, options)
        rest = np.array([self._rest(b, stages) for b in range(j + 1, instance.blocks + 1)])
        for v in np.unique(options.target).tolist():
            if label.used[1 + v] >= self.per_device:
                continue
            quantities, busy = self.stage(v, j)
            memory = label.used[1 + n + v] + instance.stage_bytes[j, j + 1 :]
            fits = (memory <= instance.memory[v]) & np.isfinite(busy)
            rows = np.flatnonzero(options.target == v)
            added = label.added + options.added[rows][:, None, :] + quantities[None]  # (p, S, a)
            ahead = added + self.to_go[None, j + 1 :, v, :]
            good = fits[None] & (ahead <= self.limits).all(axis=2)
            value = ahead[:, :, 0].copy() if self.has_primary else np.zeros(good.shape)
            own = loads[rows, v][:, None] + busy[None]
            if self.loads:
                peak = np.maximum(np.maximum(peaks[rows][:, None], own), rest[None])
                if goal.period_weight:
                    value += goal.period_weight * peak
                good &= peak <= goal.max_period * SLACK
            good &= value < self.best * (1 - _TOLERANCE)
            chosen = np.argwhere(good)
            if (
                fan is not None and len(chosen) > fan
            ):  # of equally good ones those that go farther, and the farthest
                order = np.lexsort((-chosen[:, 1], value[good]))
                chosen = chosen[[*order[: fan - 1], int(np.argmax(chosen[:, 1]))]]
            for p, s in chosen.tolist():
                stop, way = j + 1 + s, int(rows[p])
                used = label.used.copy()
                used[0] = stages
                used[1 + v] += 1
                used[1 + n + v] = memory[s]
                load = label.load
                if self.loads:
                    load = np.empty(1 + instance.resources)
                    load[1:] = loads[way]
                    load[1 + v] = own[p, s]
                    load[0] = max(peaks[way], own[p, s])
                    if (
                        self.per_device == 1
                        and stages > 1
                        and not self.crypt
                        and label.device != instance.sink
                    ):
                        load[1 + label.device] = 0.0  # nothing adds to it any more; the peak remembers it
                scarce = np.concatenate([added[p, s], used[self.scarce], load if self.loads else load[:0]])
                if not self.kept.setdefault((v, stop), Frontier(len(scarce))).admit(scarce):
                    continue
                self.count += 1
                child = _Label(v, stop, added[p, s], used, load, label, self._transfer(label, options, way))
                heapq.heappush(heap, (float(value[p, s]), -stop, self.count, child))

    def _transfer(self, label: _Label, options: _Options, at: int) -> Transfer:
        instance = self.instance
        names = [instance.names[label.device]]
        names += [instance.names[instance.dst[edge]] for edge in options.paths[at]]
        if len(names) == 1:
            return Transfer(label.boundary, (names[0],))
        return Transfer(label.boundary, tuple(names), instance.problem.codecs[int(options.codec[at])].name)

    def _route(self) -> Route | None:
        if self.found is None:
            return None
        label, transfer = self.found
        stages: list[Stage] = []
        transfers = [transfer]
        while label.parent is not None and label.transfer is not None:
            stages.append(Stage(self.instance.names[label.device], label.parent.boundary, label.boundary))
            transfers.append(label.transfer)
            label = label.parent
        return Route(tuple(reversed(stages)), tuple(reversed(transfers)))


def beam(instance: Instance, goal: Goal, *, incumbent: float = math.inf) -> Route | None:
    """A good route under every limit, found quickly; None where none better than the incumbent was found.

    Args:
        instance: the compiled problem.
        goal: what to minimise and the bounds.
        incumbent: value of a route already known.
    """
    for width in WIDTHS:
        budget = max(2, int(BEAM_EFFORT * width / instance.n))
        found = _Search(instance, goal, 0, incumbent).beam(min(width, budget))
        if found is not None:
            return found
    return None


def search(instance: Instance, goal: Goal, *, budget: int = 200_000, incumbent: float = math.inf) -> Found:
    """Best route under every limit.

    Args:
        instance: the compiled problem.
        goal: what to minimise and the bounds.
        budget: labels to keep before giving up the proof.
        incumbent: value of a route already known; only better ones are looked for.
    """
    return _Search(instance, goal, budget, incumbent).run()
