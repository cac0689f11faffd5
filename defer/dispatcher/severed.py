"""Links that carry nothing although both their ends are well: which they are, and which devices to do without. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from itertools import pairwise

from defer.documents.plan import Plan

Pair = tuple[str, str]
"""Sender and receiver."""


def links_of(plan: Plan) -> tuple[Pair, ...]:
    """Every directed link that requests of a plan pass, in order."""
    found = {
        pair: None
        for _, leg in plan.legs
        for transfer in leg.transfers
        for pair in pairwise(transfer.path)
        if pair[0] != pair[1]
    }
    return tuple(found)


def cover(severed: Collection[Pair], home: str, *, other: bool = False) -> frozenset[str]:
    """Devices without which no severed link is needed: as few as taking the most severed one first gives.

    Args:
        severed: Links that carry nothing.
        home: The dispatcher's device, without which nothing works.
        other: Where both ends would do equally well, take the other one.
    """
    left, chosen = set(severed), set[str]()
    while left:
        ends = Counter(end for pair in left for end in pair if end != home)
        if not ends:
            break
        most = max(ends.values())
        equal = sorted(end for end, count in ends.items() if count == most)
        chosen.add(equal[0] if other else equal[-1])
        left = {pair for pair in left if not chosen & {*pair}}
    return frozenset(chosen)
