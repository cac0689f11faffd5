"""`int8` and `int8-channel`: floats as 256 steps between the least and the largest value. Pure.

A frame is, per channel, the size of a step (float32), then per channel the step that stands for zero (uint8), then one
byte per element: steps from zero, modulo 256. Zero is always a step of its own, so what a ReLU cut off is a zero byte,
which packs well afterwards.
`int8` has one channel; `int8-channel` has one per channel of the tensor: axis 1 of four or more dimensions (N, C, H,
W), else the last (tokens, features). A tensor too small for that, where the steps would take more than an eighth of
the values, has one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from node_agent.dtypes import storage
from node_agent.errors import CodecError

_MAGIC = np.float32(1.5 * 2**23)
"""Added to a float32 below 2²², it leaves the number, rounded to nearest, in the lowest bits."""

_SMALLEST_STEP = 2.0**-120
"""Below, 1/step and products of it leave float32's normal range."""

_PIECE = 32 * 1024
"""Elements of a piece: its floats and words fit into a core's own cache."""

_STEP_BYTES = 5
"""Step and zero of one channel."""

Floats = npt.NDArray[np.float32]


class Int8:
    """See the module.

    Args:
        name: Its name.
        by_channel: Whether every channel has steps of its own.
    """

    most_expansion = 8

    def __init__(self, name: str, *, by_channel: bool) -> None:
        self.name = self.values = name
        self._by_channel = by_channel

    def encode(self, array: Array) -> memoryview:
        """See `Codec.encode`."""
        if not is_float(array.dtype):
            return byte_view(array)
        if not array.size:
            return memoryview(b"")
        flat, _, _ = flat_float32(array)
        grouped = flat.reshape(self._grouping(array.shape))
        steps, wide = steps_of(grouped, 255)
        zeros = wide.astype(np.uint8)
        frame = np.empty(self.exact_bytes(array.dtype.name, array.shape), np.uint8)
        split = _STEP_BYTES * steps.size
        frame[: 4 * steps.size] = steps.reshape(-1).astype("<f4").view(np.uint8)
        frame[4 * steps.size : split] = zeros.reshape(-1)
        scaled = np.zeros_like(steps)
        np.divide(np.float32(1), steps, out=scaled, where=steps > 0)
        levels = grouped * scaled
        # The lowest byte of a negative number of steps, too, is that number modulo 256.
        levels += _MAGIC
        frame[split:] = levels.reshape(-1).view(np.uint32)
        return frame.data

    def decode(self, frame: Any, dtype: str, shape: Sequence[int]) -> Array:
        """See `Codec.decode`."""
        if not is_float(storage(dtype)):
            return from_bytes(frame, dtype, shape)
        check_length(frame, self.exact_bytes(dtype, shape), dtype, shape)
        if not len(frame):
            return np.empty(tuple(shape), storage(dtype))
        grouping = self._grouping(shape)
        channels = grouping[1]
        per_channel = (channels, 1)
        held = np.frombuffer(frame, np.uint8)
        steps = held[: 4 * channels].copy().view("<f4").reshape(per_channel)
        if not (np.isfinite(steps).all() and (steps >= 0).all()):
            raise CodecError(f"A frame of codec {self.name} has steps that are no sizes.")
        zeros = held[4 * channels : _STEP_BYTES * channels].reshape(per_channel)
        levels = held[_STEP_BYTES * channels :].reshape(grouping)
        values = np.empty(grouping, np.float32)
        below = bool(zeros.any())  # nothing is below zero behind a ReLU
        with np.errstate(over="ignore"):
            for part in pieces(grouping):
                if below:
                    # Steps from the least value, then from zero: bytes wrap around.
                    from_least = levels[part] + zeros[part[1]]
                    np.subtract(from_least, zeros[part[1]], out=values[part], dtype=np.float32)
                    values[part] *= steps[part[1]]
                else:
                    np.multiply(levels[part], steps[part[1]], out=values[part], dtype=np.float32)
        return as_type(values.reshape(-1), dtype, shape)

    def bound(self, array: Array) -> Array:
        """See `Codec.bound`: half a step of the element's channel."""
        if not is_float(array.dtype) or not array.size:
            return np.zeros(())
        grouped = flat_float32(array)[0].reshape(self._grouping(array.shape))
        steps = np.broadcast_to(steps_of(grouped, 255)[0], grouped.shape).reshape(array.shape)
        return 0.501 * steps.astype(np.float64) + rounding(array)

    def exact_bytes(self, dtype: str, shape: Sequence[int]) -> int:
        """Length of every frame."""
        elements = count(shape)
        if not is_float(storage(dtype)):
            return plain_bytes(dtype, shape)
        return elements + _STEP_BYTES * self._grouping(shape)[1] if elements else 0

    def most_bytes(self, dtype: str, shape: Sequence[int]) -> int:
        """See `Codec.most_bytes`."""
        return self.exact_bytes(dtype, shape)

    def _grouping(self, shape: Sequence[int]) -> tuple[int, int, int]:
        return by_channels(shape, _STEP_BYTES) if self._by_channel else (1, 1, count(shape))


def by_channels(shape: Sequence[int], step_bytes: int) -> tuple[int, int, int]:
    """A shape as (before the channels, channels, after them); one channel where more would not pay.

    Args:
        shape: The tensor's.
        step_bytes: What a channel takes beside its values.
    """
    elements = count(shape)
    if len(shape) > 1:
        axis = 1 if len(shape) >= 4 else len(shape) - 1
        channels = shape[axis]
        if 8 * step_bytes * channels <= elements:
            return (count(shape[:axis]), channels, count(shape[axis + 1 :]))
    return (1, 1, elements)


def pieces(grouping: tuple[int, int, int]) -> Iterator[tuple[slice, slice]]:
    """A tensor in pieces that stay in a core's cache from one pass over them to the next.

    Args:
        grouping: As `by_channels` gives it.

    Yields:
        Indices of the first two axes.
    """
    before, channels, after = grouping
    if channels * after <= _PIECE:
        rows = max(1, _PIECE // max(1, channels * after))
        for start in range(0, before, rows):
            yield slice(start, start + rows), slice(None)
        return
    some = max(1, _PIECE // max(1, after))
    for row in range(before):
        for start in range(0, channels, some):
            yield slice(row, row + 1), slice(start, start + some)


def steps_of(grouped: Floats, most: int) -> tuple[Floats, Floats]:
    """Step and zero of every channel, each (channels, 1); a zero is a number of steps from the least value.

    Values on both sides of zero have one step less than `most`, which is left for the rounding of zero itself.

    Args:
        grouped: Values as (before the channels, channels, after them).
        most: Number of the last step.

    Raises:
        CodecError: The values are too close to zero for float32's arithmetic.
    """
    least = np.minimum(_along(np.minimum, grouped), 0.0).astype(np.float64)
    largest = np.maximum(_along(np.maximum, grouped), 0.0).astype(np.float64)
    steps = (largest - least) / np.where((least < 0) & (largest > 0), most - 1.0, float(most))
    if ((steps > 0) & (steps < _SMALLEST_STEP)).any():
        raise CodecError("Values this close to zero are not scaled.")
    rounded = steps.astype(np.float32)
    below = np.zeros_like(least)
    np.divide(-least, rounded, out=below, where=steps > 0)
    # Rounded up, so that the least value never falls below step 0.
    zeros = np.minimum(np.ceil(below), most).astype(np.float32)
    return rounded[:, None], zeros[:, None]


def _along(reduce: np.ufunc, grouped: Floats) -> Floats:
    """The least or largest value of every channel."""
    if grouped.shape[2] == 1:
        found: Floats = reduce.reduce(grouped[:, :, 0], axis=0)
    else:
        found = reduce.reduce(reduce.reduce(grouped, axis=2), axis=0)
    return found
