"""What agents are given to measure: a model cut at every boundary that planning may use, and into spans of blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from defer.hops import Part
from defer.parts import write_parts
from defer.span_costs import levels

if TYPE_CHECKING:
    from defer.precision import Ranges
    from partitioner import BlockChain


class Pieces(msgspec.Struct, frozen=True):
    """What agents are given to measure, in one precision: a partition per block, and one per span of `levels`."""

    blocks: tuple[Part, ...]
    spans: tuple[Part, ...]


Write = Callable[[Sequence[str]], Mapping[str, Pieces]]
"""Has the model cut for measuring, in each of some precisions; asked at most once, and only for what is not known."""


def write_pieces(
    model: Path, chain: BlockChain, work: Path, precisions: Iterable[str], ranges: Ranges | None
) -> dict[str, Pieces]:
    """Cut a model at every boundary of its chain, and into longer and longer spans.

    Args:
        model: The ONNX file.
        chain: Its blocks.
        work: Directory for the files.
        precisions: What the devices compute in.
        ranges: What devices that quantise need to know, see `defer.precision`.

    Raises:
        UnsupportedPrecision: The model cannot be written in one of the precisions.
    """
    positions = tuple(boundary.position for boundary in chain.boundaries)

    def written(cuts: Sequence[int], precision: str) -> Iterable[Part]:
        each = (precision,) * (len(cuts) + 1)
        return (made.part for made in write_parts(model, chain, cuts, work, each, ranges))

    return {
        precision: Pieces(
            tuple(written(positions[1:-1], precision)),
            tuple(
                part
                for level in levels(len(positions) - 1)
                for part in written([positions[stop] for _, stop in level[:-1]], precision)
            ),
        )
        for precision in precisions
    }
