"""Blocks of channels: where each element goes, and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.epochs import partition_bytes
from node_agent.layouts import MOST_BLOCK, fits, to_blocks, to_plain
from node_agent.messages import FileRef, HopSpec, Load, PeerRef, TensorSpec

SIZES = st.integers(1, 4)


@given(SIZES, SIZES, SIZES, SIZES, st.sampled_from([2, 4, 8, 16]))
def test_every_element_goes_where_the_layout_says_and_comes_back(n, groups, h, w, block) -> None:
    shape = (n, groups * block, h, w)
    plain = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    turned = to_blocks(plain, block)
    assert turned.shape == shape
    assert turned.flags.c_contiguous
    inner = turned.reshape(n, groups, h, w, block)
    for at in np.ndindex(shape):
        image, channel, row, column = at
        assert inner[image, channel // block, row, column, channel % block] == plain[at]
    np.testing.assert_array_equal(to_plain(turned, block), plain)


@pytest.mark.parametrize(
    ("dtype", "shape", "block", "so"),
    [
        ("float32", ("n", 32, "h", "w"), 16, True),
        ("float32", (1, 24, 3, 3), 8, True),
        ("float32", (1, 24, 3, 3), 16, False),
        ("float32", (1, "c", 3, 3), 16, False),
        ("float32", (1, 0, 3, 3), 16, False),
        ("float32", (1, 32, 3), 16, False),
        ("float16", (1, 32, 3, 3), 16, False),
        ("float32", (1, 32, 3, 3), 1, False),
        ("float32", (1, 32, 3, 3), -16, False),
        ("float32", (1, 4 * MOST_BLOCK, 3, 3), 2 * MOST_BLOCK, False),
    ],
)
def test_what_can_lie_in_blocks(dtype, shape, block, so) -> None:
    assert fits(TensorSpec("x", dtype, shape), block) is so


def test_a_partition_in_other_blocks_takes_memory_of_its_own() -> None:
    """An agent holds it once for all that load it alike, and a session for each layout."""
    graph, weights = FileRef("a" * 64, 10, ".onnx"), (FileRef("b" * 64, 1000, ".bin"),)

    def load(block: int) -> Load:
        specs = (TensorSpec("x", "float32", (1, 32, 3, 3), block),)
        return Load(1, 1, "m", (HopSpec(0, PeerRef("a"), PeerRef("b"), graph, weights, specs, specs),))

    assert partition_bytes([load(0), load(0)]) == partition_bytes([load(16), load(16)]) == 1010
    assert partition_bytes([load(0), load(16)]) == 2020
