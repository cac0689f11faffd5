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
from router.instance import Instance
from router.pipeline import Pipeline, spans, to_route, widest
from router.route import Route

STEPS = 24
WIDTH = 48
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
    def __init__(self, pipeline: Pipeline) -> None:
        instance = pipeline.instance
        self.instance = instance
        self.workers = [u for group in pipeline.groups for u in group]
        self.wide = widest(instance, pipeline.airtime)
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
        self.smallest = instance.wire.min(axis=0)

    def stops(self, device: int, start: int, load: float, period: float) -> list[int]:
        """Stops worth trying: the farthest that fits, then nearer ones that send less."""
        instance = self.instance
        room = period - load - instance.overhead[device] / instance.free[device]
        far = int(np.searchsorted(self.total[device], self.total[device, start] + room, "right")) - 1
        far = min(far, int(self.wall[device, start]), instance.blocks)
        found: list[int] = []
        least = math.inf
        for stop in range(far, start, -1):
            if instance.stage_bytes[start, stop] <= instance.memory[device] and self.smallest[stop] < least:
                least = float(self.smallest[stop])
                found.append(stop)
                if len(found) == STOPS:
                    break
        return found

    def run(self, period: float) -> ChainPlan | None:
        """A plan that keeps the period, or None when none was found."""
        instance = self.instance
        period *= 1 + 1e-12
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

    def _codec(self, partial: _Partial, target: int, period: float) -> int | None:
        """The codec that costs the target least, of those that keep the period."""
        instance, u, j = self.instance, partial.device, partial.boundary
        carried = instance.wire[:, j] * self.wide[u, target]
        fits = carried <= period
        fits &= partial.load + instance.encode[:, u, j] / instance.free[u] <= period
        cost = np.where(fits, instance.decode[:, target, j], np.inf)
        best = int(np.argmin(cost))
        return best if math.isfinite(cost[best]) else None

    def _enter(self, partial: _Partial, period: float, first: bool = False) -> list[_Partial]:
        instance, j = self.instance, partial.boundary
        children = []
        for v in self.workers:
            if v in partial.used or j == instance.blocks:
                continue
            codec, load = -1, 0.0
            if not (first and v == instance.source):
                found = self._codec(partial, v, period) if v != partial.device else None
                if found is None:
                    continue
                codec, load = found, float(instance.decode[found, v, j] / instance.free[v])
            for stop in self.stops(v, j, load, period):
                work = self.total[v, stop] - self.total[v, j] + instance.overhead[v] / instance.free[v]
                used = partial.used | {v}
                children.append(_Partial(v, stop, load + float(work), used, partial, codec))
        return children

    def _leave(self, partial: _Partial, period: float) -> int | None:
        if partial.device == self.instance.sink:
            return -1
        return self._codec(partial, self.instance.sink, period)

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


def beam_period(pipeline: Pipeline) -> tuple[float, Route | None]:
    """A lower bound of the period, and the best route that the beam search finds."""
    instance = pipeline.instance
    bound = max(fluid_bound(instance), ideal_bound(pipeline))
    if not math.isfinite(bound):
        return math.inf, None
    beam = _Beam(pipeline)
    singles = replace(pipeline, groups=[[u] for u in beam.workers])
    low, plan = bound, beam.run(bound) if bound > 0 else None
    if plan is not None:
        return bound, to_route(singles, plan, None, bound)
    high = bound if bound > 0 else 1e-9
    for _ in range(60):
        high *= 2
        plan = beam.run(high)
        if plan is not None:
            break
    if plan is None:
        return bound, None
    best = high
    for _ in range(STEPS):
        middle = math.sqrt(low * high) if low > 0 and high > 2 * low else (low + high) / 2
        trial = beam.run(middle)
        if trial is None:
            low = middle
        else:
            high = best = middle
            plan = trial
        if high <= low * (1 + 1e-6):
            break
    return bound, to_route(singles, plan, None, best)
