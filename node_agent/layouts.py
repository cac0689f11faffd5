"""How a convolution's tensors lie in memory: plain, or in blocks of channels as a processor's vectors are wide.

A tensor of shape [N, C, H, W] in blocks of b channels lies as [N, C/b, H, W, b]: b channels of one pixel side by side.
Where both neighbours compute on it so, it is handed over so, and neither turns it round. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from node_agent.messages import TensorSpec

Array = npt.NDArray[Any]

MOST_BLOCK = 64
"""Channels of the widest block that an agent takes."""


def fits(spec: TensorSpec, block: int) -> bool:
    """Whether a tensor can lie in blocks of so many channels: four dimensions of float32, the channels' a multiple."""
    if spec.dtype != "float32" or len(spec.shape) != 4 or not 1 < block <= MOST_BLOCK:
        return False
    channels = spec.shape[1]
    return isinstance(channels, int) and channels > 0 and channels % block == 0


def channel_blocks_of(specs: Iterable[TensorSpec]) -> dict[str, int]:
    """Channels per block of those tensors that are in blocks."""
    return {spec.name: spec.channel_block for spec in specs if spec.channel_block}


def to_blocks(array: Array, block: int) -> Array:
    """A plain tensor's elements in blocks; its shape stays [N, C, H, W]."""
    n, c, h, w = array.shape
    turned = array.reshape(n, c // block, block, h, w).transpose(0, 1, 3, 4, 2)
    return np.ascontiguousarray(turned).reshape(array.shape)


def to_plain(array: Array, block: int) -> Array:
    """The elements of a tensor in blocks in their plain order."""
    n, c, h, w = array.shape
    turned = array.reshape(n, c // block, h, w, block).transpose(0, 1, 4, 2, 3)
    return np.ascontiguousarray(turned).reshape(array.shape)
