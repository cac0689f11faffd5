"""Sets of vectors of which none is nowhere smaller than another."""

from __future__ import annotations

import numpy as np

from router.instance import Floats


class Frontier:
    """Vectors kept so far at one vertex of a search; grows, never shrinks below what dominance needs."""

    __slots__ = ("_count", "_table")

    def __init__(self, width: int) -> None:
        self._table: Floats = np.empty((4, width))
        self._count = 0

    def admit(self, vector: Floats) -> bool:
        """Keep `vector` unless one kept before is nowhere larger; say whether it was kept."""
        kept = self._table[: self._count]
        if (kept <= vector).all(axis=1).any():
            return False
        if self._count and self._count % 64 == 0:  # worth the effort only now and then
            useful = kept[~(kept >= vector).all(axis=1)]
            self._count = len(useful)
            self._table[: self._count] = useful
        if self._count == len(self._table):
            self._table = np.concatenate([self._table, np.empty_like(self._table)])
        self._table[self._count] = vector
        self._count += 1
        return True


def undominated(table: Floats) -> list[int]:
    """Rows of `table` (p, w) that no other row equals or undercuts everywhere; of equal rows the first."""
    order = np.argsort(table.sum(axis=1), kind="stable")
    kept: list[int] = []
    for row in order:
        if not kept or not (table[kept] <= table[row]).all(axis=1).any():
            kept.append(int(row))
    return kept
