"""A topological order in which little is alive at each position.

Finding the best order is NP-hard (register sufficiency), so several cheap candidates are scored and the best
one taken: the order given, two depth-first ones, and a greedy one that always runs the ready op which leaves
the fewest bytes alive. Each costs near-linear time. Pure numbers: ops and tensors are indices here.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

_GAIN = 0.99  # another order must save this much to replace the one the model's author gave


@dataclass(frozen=True, slots=True)
class OpGraph:
    """A graph of n ops over m tensors.

    Attributes:
        after: per op, the ops that must run before it, each once.
        reads: per op, the tensors it reads, each once.
        writes: per op, the tensors it makes.
        sizes: bytes per tensor.
        kept: per tensor, whether it stays alive to the end.
        counted: per op, whether a boundary lies behind it.
        given: the tensors alive before any op runs.
    """

    after: Sequence[Sequence[int]]
    reads: Sequence[Sequence[int]]
    writes: Sequence[Sequence[int]]
    sizes: Sequence[int]
    kept: Sequence[bool]
    counted: Sequence[bool]
    given: Sequence[int] = field(default=())


def best_order(graph: OpGraph) -> list[int]:
    """The best of the candidate orders by :func:`alive_bytes`; deterministic.

    Args:
        graph: its ops numbered in a topological order, the model's own.
    """
    candidates = [
        list(range(len(graph.after))),
        _depth_first(graph, reverse=False),
        _depth_first(graph, reverse=True),
        _greedy(graph),
    ]
    scores = [alive_bytes(graph, order) for order in candidates]
    best = min(range(len(candidates)), key=scores.__getitem__)
    return candidates[best] if scores[best] < _GAIN * scores[0] else candidates[0]


def alive_bytes(graph: OpGraph, order: Sequence[int]) -> int:
    """Sum, over the boundaries inside an order, of the bytes alive there."""
    uses = _use_counts(graph)
    alive = sum(graph.sizes[tensor] for tensor in graph.given if uses[tensor] or graph.kept[tensor])
    total = 0
    for op in order:
        for tensor in graph.writes[op]:
            if uses[tensor] or graph.kept[tensor]:
                alive += graph.sizes[tensor]
        for tensor in graph.reads[op]:
            uses[tensor] -= 1
            if not uses[tensor] and not graph.kept[tensor]:
                alive -= graph.sizes[tensor]
        if graph.counted[op]:
            total += alive
    return total


def _use_counts(graph: OpGraph) -> list[int]:
    uses = [0] * len(graph.sizes)
    for reads in graph.reads:
        for tensor in reads:
            uses[tensor] += 1
    return uses


def _followers(graph: OpGraph) -> list[list[int]]:
    followers: list[list[int]] = [[] for _ in graph.after]
    for op, before in enumerate(graph.after):
        for other in before:
            followers[other].append(op)
    return followers


def _depth_first(graph: OpGraph, *, reverse: bool) -> list[int]:
    """Run the op that became ready last, so that a branch is finished before the next one is begun."""
    followers = _followers(graph)
    missing = [len(before) for before in graph.after]
    step = 1 if reverse else -1
    stack = [op for op, count in enumerate(missing) if not count][::step]
    order: list[int] = []
    while stack:
        op = stack.pop()
        order.append(op)
        for other in followers[op][::step]:
            missing[other] -= 1
            if not missing[other]:
                stack.append(other)
    return order


def _greedy(graph: OpGraph) -> list[int]:
    """Run the ready op that adds the fewest bytes; among equals the one that became ready last."""
    followers = _followers(graph)
    missing = [len(before) for before in graph.after]
    uses = _use_counts(graph)
    readers: list[list[int]] = [[] for _ in graph.sizes]
    for op, reads in enumerate(graph.reads):
        for tensor in reads:
            readers[tensor].append(op)
    added = [0] * len(graph.after)
    for op in range(len(graph.after)):
        made = sum(graph.sizes[t] for t in graph.writes[op] if uses[t] or graph.kept[t])
        freed = sum(graph.sizes[t] for t in graph.reads[op] if uses[t] == 1 and not graph.kept[t])
        added[op] = made - freed
    since = [0] * len(graph.after)
    done = [False] * len(graph.after)
    heap = [(added[op], 0, op) for op, count in enumerate(missing) if not count]
    heapq.heapify(heap)
    order: list[int] = []
    while heap:
        cost, _, op = heapq.heappop(heap)
        if done[op] or cost != added[op]:
            continue  # an entry from before another op made this one cheaper
        done[op] = True
        order.append(op)
        for tensor in graph.reads[op]:
            uses[tensor] -= 1
            if uses[tensor] == 1 and not graph.kept[tensor]:
                last = next(reader for reader in readers[tensor] if not done[reader])
                added[last] -= graph.sizes[tensor]
                if not missing[last]:
                    heapq.heappush(heap, (added[last], -since[last], last))
        for other in followers[op]:
            missing[other] -= 1
            if not missing[other]:
                since[other] = len(order)
                heapq.heappush(heap, (added[other], -since[other], other))
    return order
