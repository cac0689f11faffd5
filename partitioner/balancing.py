"""Equal shares of the work, exactly."""

from __future__ import annotations

from collections import deque
from itertools import accumulate

from partitioner.chain import BlockChain
from partitioner.errors import TooManyParts


def balance(chain: BlockChain, parts: int) -> tuple[int, ...]:
    """Positions that cut a chain into parts of nearly equal work.

    Minimises the operations of the largest part; among all cuts that reach this, the sum of bytes across the
    cuts; among those, the earliest cuts. Exact, in O(parts · L + L · log flops).

    Args:
        chain: its boundaries are the candidates.
        parts: number of parts, each at least one block.

    Returns:
        ``parts - 1`` increasing positions.

    Raises:
        TooManyParts: if the chain has fewer blocks.
        ValueError: if ``parts`` is below 1.
    """
    blocks = len(chain.blocks)
    if parts < 1:
        raise ValueError(f"parts is {parts}; it must be at least 1")
    if parts > blocks:
        raise TooManyParts(
            f"model {chain.model!r} has {blocks} blocks that can be separated, so it cannot be cut into {parts} parts",
            hint=f"ask for at most {blocks}",
        )
    before = [0, *accumulate(block.flops for block in chain.blocks)]
    limit = _least_limit(before, parts)
    return tuple(chain.boundaries[index].position for index in _cheapest_cuts(chain, before, parts, limit))


def _least_limit(before: list[int], parts: int) -> int:
    """Smallest size of the largest of ``parts`` parts: bisection over an integer, greedy as the test."""
    low, high = 0, before[-1]
    while low < high:
        middle = (low + high) // 2
        if _parts_needed(before, middle) <= parts:
            high = middle
        else:
            low = middle + 1
    return low


def _parts_needed(before: list[int], limit: int) -> int:
    needed, start = 1, 0
    for index in range(1, len(before)):
        if before[index] - before[index - 1] > limit:
            return len(before)
        if before[index] - start > limit:
            needed += 1
            start = before[index - 1]
    return needed


def _cheapest_cuts(chain: BlockChain, before: list[int], parts: int, limit: int) -> list[int]:
    """Boundaries of exactly ``parts`` parts within ``limit`` that carry the fewest bytes in all.

    Dynamic programme over (parts so far, end of the last part), each row a sliding minimum: the start of a
    part that ends at a given boundary may not lie before the first that keeps it within the limit.
    """
    blocks = len(before) - 1
    price = [boundary.nbytes for boundary in chain.boundaries]
    best: list[float] = [0.0] + [float("inf")] * blocks
    choices: list[list[int]] = []
    for _ in range(parts):
        row: list[float] = [float("inf")] * (blocks + 1)
        choice = [0] * (blocks + 1)
        window: deque[int] = deque()
        for end in range(1, blocks + 1):
            start = end - 1
            while window and best[window[-1]] > best[start]:
                window.pop()
            window.append(start)
            while window and before[end] - before[window[0]] > limit:
                window.popleft()
            if window and best[window[0]] < float("inf"):
                choice[end] = window[0]
                row[end] = best[window[0]] + (price[end] if end < blocks else 0)
        choices.append(choice)
        best = row
    cuts: list[int] = []
    end = blocks
    for choice in reversed(choices[1:]):
        end = choice[end]
        cuts.append(end)
    return cuts[::-1]
