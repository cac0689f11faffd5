"""Dynamic program over (devices used, last device, boundary, codec) for one stage per device.

The value of a prefix of the chain is combined with the next transfer and the next stage by one operation: `maximum`
for the period, `add` for what adds up. Devices are counted per class of interchangeable ones. Exact as long as the
transfers do not disturb each other; who calls it measures the route and learns whether they did.

Time O(states · classes · L² · K²), memory O(states · classes · L · K), states = product of (class size + 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from router.instance import Floats

State = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ChainCosts:
    """Everything the program needs to know: A classes, L blocks, K codecs.

    Attributes:
        sizes: devices per class.
        enter: (A, K) source to the first stage. move: (A, A, K, L+1) between stages. leave: (A, K) to the sink.
        stage: A tables (K, L+1, L+1, K): arriving in codec c, blocks [i, j), leaving in codec d; inf = must not.
        at_source, at_sink: class of the source or sink if it computes, or -1; its first or last stage needs no
            transfer.
        stay_first: (L+1, K) stage [0, j) on the source leaving in d. stay_last: (K, L+1) stage [i, L) on the sink
            arriving in c. stay_both: whole model on a source that is the sink.
        maximum: combine by `maximum` (period) instead of `add`.
        max_stages: at most so many.
    """

    sizes: Sequence[int]
    enter: Floats
    move: Floats
    leave: Floats
    stage: Sequence[Floats]
    at_source: int
    at_sink: int
    stay_first: Floats
    stay_last: Floats
    stay_both: float
    maximum: bool
    max_stages: int


@dataclass(frozen=True, slots=True)
class ChainPlan:
    """A chain: class and stop of every stage, and the codec of every transfer (-1: nothing moves)."""

    value: float
    classes: tuple[int, ...]
    stops: tuple[int, ...]
    codecs: tuple[int, ...]


class _Program:
    def __init__(self, costs: ChainCosts, ceiling: float) -> None:
        self.costs, self.ceiling = costs, ceiling
        self.blocks = costs.move.shape[3] - 1
        self.combine = np.maximum if costs.maximum else np.add
        self.table: dict[tuple[State, int], Floats] = {}  # (L+1, K): prefix ending in a stage of the class
        self.best = ceiling
        self.end: tuple[State, int, int] | None = None  # state, last class, codec

    def arrive(self, before: State, b: int) -> Floats:
        """(K, L+1) value of having a boundary arrive at class b, encoded."""
        costs = self.costs
        arrival = np.full(costs.move.shape[2:], np.inf)
        if not any(before):
            arrival[:, 0] = costs.enter[b]
            return arrival
        for a in range(len(costs.sizes)):
            if (table := self.table.get((before, a))) is not None:
                np.minimum(arrival, self.combine(table.T, costs.move[a, b]), out=arrival)
        return arrival

    def run(self) -> ChainPlan | None:
        costs = self.costs
        for stages in range(1, costs.max_stages + 1):
            for state in _states(tuple(costs.sizes), stages):
                for b, count in enumerate(state):
                    if count:
                        self._extend(state, b)
        return self._trace() if self.end is not None else None

    def _extend(self, state: State, b: int) -> None:
        costs = self.costs
        before = (*state[:b], state[b] - 1, *state[b + 1 :])
        arrival = self.arrive(before, b)
        stays = not any(before) and b == costs.at_source
        arrival[arrival >= self.best] = np.inf
        rows = np.flatnonzero(np.isfinite(arrival).any(axis=0))
        if not rows.size and not stays:
            return
        table = np.full((self.blocks + 1, costs.move.shape[2]), np.inf)
        if rows.size:
            table = self.combine(arrival[:, rows, None, None], costs.stage[b][:, rows]).min(axis=(0, 1))
        if stays:
            table = np.minimum(table, costs.stay_first)
        ends = self.combine(table[self.blocks], costs.leave[b])
        if (least := float(ends.min())) < self.best:
            self.best, self.end = least, (state, b, int(np.argmin(ends)))
        if b == costs.at_sink:
            last = float(self.combine(arrival, costs.stay_last).min())
            if stays:
                last = min(last, costs.stay_both)
            if last < self.best:
                self.best, self.end = last, (state, b, -1)
        table[table >= self.best] = np.inf
        if np.isfinite(table).any():
            self.table[state, b] = table

    def _trace(self) -> ChainPlan:
        """Walk back from the best end, recomputing what led there."""
        costs = self.costs
        assert self.end is not None
        state, b, codec = self.end
        stop, classes, stops, codecs = self.blocks, [b], [self.blocks], [codec]
        while True:
            before = (*state[:b], state[b] - 1, *state[b + 1 :])
            stays = not any(before) and b == costs.at_source
            if codec < 0:
                stage, stay = costs.stay_last, costs.stay_both
            else:
                stage, stay = costs.stage[b][:, :, stop, codec], float(costs.stay_first[stop, codec])
            whole = self.combine(self.arrive(before, b), stage)
            least = float(whole.min())
            if stays and stay <= least:
                codecs.append(-1)
                break
            came, start = (int(x) for x in np.unravel_index(int(np.argmin(whole)), whole.shape))
            codecs.append(came)
            if not any(before):
                break
            need = [
                (float(self.combine(self.table[before, a][start, came], costs.move[a, b, came, start])), a)
                for a in range(len(costs.sizes))
                if (before, a) in self.table
            ]
            state, (_, b), stop, codec = before, min(need), start, came
            classes.append(b)
            stops.append(stop)
        return ChainPlan(self.best, tuple(classes[::-1]), tuple(stops[::-1]), tuple(codecs[::-1]))


def _states(sizes: State, stages: int) -> Iterator[State]:
    """Every way to take so many devices from classes of these sizes."""
    if not sizes:
        yield ()
        return
    rest = sum(sizes[1:])
    for count in range(max(0, stages - rest), min(sizes[0], stages) + 1):
        for others in _states(sizes[1:], stages - count):
            yield (count, *others)


def effort(costs_sizes: Sequence[int], blocks: int, codecs: int, max_stages: int) -> float:
    """Elementary operations that the program needs."""
    states = math.prod(size + 1 for size in costs_sizes)
    if max_stages < sum(costs_sizes):
        ways = [1.0] + [0.0] * max_stages
        for size in costs_sizes:
            ways = [sum(ways[k - x] for x in range(min(size, k) + 1)) for k in range(max_stages + 1)]
        states = int(sum(ways))
    return float(states) * len(costs_sizes) * (blocks + 1) ** 2 * codecs**2


def best_chain(costs: ChainCosts, ceiling: float = math.inf) -> ChainPlan | None:
    """Best chain with a value below `ceiling`, or None."""
    return _Program(costs, ceiling).run()
