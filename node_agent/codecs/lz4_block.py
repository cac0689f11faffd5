"""LZ4 behind a codec whose frames have one possible length: `lz4`, `shuffle-lz4`, `int8-lz4` and the like. Pure.

A frame is one LZ4 block (https://github.com/lz4/lz4/blob/dev/doc/lz4_Block_format.md). The bytes in it may be
shuffled first: all first bytes of the elements, then all second ones, because the exponents of neighbouring floats
resemble each other and their mantissas do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lz4.block
import numpy as np
import numpy.typing as npt

from node_agent.codecs.base import Array, Sized, from_bytes
from node_agent.errors import CodecError

_LARGEST = 0x7E000000
"""LZ4_MAX_INPUT_SIZE of lz4.h."""

_STRETCH = 255
"""A block's sequence stretches a match by at most 255 bytes per byte."""

Bytes = npt.NDArray[np.uint8]


class Lz4:
    """Compresses another codec's frames.

    Args:
        name: The name of both together.
        inner: Whose frames are compressed.
        width: Bytes of an element in the inner frame, which are shuffled; 1 leaves them as they are.
    """

    def __init__(self, name: str, inner: Sized, width: Callable[[str], int] = lambda _: 1) -> None:
        self.name = name
        self.values = inner.values
        self.most_expansion = _STRETCH * inner.most_expansion
        self._inner = inner
        self._width = width

    def encode(self, array: Array) -> bytes:
        """See `Codec.encode`."""
        plain = self._inner.encode(array)
        if len(plain) > _LARGEST:
            raise CodecError(f"LZ4 takes at most {_LARGEST} bytes at once, this tensor has {len(plain)}.")
        if not len(plain):
            return b""
        return compress(shuffled(plain, self._width(array.dtype.name)))

    def decode(self, frame: Any, dtype: str, shape: Sequence[int]) -> Array:
        """See `Codec.decode`."""
        expected = self._inner.exact_bytes(dtype, shape)
        if expected == 0:
            return from_bytes(frame, dtype, shape)
        plain = decompress(frame, expected)
        return self._inner.decode(restored(plain, self._width(dtype)), dtype, shape)

    def bound(self, array: Array) -> Array:
        """See `Codec.bound`."""
        return self._inner.bound(array)

    def most_bytes(self, dtype: str, shape: Sequence[int]) -> int:
        """See `Codec.most_bytes`; LZ4_COMPRESSBOUND of lz4.h."""
        plain = self._inner.exact_bytes(dtype, shape)
        return plain + plain // 255 + 16


def compress(plain: Any) -> bytes:
    """One LZ4 block."""
    return bytes(lz4.block.compress(plain, store_size=False))


def decompress(frame: Any, expected: int) -> bytes:
    """The `expected` bytes in an LZ4 block; nothing is allocated for a block that cannot hold them.

    Raises:
        CodecError: It does not hold exactly so many.
    """
    if expected > _LARGEST or expected > _STRETCH * len(frame):
        raise CodecError(f"An LZ4 frame of {len(frame)} bytes cannot hold {expected} bytes.")
    try:
        plain = bytes(lz4.block.decompress(frame, uncompressed_size=expected))
    except (lz4.block.LZ4BlockError, ValueError, OverflowError) as error:
        raise CodecError(f"An LZ4 frame of {len(frame)} bytes is damaged: {error}.") from None
    if len(plain) != expected:
        raise CodecError(f"An LZ4 frame holds {len(plain)} bytes in place of {expected}.")
    return plain


def shuffled(plain: Any, width: int) -> Any:
    """The first byte of every element, then the second one of every element, and so on."""
    if width == 1:
        return plain
    elements: Bytes = np.frombuffer(plain, np.uint8).reshape(-1, width)
    return np.ascontiguousarray(elements.T).reshape(-1).data


def restored(planes: Any, width: int) -> Any:
    """What `shuffled` made `planes` of."""
    if width == 1:
        return planes
    grouped: Bytes = np.frombuffer(planes, np.uint8).reshape(width, -1)
    return np.ascontiguousarray(grouped.T).reshape(-1).data
