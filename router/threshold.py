"""The period on clusters that are too large for an exact method: a beam search under a threshold, and two bounds.

For a given period T a stage may be as long as T and the memory allow, and a transfer may use a link that carries it
within T. Partial plans are extended device by device; of the plans with equally many stages the most advanced are
kept. T is halved towards the larger of two lower bounds: the work spread over all devices as a fluid (a linear
program), and the best chain if every stage had the best device and every transfer the best link.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import LinearConstraint, milp
from scipy.sparse import coo_array

from router.chain import ChainPlan
from router.instance import Floats, Instance, Ints
from router.pipeline import Pipeline, spans, to_route, widest
from router.route import Route

STEPS = 24
WIDTH = 96
STOPS = 8
FLUID_SIZE = 100_000


@dataclass(frozen=True, slots=True, eq=False)
class _Partial:
    """Stages so far: last device, boundary reached, its load without encoding, devices used."""

    device: int
    boundary: int
    load: float
    used: frozenset[int]
    parent: _Partial | None
    codec: int  # of the transfer into the last stage, -1: nothing moved


class _Beam:
    def __init__(self, pipeline: Pipeline, relays: bool) -> None:
        instance = pipeline.instance
        self.pipeline, self.instance = pipeline, instance
        self.workers = [u for group in pipeline.groups for u in group]
        self.wide = widest(instance, pipeline.airtime, relays=relays)
        self.max_stages = pipeline.max_stages
        blocks = instance.block / instance.free[: instance.n, None]
        walls = np.isinf(blocks)
        self.total = np.concatenate(
            [np.zeros((instance.n, 1)), np.cumsum(np.where(walls, 0, blocks), axis=1)], axis=1
        )
        # First block at or after i that the device cannot run.
        self.wall = np.full((instance.n, instance.blocks + 1), instance.blocks)
        for i in range(instance.blocks - 1, -1, -1):
            self.wall[:, i] = np.where(walls[:, i], i, self.wall[:, i + 1])
        self.finite = np.minimum(self.wide, 1e300)  # so that nothing times no path is not undefined
        self.known_stops: dict[tuple[int, int, float], list[int]] = {}
        self.smallest = instance.wire.min(axis=0)
        others = self.wide[:, self.workers].copy()
        others[self.workers, np.arange(len(self.workers))] = np.inf
        self.best_out = others.min(axis=1, initial=1e300)  # finite, for boundaries of no bytes

    def stops(self, device: int, start: int, load: float, period: float) -> list[int]:
        """Stops worth trying: the farthest that fits, then nearer ones that send less."""
        instance = self.instance
        room = period - load - instance.overhead[device] / instance.free[device]
        far = int(np.searchsorted(self.total[device], self.total[device, start] + room, "right")) - 1
        far = min(far, int(self.wall[device, start]), instance.blocks)
        if far <= start:
            return []
        ends = np.arange(start + 1, far + 1)
        # A boundary that no link out of the device carries in time is a dead end, unless it is the last.
        carried = self.smallest[ends] * self.best_out[device] <= period
        good = (instance.stage_bytes[start, ends] <= instance.memory[device]) & (
            carried | (ends == instance.blocks)
        )
        found: list[int] = []
        least = math.inf
        for stop in ends[good][::-1].tolist():
            if self.smallest[stop] < least:
                least = float(self.smallest[stop])
                found.append(stop)
                if len(found) == STOPS:
                    break
        return found

    def run(self, period: float) -> ChainPlan | None:
        """A plan that keeps the period, or None when none was found."""
        instance = self.instance
        period *= 1 + 1e-12
        self.known_stops.clear()
        root = _Partial(instance.source, 0, 0.0, frozenset(), None, -1)
        level = self._enter(root, period, first=True)
        for _ in range(self.max_stages):
            if not level:
                return None
            for partial in level:
                if (
                    partial.boundary == instance.blocks
                    and (codec := self._leave(partial, period)) is not None
                ):
                    return self._plan(partial, codec)
            after = [child for partial in level for child in self._enter(partial, period)]
            level = self._keep(after)
        return None

    def _keep(self, level: list[_Partial]) -> list[_Partial]:
        """The most advanced, different in where they stand."""
        level.sort(key=lambda each: (-each.boundary, float(self.smallest[each.boundary]), each.load))
        seen: dict[tuple[int, int], int] = {}
        kept = []
        for each in level:
            key = (each.device, each.boundary)
            seen[key] = seen.get(key, 0) + 1
            if seen[key] <= 2:
                kept.append(each)
                if len(kept) == WIDTH:
                    break
        return kept

    def _ways(self, partial: _Partial, period: float) -> tuple[Ints, Floats]:
        """Per device the codec that costs it least to receive, and those seconds; inf = not within the period."""
        instance, u, j = self.instance, partial.device, partial.boundary
        fits = np.isfinite(self.wide[u]) & (instance.wire[:, j, None] * self.finite[u] <= period)
        sent = partial.load + instance.encode[:, u, j] / instance.free[u] <= period
        cost = np.where(fits & sent[:, None], instance.decode[:, :, j], np.inf)
        best = cost.argmin(axis=0)
        return best, cost[best, np.arange(instance.n)] / instance.free[: instance.n]

    def _enter(self, partial: _Partial, period: float, first: bool = False) -> list[_Partial]:
        instance, j = self.instance, partial.boundary
        if j == instance.blocks:
            return []
        children = []
        codecs, loads = self._ways(partial, period)
        for v in self.workers:
            if v in partial.used:
                continue
            codec, load = int(codecs[v]), float(loads[v])
            if first and v == instance.source:
                codec, load = -1, 0.0
            if load > period or (v == partial.device and codec >= 0):
                continue
            key = (v, j, load)
            if key not in self.known_stops:
                self.known_stops[key] = self.stops(v, j, load, period)
            for stop in self.known_stops[key]:
                work = self.total[v, stop] - self.total[v, j] + instance.overhead[v] / instance.free[v]
                used = partial.used | {v}
                children.append(_Partial(v, stop, load + float(work), used, partial, codec))
        return children

    def _leave(self, partial: _Partial, period: float) -> int | None:
        sink = self.instance.sink
        if partial.device == sink:
            return -1
        codecs, loads = self._ways(partial, period)
        return int(codecs[sink]) if loads[sink] <= period else None

    def _plan(self, partial: _Partial, last: int) -> ChainPlan:
        at = {u: number for number, u in enumerate(self.workers)}
        classes, stops, codecs = [], [], [last]
        each: _Partial | None = partial
        while each is not None and each.parent is not None:
            classes.append(at[each.device])
            stops.append(each.boundary)
            codecs.append(each.codec)
            each = each.parent
        return ChainPlan(math.inf, tuple(classes[::-1]), tuple(stops[::-1]), tuple(codecs[::-1]))


def fluid_bound(instance: Instance) -> float:
    """Least period if every block could be spread over all devices: a linear program."""
    blocks = instance.block / instance.free[: instance.n, None]
    able = np.argwhere(np.isfinite(blocks))
    if len(able) > FLUID_SIZE:
        best = blocks.min(axis=0)
        return max(float(best.sum()) / instance.n, float(best.max()))
    count = len(able)
    device, block = able[:, 0], able[:, 1]
    share = coo_array((np.ones(count), (block, np.arange(count))), shape=(instance.blocks, count + 1))
    seconds = np.concatenate([blocks[device, block], np.full(instance.n, -1.0)])
    rows = np.concatenate([device, np.arange(instance.n)])
    columns = np.concatenate([np.arange(count), np.full(instance.n, count)])
    load = coo_array((seconds, (rows, columns)), shape=(instance.n, count + 1))
    cost = np.zeros(count + 1)
    cost[-1] = 1.0
    constraints = [
        LinearConstraint(load.tocsr(), np.full(instance.n, -np.inf), np.zeros(instance.n)),
        LinearConstraint(share.tocsr(), np.ones(instance.blocks), np.ones(instance.blocks)),
    ]
    result = milp(cost, constraints=constraints)  # no integers: HiGHS solves it as a linear program
    return float(result.fun) * (1 - 1e-7) if result.status == 0 and result.fun is not None else 0.0


def ideal_bound(pipeline: Pipeline) -> float:
    """Least period of a chain whose every stage has the best device for it and every transfer the best path."""
    instance = pipeline.instance
    workers = [u for group in pipeline.groups for u in group]
    between = widest(instance, pipeline.airtime)[np.ix_(workers, workers)]
    np.fill_diagonal(between, np.inf)
    span = np.full((instance.blocks + 1, instance.blocks + 1), np.inf)
    for u in {group[0] for group in pipeline.groups}:
        own = (spans(instance.block[u]) + instance.overhead[u]) / instance.free[u]
        own[instance.stage_bytes > instance.memory[u]] = np.inf
        np.minimum(span, own, out=span)
    fastest = float(between.min(initial=math.inf))
    sent = (
        instance.wire.min(axis=0) * fastest
        if math.isfinite(fastest)
        else np.full(instance.blocks + 1, np.inf)
    )
    reached = np.full(instance.blocks + 1, np.inf)
    reached[0] = 0.0
    for stop in range(1, instance.blocks + 1):
        best = float(np.maximum(reached[:stop], span[:stop, stop]).min())
        reached[stop] = max(best, float(sent[stop])) if stop < instance.blocks else best
    return float(reached[-1])


def beam_period(pipeline: Pipeline) -> tuple[float, list[Route]]:
    """A lower bound of the period, and the best routes that beam searches find, with relays and without."""
    instance = pipeline.instance
    bound = max(fluid_bound(instance), ideal_bound(pipeline))
    if not math.isfinite(bound):
        return math.inf, []
    found = [_least(_Beam(pipeline, relays), bound, relays) for relays in (False, True)]
    return bound, [route for route in found if route is not None]


def _least(beam: _Beam, bound: float, relays: bool) -> Route | None:
    """Halve the threshold between the bound and the first period that the beam search keeps."""
    singles = replace(beam.pipeline, groups=[[u] for u in beam.workers])
    low, high = bound, bound if bound > 0 else 1e-9
    plan = beam.run(bound) if bound > 0 else None
    for _ in range(60):
        if plan is not None:
            break
        low, high = high, 2 * high
        plan = beam.run(high)
    if plan is None:
        return None
    for _ in range(STEPS):
        if high <= low * (1 + 1e-6):
            break
        middle = (low + high) / 2
        trial = beam.run(middle)
        if trial is None:
            low = middle
        else:
            high, plan = middle, trial
    return to_route(singles, plan, None, high, relays=relays)
