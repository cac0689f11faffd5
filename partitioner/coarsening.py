"""Fewer boundaries, the ones a planner would pick.

A planner chooses few cuts. It wants each to be cheap to send, and wants one near every share of the work, so
that parts can be balanced against devices, and near every share of the weights, so that they fit.
"""

from __future__ import annotations

import heapq
from itertools import pairwise

from partitioner.chain import Block, BlockChain

_SWAY = 1.25  # bytes matter up to this ratio: more, and whole layers of wide maps become one block
_NEAR = 0.25  # of an average block: boundaries this close in extent offer the same balance


def coarsen(chain: BlockChain, max_blocks: int) -> BlockChain:
    """Merge blocks until there are at most ``max_blocks``.

    First a boundary goes that has a near neighbour with no more bytes: whatever a plan does with the one it
    does as well with the other. Then the boundary goes whose loss hurts least: the smaller the merged block,
    and the more bytes the boundary carries compared with its neighbours, the sooner. Positions keep their
    meaning.

    Args:
        chain: from :func:`analyze` or coarsened before.
        max_blocks: at least 1.

    Raises:
        ValueError: if ``max_blocks`` is below 1.
    """
    if max_blocks < 1:
        raise ValueError(f"max_blocks is {max_blocks}; a chain has at least one block")
    extent = _extents(chain)
    kept = (
        _undominated(chain, extent, _NEAR / max_blocks) if len(chain.blocks) > 1 else [0, len(chain.blocks)]
    )
    kept = _most_valuable(chain, extent, kept, max_blocks)
    return _merge(chain, kept)


def _extents(chain: BlockChain) -> list[float]:
    """How much of the model lies before each boundary: the mean of its shares in operations, weights and ops."""
    flops, weights = max(1, chain.flops), max(1, chain.weight_bytes)
    ops = max(1, chain.blocks[-1].stop)
    seen: set[str] = set()
    extents = [0.0]
    for block in chain.blocks:
        fresh = [name for name in block.weights if name not in seen]
        seen.update(fresh)
        share = block.flops / flops + sum(chain.weight_sizes[name] for name in fresh) / weights
        # Ops count a little, so that a stretch without operations or weights still has a length.
        extents.append(extents[-1] + 0.45 * share + 0.1 * (block.stop - block.start) / ops)
    return extents


def _undominated(chain: BlockChain, extent: list[float], near: float) -> list[int]:
    """Boundaries without a neighbour at most ``near`` away that has fewer bytes (or as many, and fewer tensors).

    Of equals the last one stays: after the activation function, which engines fuse with the layer before it, and whose
    zeros compress.
    """

    def cost(index: int) -> tuple[int, int, int]:
        boundary = chain.boundaries[index]
        return boundary.nbytes, len(boundary.tensors), -index

    inner = range(1, len(chain.blocks))
    kept: set[int] = set()
    gone: set[int] = set()
    for index in sorted(inner, key=cost):
        if index in gone:
            continue
        kept.add(index)
        for step in (-1, 1):
            other = index + step
            while 0 < other < len(chain.blocks) and abs(extent[other] - extent[index]) <= near:
                if other not in kept:
                    gone.add(other)
                other += step
    return [0, *sorted(kept), len(chain.blocks)]


def _most_valuable(chain: BlockChain, extent: list[float], kept: list[int], max_blocks: int) -> list[int]:
    """Remove the boundary of least value until few enough are left."""
    following = dict(pairwise(kept))
    preceding = {right: left for left, right in following.items()}

    def value(index: int) -> float:
        left, right = preceding[index], following[index]
        length = extent[right] - extent[left]
        rivals = [chain.boundaries[other].nbytes for other in (left, right) if 0 < other < len(chain.blocks)]
        cheapest = min(rivals, default=chain.boundaries[index].nbytes)
        ratio = (1 + cheapest) / (1 + chain.boundaries[index].nbytes)
        # Half the bytes are worth as much as four times the length; within limits, or one boundary that
        # carries next to nothing would swallow all others however far away they are.
        return length * min(max(ratio, 1 / _SWAY), _SWAY) ** 2

    heap = [(value(index), index) for index in kept[1:-1]]
    heapq.heapify(heap)
    current = {index: worth for worth, index in heap}
    while len(current) > max_blocks - 1:
        worth, index = heapq.heappop(heap)
        if current.get(index) != worth:
            continue
        del current[index]
        left, right = preceding[index], following[index]
        following[left], preceding[right] = right, left
        for other in (left, right):
            if other in current:
                current[other] = value(other)
                heapq.heappush(heap, (current[other], other))
    return [0, *sorted(current), len(chain.blocks)]


def _merge(chain: BlockChain, kept: list[int]) -> BlockChain:
    blocks = tuple(_merged(chain, chain.blocks[left:right]) for left, right in pairwise(kept) if right > left)
    boundaries = tuple(chain.boundaries[index] for index in kept)
    names = {name for boundary in boundaries for name in boundary.tensors}
    return BlockChain(
        model=chain.model,
        digest=chain.digest,
        inputs=chain.inputs,
        outputs=chain.outputs,
        blocks=blocks,
        boundaries=boundaries,
        tensors={name: tensor for name, tensor in chain.tensors.items() if name in names},
        tensor_bytes={name: nbytes for name, nbytes in chain.tensor_bytes.items() if name in names},
        bindings=chain.bindings,
        weight_sizes=chain.weight_sizes,
        weight_bytes=chain.weight_bytes,
    )


def _merged(chain: BlockChain, blocks: tuple[Block, ...]) -> Block:
    if len(blocks) == 1:
        return blocks[0]
    weights = tuple(dict.fromkeys(name for block in blocks for name in block.weights))
    first, last = blocks[0].name.split("..")[0], blocks[-1].name.split("..")[-1]
    return Block(
        start=blocks[0].start,
        stop=blocks[-1].stop,
        name=f"{first}..{last}",
        op_types=tuple(op_type for block in blocks for op_type in block.op_types),
        flops=sum(block.flops for block in blocks),
        weights=weights,
        weight_bytes=sum(chain.weight_sizes[name] for name in weights),
        activation_bytes=max(block.activation_bytes for block in blocks),
    )
