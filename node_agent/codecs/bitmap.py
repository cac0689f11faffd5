"""One bit per element, set where it is not zero, then the elements that are not. Lossless by itself. Pure.

`bitmap` does so with the tensor itself, `int8-bitmap` and the like with what another codec made of it. Pays from about
one zero in 32 float32 or one in eight bytes on, and most where a ReLU or pruning left few values (Zen, arXiv
2309.13254); where values are noise it is smaller and faster than LZ4. An element is zero when all its bits are, so
-0.0 and NaN come back as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from node_agent.codecs.base import Array, Sized, from_bytes
from node_agent.errors import CodecError

WORDS: dict[int, np.dtype[np.unsignedinteger[Any]]] = {
    1: np.dtype("<u1"),
    2: np.dtype("<u2"),
    4: np.dtype("<u4"),
    8: np.dtype("<u8"),
}
"""Unsigned integers of an element's width, to compare bits. Complex128 has none and goes as it is."""


class Bitmap:
    """Leaves the zeros out of another codec's frames.

    Args:
        name: The name of both together.
        inner: Whose frames they are.
        width: Bytes of an element in the inner frame.
    """

    def __init__(self, name: str, inner: Sized, width: Callable[[str], int]) -> None:
        self.name = name
        self.values = inner.values
        # Nothing but zeros: one bit for an element of at most eight bytes, which the inner codec may have narrowed.
        self.most_expansion = 64 * inner.most_expansion
        self._inner = inner
        self._width = width

    def encode(self, array: Array) -> memoryview:
        """See `Codec.encode`."""
        plain = memoryview(self._inner.encode(array))
        word = WORDS.get(self._width(array.dtype.name))
        if word is None or not len(plain):
            return plain
        elements = np.frombuffer(plain, word)
        mask = elements != 0
        held = elements.take(np.flatnonzero(mask))
        return np.concatenate([np.packbits(mask, bitorder="little"), held.view(np.uint8)]).data

    def decode(self, frame: Any, dtype: str, shape: Sequence[int]) -> Array:
        """See `Codec.decode`."""
        word = WORDS.get(self._width(dtype))
        expected = self._inner.exact_bytes(dtype, shape)
        if word is None or not expected:
            return self._inner.decode(frame, dtype, shape) if expected else from_bytes(frame, dtype, shape)
        elements = expected // word.itemsize
        map_bytes = -(-elements // 8)
        if len(frame) < map_bytes:
            raise CodecError(f"A bitmap of {elements} elements takes {map_bytes} bytes, not {len(frame)}.")
        held = np.frombuffer(frame, np.uint8)
        bits = np.unpackbits(held[:map_bytes], bitorder="little")
        places = np.flatnonzero(bits.view(np.bool_))
        if len(frame) != map_bytes + places.size * word.itemsize or bits[elements:].any():
            raise CodecError(f"A bitmap with {places.size} values does not take {len(frame)} bytes.")
        plain = np.zeros(elements, word)
        plain[places] = held[map_bytes:].copy().view(word)
        return self._inner.decode(plain.view(np.uint8).data, dtype, shape)

    def bound(self, array: Array) -> Array:
        """See `Codec.bound`."""
        return self._inner.bound(array)

    def most_bytes(self, dtype: str, shape: Sequence[int]) -> int:
        """See `Codec.most_bytes`."""
        plain = self._inner.exact_bytes(dtype, shape)
        return plain + -(-plain // (8 * self._width(dtype)))
