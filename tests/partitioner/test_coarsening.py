import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

import partitioner
from partitioner import Block, BlockChain, Boundary, coarsen


def make_chain(flops, nbytes, weights):
    blocks = tuple(
        Block(i, i + 1, f"b{i}", ("Op",), work, (f"w{w}",), 10, 7 * i)
        for i, (work, w) in enumerate(zip(flops, weights, strict=True))
    )
    boundaries = tuple(Boundary(i, (f"t{i}",), size) for i, size in enumerate(nbytes))
    sizes = {f"w{w}": 10 for w in weights}
    return BlockChain("m", "", (), (), blocks, boundaries, {}, {}, {}, sizes, sum(sizes.values()))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_properties(data):
    count = data.draw(st.integers(1, 30))
    chain = make_chain(
        data.draw(st.lists(st.integers(0, 100), min_size=count, max_size=count)),
        data.draw(st.lists(st.integers(0, 50), min_size=count + 1, max_size=count + 1)),
        data.draw(st.lists(st.integers(0, 5), min_size=count, max_size=count)),
    )
    limit = data.draw(st.integers(1, 35))
    coarse = coarsen(chain, limit)
    assert 1 <= len(coarse.blocks) <= limit
    assert set(coarse.positions) <= set(chain.positions)
    assert [b.start for b in coarse.blocks] == [b.position for b in coarse.boundaries[:-1]]
    assert [b.stop for b in coarse.blocks] == [b.position for b in coarse.boundaries[1:]]
    assert coarse.flops == chain.flops
    assert coarse.weight_bytes_of(0, len(coarse.blocks)) == chain.weight_bytes_of(0, count)
    for block in coarse.blocks:
        inside = chain.blocks[block.start : block.stop]
        assert block.weight_bytes == chain.weight_bytes_of(block.start, block.stop)
        assert block.activation_bytes == max(b.activation_bytes for b in inside)
        assert len(block.op_types) == len(inside)
    assert coarsen(coarse, limit).positions == coarsen(coarse, limit).positions


def test_the_cheap_one_of_two_near_boundaries_stays():
    chain = make_chain([100, 0, 100, 0, 100], [9, 8, 2, 8, 3, 9], range(5))
    assert coarsen(chain, 3).positions == (2, 4)


def test_at_least_one_block():
    with pytest.raises(ValueError, match="at least one"):
        coarsen(make_chain([1], [1, 1], [0]), 0)


def test_residual_block_ends_survive(build):
    """A chain of bottlenecks: inside a block two tensors cross, at its end one."""
    build.input("x", ["N", 16, 8, 8], TensorProto.FLOAT)
    previous = "x"
    for i in range(16):
        build.op("Conv", previous, build.weight(f"a{i}", (8, 16, 1, 1)), out=f"ca{i}")
        build.op("Relu", f"ca{i}", out=f"ra{i}")
        build.op("Conv", f"ra{i}", build.weight(f"b{i}", (8, 8, 3, 3)), out=f"cb{i}", pads=[1] * 4)
        build.op("Relu", f"cb{i}", out=f"rb{i}")
        build.op("Conv", f"rb{i}", build.weight(f"c{i}", (16, 8, 1, 1)), out=f"cc{i}")
        build.op("Add", f"cc{i}", previous, out=f"s{i}")
        previous = build.op("Relu", f"s{i}", out=f"r{i}")
    build.output(previous)
    chain = partitioner.analyze(build.model())
    ends = {boundary.position for boundary in chain.boundaries if len(boundary.tensors) == 1}
    for limit in (64, 32, 20):
        kept = set(partitioner.coarsen(chain, limit).positions)
        after_each_block = [{p for p in ends if p in (7 * i + 6, 7 * i + 7)} for i in range(15)]
        assert all(kept & choices for choices in after_each_block), limit
