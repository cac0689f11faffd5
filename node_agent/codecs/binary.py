"""`bit`: one bit per element, for tensors of at most two values, such as binarised activations. Lossless. Pure.

A frame is the two values, then the bits: set where an element is the second. Elements are compared by their bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from node_agent.codecs.base import Array, Lossless, byte_view, check_length, count, from_bytes, plain_bytes
from node_agent.codecs.bitmap import WORDS
from node_agent.dtypes import storage
from node_agent.errors import CodecError


class Bit(Lossless):
    """See the module."""

    name = "bit"
    most_expansion = 64

    def encode(self, array: Array) -> memoryview:
        """See `Codec.encode`.

        Raises:
            CodecError: The tensor has more than two values.
        """
        plain = byte_view(array)
        word = WORDS.get(array.dtype.itemsize)
        if word is None or not len(plain):
            return plain
        elements = np.frombuffer(plain, word)
        # Most tensors are turned down by their first few elements.
        if np.unique(elements[:256]).size > 2:
            raise CodecError("Codec bit takes tensors of two values; this one has more.")
        mask = elements != elements[0]
        second = elements[int(np.argmax(mask))]
        if not np.array_equal(mask, elements == second) and second != elements[0]:
            raise CodecError("Codec bit takes tensors of two values; this one has more.")
        pair = np.array([elements[0], second], word)
        return np.concatenate([pair.view(np.uint8), np.packbits(mask, bitorder="little")]).data

    def decode(self, frame: Any, dtype: str, shape: Sequence[int]) -> Array:
        """See `Codec.decode`."""
        word = WORDS.get(storage(dtype).itemsize)
        if word is None or not count(shape):
            return from_bytes(frame, dtype, shape)
        check_length(frame, self.most_bytes(dtype, shape), dtype, shape)
        held = np.frombuffer(frame, np.uint8)
        pair = held[: 2 * word.itemsize].copy().view(word)
        bits = np.unpackbits(held[2 * word.itemsize :], bitorder="little", count=count(shape))
        return np.take(pair, bits).view(storage(dtype)).reshape(tuple(shape))

    def most_bytes(self, dtype: str, shape: Sequence[int]) -> int:
        """See `Codec.most_bytes`."""
        word, elements = WORDS.get(storage(dtype).itemsize), count(shape)
        if word is None or not elements:
            return plain_bytes(dtype, shape)
        return 2 * word.itemsize + -(-elements // 8)
