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
from node_agent.codecs.int8 import by_channels, quantise, read_steps, restored, steps_of
from node_agent.dtypes import storage
from node_agent.errors import CodecError

_STEP_BYTES = 6
"""Step and zero of one channel."""

Words = npt.NDArray[np.uint16]
Bytes = npt.NDArray[np.uint8]


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
        grouped = flat_float32(array).reshape(by_channels(array.shape, _STEP_BYTES))
        steps, rates, zeros = steps_of(grouped, self._last)
        leveled = np.empty(grouped.shape, np.uint16)
        quantise(grouped, rates, leveled)
        # Steps below zero have bits above the last one, which nothing takes along; zero has none.
        words = leveled.reshape(-1)
        split = start = _STEP_BYTES * steps.size
        if self._sparse:
            mask = words != 0
            marks = np.packbits(mask, bitorder="little")
            words = words.take(np.flatnonzero(mask))
            start += marks.size
        frame = np.empty(start + self._packed_bytes(words.size), np.uint8)
        frame[: 4 * steps.size].view("<f4")[:] = steps[:, 0]
        frame[4 * steps.size : split].view("<u2")[:] = zeros
        if self._sparse:
            frame[split:start] = marks
        self._pack(words, frame[start:])
        return frame.data

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
        steps = read_steps(frame, channels, self.name)
        zeros = held[4 * channels : split].copy().view("<u2").reshape(channels, 1)
        if np.maximum.reduce(zeros[:, 0]) > self._last:
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
        return as_type(restored(words.reshape(grouping), zeros, steps, self._last).reshape(-1), dtype, shape)

    def bound(self, array: Array) -> Array:
        """See `Codec.bound`: half a step of the element's channel."""
        if not self._applies(array.dtype) or not array.size:
            return np.zeros(())
        grouped = flat_float32(array).reshape(by_channels(array.shape, _STEP_BYTES))
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

    def _pack(self, words: Words, frame: Bytes) -> None:
        """Writes low bytes, then high bits: each byte has those of elements as far apart as there are bytes."""
        frame[: words.size] = words
        high = np.zeros((self._per_byte, frame.size - words.size), np.uint8)
        every = high.reshape(-1)[: words.size]
        np.right_shift(words, 8, out=every, dtype=np.uint16, casting="unsafe")
        every &= self._last >> 8
        packed = high[-1]
        for plane in high[-2::-1]:
            packed *= 1 << (self._bits - 8)
            packed += plane
        frame[words.size :] = packed

    def _unpacked(self, held: Bytes, elements: int, dtype: str, shape: Sequence[int]) -> Words:
        check_length(held, self._packed_bytes(elements), dtype, shape)
        packed = held[elements:].astype(np.uint16)
        words = np.empty((self._per_byte, packed.size), np.uint16)
        for number, plane in enumerate(words):
            np.multiply(packed, 256 >> (number * (self._bits - 8)), out=plane)
        words &= self._last & 0xFF00
        flat = words.reshape(-1)[:elements]
        flat |= held[:elements]
        return flat
