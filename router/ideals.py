"""Ideals of a graph: sets of nodes that contain all predecessors of their members.

A pipeline of convex stages is a chain of ideals from nothing to everything, each stage the difference of two
neighbours (Tarnawski et al., NeurIPS 2020). Ideals are bit masks here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random

from router.opgraph import Condensed


def _bits(mask: int) -> Iterable[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def all_ideals(graph: Condensed, limit: int) -> list[int] | None:
    """Every ideal, or None when there are more than `limit`."""
    n = len(graph.members)
    sources = 0
    for node in range(n):
        if not graph.lead[node]:
            sources |= 1 << node
    level: dict[int, int] = {0: sources}  # ideal → nodes that may be added
    found = [0]
    while level:
        after: dict[int, int] = {}
        for ideal, ready in level.items():
            for node in _bits(ready):
                larger = ideal | 1 << node
                if larger in after:
                    continue
                opened = ready ^ 1 << node
                for then in _bits(graph.follow[node]):
                    if not graph.lead[then] & ~larger:
                        opened |= 1 << then
                after[larger] = opened
            if len(found) + len(after) > limit:
                return None
        found.extend(after)
        level = after
    return found


def prefixes(order: Sequence[int]) -> list[int]:
    """The ideals along one topological order."""
    found, mask = [0], 0
    for node in order:
        mask |= 1 << node
        found.append(mask)
    return found


def orders(graph: Condensed, count: int, seed: int = 0) -> list[list[int]]:
    """Topological orders that differ: by number, depth first, least frontier, and seeded random depth first."""
    n = len(graph.members)
    outgoing = [0.0] * n
    incoming: list[list[tuple[float, int]]] = [[] for _ in range(n)]
    for producer, cost, readers in zip(graph.producer, graph.cost, graph.readers, strict=True):
        outgoing[producer] += float(cost)
        for reader in _bits(readers):
            incoming[reader].append((float(cost), readers))

    def run(kind: int, rng: Random) -> list[int]:
        ready = [node for node in range(n) if not graph.lead[node]]
        done, order = 0, []
        while ready:
            if kind == 0:
                pick = min(range(len(ready)), key=lambda k: ready[k])
            elif kind == 1:
                pick = len(ready) - 1
            elif kind == 2:

                def growth(k: int, done: int = done) -> tuple[float, int]:
                    node = ready[k]
                    freed = sum(c for c, readers in incoming[node] if not readers & ~(done | 1 << node))
                    return outgoing[node] - freed, -k

                pick = min(range(len(ready)), key=growth)
            else:
                pick = len(ready) - 1 if rng.random() < 0.7 else rng.randrange(len(ready))
            node = ready.pop(pick)
            order.append(node)
            done |= 1 << node
            opened = [then for then in _bits(graph.follow[node]) if not graph.lead[then] & ~done]
            if kind > 2:
                rng.shuffle(opened)
            ready.extend(opened)
        return order

    rng = Random(seed)
    return [run(kind, rng) for kind in range(count)]


def some_ideals(families: Iterable[Sequence[int]], limit: int) -> list[int]:
    """Ideals along several orders, and the unions and intersections of those of equal size, up to `limit`."""
    chains = [prefixes(order) for order in families]
    found = dict.fromkeys(mask for chain in chains for mask in chain)
    for level in zip(*chains, strict=True):
        distinct = list(dict.fromkeys(level))
        for a in range(len(distinct)):
            for b in range(a):
                if len(found) >= limit:
                    return list(found)
                found[distinct[a] | distinct[b]] = None
                found[distinct[a] & distinct[b]] = None
    return list(found)
