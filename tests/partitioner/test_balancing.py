"""The dynamic programme against every possible choice."""

from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitioner import Block, BlockChain, Boundary, balance
from partitioner.errors import TooManyParts


def make_chain(flops, nbytes):
    blocks = tuple(
        Block(2 * i, 2 * i + 2, f"b{i}", ("Op",), work, (f"w{i}",), 0, 0) for i, work in enumerate(flops)
    )
    boundaries = tuple(Boundary(2 * i, (f"t{i}",), size) for i, size in enumerate(nbytes))
    return BlockChain(
        "m", "", (), (), blocks, boundaries, {}, {}, {}, {f"w{i}": 0 for i in range(len(flops))}, 0
    )


def cost(flops, nbytes, cuts):
    edges = [0, *cuts, len(flops)]
    return max(sum(flops[a:b]) for a, b in pairwise(edges)), sum(nbytes[cut] for cut in cuts)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_exact(data):
    flops = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=9))
    nbytes = data.draw(st.lists(st.integers(1, 9), min_size=len(flops) + 1, max_size=len(flops) + 1))
    parts = data.draw(st.integers(1, len(flops)))
    positions = balance(make_chain(flops, nbytes), parts)
    cuts = [position // 2 for position in positions]
    assert len(cuts) == parts - 1
    assert all(a < b for a, b in pairwise([0, *cuts, len(flops)]))
    best = min(cost(flops, nbytes, choice) for choice in combinations(range(1, len(flops)), parts - 1))
    assert cost(flops, nbytes, cuts) == best


def test_too_many_parts():
    with pytest.raises(TooManyParts, match="2 blocks"):
        balance(make_chain([1, 1], [1, 1, 1]), 3)
    with pytest.raises(ValueError, match="at least 1"):
        balance(make_chain([1, 1], [1, 1, 1]), 0)
