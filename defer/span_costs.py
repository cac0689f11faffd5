"""Block times that add up: what a block takes inside a partition, and what a cut costs. Pure.

A block that is measured alone pays for both its ends: a run of its own, and tensors brought into the form that
neighbours outside the engine understand (ONNX Runtime's blocked layouts, for one). Inside a partition nobody pays for
them, so the sum over many blocks is too large. Spans of consecutive blocks, measured as one partition each, tell how
much. The excess is shared out over the cuts inside the spans, as a part per cut and a part per byte that crosses it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FINEST = 8
"""Most spans at one level; stages are rarely shorter than this part of a model."""

LEAST = 0.05
"""Part of what was measured of a block alone that is left to it at least."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Span:
    """Blocks [start, stop) measured as one partition."""

    start: int
    stop: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Adding:
    """Seconds that add up: a partition of blocks [a, b) takes their sum and half of each cut at its ends.

    Attributes:
        blocks: (L,) seconds inside a partition.
        cuts: (L + 1,) seconds that a cut costs, half before and half after it; 0 at the model's ends.
    """

    blocks: tuple[float, ...]
    cuts: tuple[float, ...]

    def seconds(self, start: int, stop: int) -> float:
        """Of a partition of blocks [start, stop)."""
        return sum(self.blocks[start:stop]) + (self.cuts[start] + self.cuts[stop]) / 2


def levels(blocks: int) -> Iterator[tuple[tuple[int, int], ...]]:
    """Spans to measure, level by level: the whole model, its halves, quarters and eighths.

    Args:
        blocks: L; no span has fewer than two.
    """
    count = 1
    while count <= FINEST and 2 * count <= blocks:
        edges = [round(blocks * k / count) for k in range(count + 1)]
        yield tuple(itertools.pairwise(edges))
        count *= 2


def adding_up(alone: Sequence[float], boundary_bytes: Sequence[int], spans: Sequence[Span]) -> Adding:
    """Fit what cuts cost to the spans, and make the finest spans come out as they were measured.

    Args:
        alone: (L,) seconds of each block as a partition of its own.
        boundary_bytes: (L + 1,) bytes that cross each boundary.
        spans: What was measured of spans, coarse ones first; none where that was not possible.
    """
    blocks: Floats = np.asarray(alone, np.float64)
    cuts = np.zeros(len(blocks) + 1)
    if not spans or not np.isfinite(blocks).all():
        return Adding(tuple(blocks.tolist()), tuple(cuts.tolist()))
    # A span takes no longer than its blocks one by one; where it seems to, something else kept the machine busy.
    took = [min(span.seconds, float(blocks[span.start : span.stop].sum())) for span in spans]
    sizes = np.asarray(boundary_bytes, np.float64)
    scale = max(float(sizes.max()), 1.0)
    rows = np.array([[s.stop - s.start - 1, sizes[s.start + 1 : s.stop].sum() / scale] for s in spans])
    excess = np.array([blocks[s.start : s.stop].sum() - t for s, t in zip(spans, took, strict=True)])
    per_cut, per_byte = _least_squares(rows, excess)
    cuts[1:-1] = per_cut + per_byte * sizes[1:-1] / scale
    inside = np.maximum(blocks - (cuts[:-1] + cuts[1:]) / 2, LEAST * blocks)
    for span, seconds in zip(spans, took, strict=True):  # the finest come last and have the last word
        part = slice(span.start, span.stop)
        wanted = seconds - (cuts[span.start] + cuts[span.stop]) / 2
        total = inside[part].sum()
        if wanted > 0 and total > 0:
            inside[part] *= wanted / total
    return Adding(tuple(inside.tolist()), tuple(cuts.tolist()))


def _least_squares(rows: Floats, wanted: Floats) -> tuple[float, float]:
    """The two factors, neither below 0, whose `rows @ factors` comes nearest to what is wanted.

    Two unknowns have few ways: the better one alone, and both, as in the method of Lawson and Hanson (Solving Least
    Squares Problems, 1974, ch. 23). A dispatcher measures, and imports no
    whole library for it.

    Args:
        rows: (N, 2).
        wanted: (N,).
    """
    slopes = rows.T @ wanted
    found: Floats = np.zeros(2)
    first = int(np.argmax(slopes))
    tiny = 1e-12 * float(np.abs(slopes).max())
    if slopes[first] <= tiny:
        return 0.0, 0.0
    found[first] = slopes[first] / (rows[:, first] @ rows[:, first])
    other = 1 - first
    if rows[:, other] @ (wanted - rows @ found) > tiny:
        both = np.asarray(np.linalg.lstsq(rows, wanted, rcond=None)[0], np.float64)
        if both[first] > 0:
            found = both
        else:
            found[first], found[other] = 0.0, slopes[other] / (rows[:, other] @ rows[:, other])
    return float(found[0]), float(found[1])


def slowed(alone: Adding, together: Sequence[Span]) -> Adding:
    """The same while others work on the same machine: blocks take as much longer as their span was measured to take.

    Args:
        alone: Of a device that has the machine to itself.
        together: Spans that do not overlap, measured while the others worked; blocks outside stay as they are.
    """
    blocks = list(alone.blocks)
    for span in together:
        inside = sum(alone.blocks[span.start : span.stop])
        # Not shorter: company helps nobody.
        wanted = (
            max(span.seconds, alone.seconds(span.start, span.stop))
            - alone.seconds(span.start, span.stop)
            + inside
        )
        for number in range(span.start, span.stop) if inside > 0 else ():
            blocks[number] = alone.blocks[number] * wanted / inside
    return Adding(tuple(blocks), alone.cuts)
