"""Setting negligible nodes aside, so that a graph with many small ops has few ideals again.

Constants, shape arithmetic and weights kept as ops multiply the ideals and hardly any seconds. The graph
without them (the order they impose is kept, what they take and send is not) is a relaxation: its optimum is a
lower bound. Putting them back into that plan gives a plan of the whole graph, usually within a fraction of a
percent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from router.instance import Floats
from router.opgraph import Condensed


def negligible(graph: Condensed, threshold: float) -> set[int]:
    """Nodes whose seconds, and whose tensors' seconds, stay below the threshold.

    What a node sends counts for nothing where it can always join its only reader: a source with one
        successor.
    """
    seconds = np.where(np.isinf(graph.seconds), np.inf, graph.seconds).min(axis=0)
    sent = np.zeros(len(graph.members))
    np.add.at(sent, np.array(graph.producer, int), graph.cost)
    free = [
        not lead and follow.bit_count() == 1 for lead, follow in zip(graph.lead, graph.follow, strict=True)
    ]
    return set(np.flatnonzero((seconds <= threshold) & ((sent <= threshold) | np.array(free))).tolist())


def without(graph: Condensed, gone: set[int]) -> tuple[Condensed, list[int], Floats]:
    """The graph without some nodes, the nodes that remain, and their sizes with what will join them."""
    stay = [node for node in range(len(graph.members)) if node not in gone]
    at = {node: number for number, node in enumerate(stay)}
    reach: dict[int, int] = {}  # node → remaining nodes that must follow it, through removed ones

    def translate(mask: int) -> int:
        result = 0
        while mask:
            low = mask & -mask
            mask ^= low
            node = low.bit_length() - 1
            result |= reach[node] if node in gone else 1 << at[node]
        return result

    for node in reversed(range(len(graph.members))):
        reach[node] = translate(graph.follow[node])
    lead = [0] * len(stay)
    for node in stay:
        mask = reach[node]
        while mask:
            low = mask & -mask
            mask ^= low
            lead[low.bit_length() - 1] |= 1 << at[node]
    producer, cost, readers = [], [], []
    for made, seconds, read in zip(graph.producer, graph.cost, graph.readers, strict=True):
        kept = sum(1 << at[node] for node in stay if read >> node & 1)
        if made in at and kept:
            producer.append(at[made])
            cost.append(float(seconds))
            readers.append(kept)
    heavy = graph.size[stay]
    for node in gone:
        if reach[node]:
            heavy[(reach[node] & -reach[node]).bit_length() - 1] += graph.size[node]
    reduced = Condensed(
        members=tuple(graph.members[node] for node in stay),
        follow=tuple(reach[node] for node in stay),
        lead=tuple(lead),
        size=graph.size[stay],
        seconds=graph.seconds[:, stay],
        producer=tuple(producer),
        cost=np.array(cost),
        readers=tuple(readers),
    )
    return reduced, stay, heavy


def put_back(
    graph: Condensed, stay: Sequence[int], stages: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Stages of the whole graph from stages (kind, mask) of the reduced one.

    A node with predecessors joins the last of them; one without joins the first that needs it.
    """
    n = len(graph.members)
    stage_of: dict[int, int] = {}
    for number, (_, mask) in enumerate(stages):
        for at, node in enumerate(stay):
            if mask >> at & 1:
                stage_of[node] = number
    latest: dict[int, int] = {}
    for node in reversed(range(n)):
        follow = [latest[then] for then in range(node + 1, n) if graph.follow[node] >> then & 1]
        latest[node] = stage_of.get(node, min(follow, default=len(stages) - 1))
    for node in range(n):
        if node not in stage_of:
            before = [stage_of[lead] for lead in range(node) if graph.lead[node] >> lead & 1]
            stage_of[node] = max(before) if before else latest[node]
    whole = [0] * len(stages)
    for node, number in stage_of.items():
        whole[number] |= 1 << node
    return [(kind, mask) for (kind, _), mask in zip(stages, whole, strict=True)]
