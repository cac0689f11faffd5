"""`raw`: the array's bytes in C order, little endian. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from node_agent.codecs.base import Array, Lossless, byte_view, from_bytes, plain_bytes


class Raw(Lossless):
    """See the module; no tensor is copied unless it must be."""

    name = "raw"
    most_expansion = 1

    def encode(self, array: Array) -> memoryview:
        """See `Codec.encode`; shares the array's memory where it is contiguous."""
        return byte_view(array)

    def decode(self, frame: Any, dtype: str, shape: Sequence[int]) -> Array:
        """See `Codec.decode`; shares the frame's memory where it is aligned."""
        return from_bytes(frame, dtype, shape)

    def most_bytes(self, dtype: str, shape: Sequence[int]) -> int:
        """See `Codec.most_bytes`."""
        return plain_bytes(dtype, shape)

    exact_bytes = most_bytes
    """Every frame has this length."""
