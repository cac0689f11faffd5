"""Which blocks planning works with: those that were measured, else a chain made coarse enough to plan and to measure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from defer.documents.profile import CostProfile
from defer.errors import InvalidDocument

if TYPE_CHECKING:
    from partitioner import Block, BlockChain

PLANNING_BLOCKS: Final = 64
"""Blocks that planning works with unless told otherwise: fine enough for good plans, few enough to measure each."""


def planning_chain(chain: BlockChain, blocks: int, profile: CostProfile | None) -> BlockChain:
    """The chain with the blocks of the profile, or else with at most `blocks`.

    Raises:
        InvalidDocument: The profile's positions are not boundaries of the chain.
    """
    import partitioner

    if profile is not None and profile.digest == chain.digest:
        return regroup(chain, profile.positions)
    return chain if len(chain.blocks) <= blocks else partitioner.coarsen(chain, blocks)


def regroup(chain: BlockChain, positions: Sequence[int]) -> BlockChain:
    """The same chain with fewer boundaries: only those at `positions`.

    Args:
        chain: Blocks, finer or the same.
        positions: Op positions to keep, from 0 to the number of ops, rising.

    Raises:
        InvalidDocument: A position is not a boundary of the chain.
    """
    index = {boundary.position: number for number, boundary in enumerate(chain.boundaries)}
    missing = [position for position in positions if position not in index]
    ends = (chain.boundaries[0].position, chain.boundaries[-1].position)
    if missing or (*positions[:1], *positions[-1:]) != ends or list(positions) != sorted(set(positions)):
        raise InvalidDocument(
            f"positions {_few(missing or positions)} do not fit the model's {ends[1]} ops",
            hint="the document is of another model or another version of defer; make it again",
        )
    keep = [index[position] for position in positions]
    blocks = tuple(_merged(chain, start, stop) for start, stop in itertools.pairwise(keep))
    return replace(chain, blocks=blocks, boundaries=tuple(chain.boundaries[number] for number in keep))


def _few(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:4])) + (", …" if len(numbers) > 4 else "")


def _merged(chain: BlockChain, start: int, stop: int) -> Block:
    """Blocks [start, stop) as one."""
    parts = chain.blocks[start:stop]
    first, last = parts[0], parts[-1]
    return replace(
        first,
        stop=last.stop,
        name=first.name if len(parts) == 1 else f"{first.name.split('..')[0]}..{last.name.split('..')[-1]}",
        op_types=tuple(op for part in parts for op in part.op_types),
        flops=sum(part.flops for part in parts),
        weights=tuple(dict.fromkeys(name for part in parts for name in part.weights)),
        weight_bytes=chain.weight_bytes_of(start, stop),
        activation_bytes=max(part.activation_bytes for part in parts),
    )
