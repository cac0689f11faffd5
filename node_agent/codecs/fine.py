"""`int10` and `int12`: floats as 1024 or 4096 steps of their channel's range, where 256 are too few. Pure.

Between `int8` and `float16`: int12 is as accurate on activations as float16, which spends its bits on exponents, in
three quarters of its size. A frame is, per channel (see `node_agent.codecs.int8`), the size of a step (float32) and the
step that stands for zero (uint16); then, with `-bitmap`, one bit per element that is not zero; then the elements as
steps from zero, modulo 1024 or 4096: the low bytes of all, then the high bits of all, packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from node_agent.codecs.base import (
    Array,
    as_type,
    byte_view,
    check_length,
    count,
    flat_float32,
    from_bytes,
    is_float,
    plain_bytes,
    rounding,
)
from node_agent.codecs.int8 import by_channels, pieces, steps_of
from node_agent.dtypes import storage
from node_agent.errors import CodecError

_MAGIC = np.float32(1.5 * 2**23)
"""Added to a float32 below 2²², it leaves the number, rounded to nearest, in the lowest bits."""

_STEP_BYTES = 6
"""Step and zero of one channel."""

Words = npt.NDArray[np.uint16]


class Fine:
    """See the module.

    Args:
        name: Its name.
        bits: 10 or 12.
        sparse: Whether zeros are left out.
    """

    def __init__(self, name: str, *, bits: int, sparse: bool) -> None:
        self.name = name
        self.values = f"int{bits}"
        self.most_expansion = 64 if sparse else 8
        self._bits = bits
        self._sparse = sparse

    def encode(self, array: Array) -> memoryview:
        """See `Codec.encode`."""
        if not self._applies(array.dtype) or not array.size:
            return byte_view(array)
        grouped = flat_float32(array)[0].reshape(by_channels(array.shape, _STEP_BYTES))
        steps, zeros = steps_of(grouped, self._last)
        scaled = np.zeros_like(steps)
        np.divide(np.float32(1), steps, out=scaled, where=steps > 0)
        leveled = np.empty(grouped.shape, np.uint16)
        for part in pieces(grouped.shape):
            levels = grouped[part] * scaled[part[1]]
            levels += _MAGIC
            leveled[part] = levels.view(np.uint32)
        words = leveled.reshape(-1)
        words &= self._last
        head = [
            steps.reshape(-1).astype("<f4").view(np.uint8),
            zeros.reshape(-1).astype("<u2").view(np.uint8),
        ]
        if self._sparse:
            mask = words != 0
            head.append(np.packbits(mask, bitorder="little"))
            words = words.take(np.flatnonzero(mask))
        return np.concatenate([*head, *self._packed(words)]).data

    def decode(self, frame: Any, dtype: str, shape: Sequence[int]) -> Array:
        """See `Codec.decode`."""
        elements = count(shape)
        if not self._applies(storage(dtype)) or not elements:
            return from_bytes(frame, dtype, shape)
        grouping = by_channels(shape, _STEP_BYTES)
        channels = grouping[1]
        split = _STEP_BYTES * channels
        map_bytes = -(-elements // 8) if self._sparse else 0
        held = np.frombuffer(frame, np.uint8)
        if len(held) < split + map_bytes:
            raise CodecError(f"A frame of {len(held)} bytes cannot hold {dtype}{list(shape)}.")
        steps = held[: 4 * channels].copy().view("<f4").reshape(channels, 1)
        zeros = held[4 * channels : split].copy().view("<u2").reshape(channels, 1)
        if not (np.isfinite(steps).all() and (steps >= 0).all()) or (zeros > self._last).any():
            raise CodecError(f"A frame of codec {self.name} has steps that are no sizes.")
        if self._sparse:
            bits = np.unpackbits(held[split : split + map_bytes], bitorder="little")
            if bits[elements:].any():
                raise CodecError(f"A bitmap of {elements} elements marks more.")
            places = np.flatnonzero(bits.view(np.bool_))
            words = np.zeros(elements, np.uint16)
            words[places] = self._unpacked(held[split + map_bytes :], places.size, dtype, shape)
        else:
            words = self._unpacked(held[split:], elements, dtype, shape)
        words = words.reshape(grouping)
        values = np.empty(grouping, np.float32)
        below = bool(zeros.any())  # nothing is below zero behind a ReLU
        with np.errstate(over="ignore"):
            for part in pieces(grouping):
                if below:
                    # Steps from the least value, then from zero: they wrap around.
                    from_least = (words[part] + zeros[part[1]]) & self._last
                    np.subtract(from_least, zeros[part[1]], out=values[part], dtype=np.float32)
                    values[part] *= steps[part[1]]
                else:
                    np.multiply(words[part], steps[part[1]], out=values[part], dtype=np.float32)
        return as_type(values.reshape(-1), dtype, shape)

    def bound(self, array: Array) -> Array:
        """See `Codec.bound`: half a step of the element's channel."""
        if not self._applies(array.dtype) or not array.size:
            return np.zeros(())
        grouped = flat_float32(array)[0].reshape(by_channels(array.shape, _STEP_BYTES))
        steps = np.broadcast_to(steps_of(grouped, self._last)[0], grouped.shape).reshape(array.shape)
        return 0.501 * steps.astype(np.float64) + rounding(array)

    def most_bytes(self, dtype: str, shape: Sequence[int]) -> int:
        """See `Codec.most_bytes`."""
        elements = count(shape)
        if not self._applies(storage(dtype)) or not elements:
            return plain_bytes(dtype, shape)
        head = _STEP_BYTES * by_channels(shape, _STEP_BYTES)[1] + (-(-elements // 8) if self._sparse else 0)
        return head + self._packed_bytes(elements)

    @property
    def _last(self) -> int:
        """Number of the last step, and the mask of a word."""
        return (1 << self._bits) - 1

    @property
    def _per_byte(self) -> int:
        """Elements whose high bits share a byte."""
        return 8 // (self._bits - 8)

    def _applies(self, held: np.dtype[Any]) -> bool:
        return is_float(held) and held.itemsize > 2

    def _packed_bytes(self, elements: int) -> int:
        return elements + -(-elements // self._per_byte)

    def _packed(self, words: Words) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Low bytes, and high bits: each byte has those of elements as far apart as there are bytes."""
        high = (words >> 8).astype(np.uint8)
        high = np.concatenate([high, np.zeros(-len(high) % self._per_byte, np.uint8)]).reshape(
            self._per_byte, -1
        )
        packed = high[0].copy()
        for number in range(1, self._per_byte):
            packed |= high[number] << (number * (self._bits - 8))
        return words.astype(np.uint8), packed

    def _unpacked(
        self, held: npt.NDArray[np.uint8], elements: int, dtype: str, shape: Sequence[int]
    ) -> Words:
        check_length(held, self._packed_bytes(elements), dtype, shape)
        packed = held[elements:]
        high = np.empty((self._per_byte, len(packed)), np.uint8)
        for number in range(self._per_byte):
            high[number] = (packed >> (number * (self._bits - 8))) & ((1 << (self._bits - 8)) - 1)
        words: Words = high.reshape(-1)[:elements].astype(np.uint16)
        words <<= 8
        words |= held[:elements]
        return words
