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

from node_agent.codecs.base import (
    INFINITE,
    PIECE,
    Array,
    Floats,
    as_type,
    byte_view,
    check_length,
    count,
    extremes,
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

_STEP_BYTES = 5
"""Step and zero of one channel."""


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
        grouped = flat_float32(array).reshape(self._grouping(array.shape))
        steps, rates, zeros = steps_of(grouped, 255)
        split = _STEP_BYTES * steps.size
        frame = np.empty(split + array.size, np.uint8)
        frame[: 4 * steps.size].view("<f4")[:] = steps[:, 0]
        frame[4 * steps.size : split] = zeros
        quantise(grouped, rates, frame[split:].reshape(grouped.shape))
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
        steps = read_steps(frame, channels, self.name)
        held = np.frombuffer(frame, np.uint8)
        zeros = held[4 * channels : _STEP_BYTES * channels].reshape(channels, 1)
        levels = held[_STEP_BYTES * channels :].reshape(grouping)
        return as_type(restored(levels, zeros, steps, 255).reshape(-1), dtype, shape)

    def bound(self, array: Array) -> Array:
        """See `Codec.bound`: half a step of the element's channel."""
        if not is_float(array.dtype) or not array.size:
            return np.zeros(())
        grouped = flat_float32(array).reshape(self._grouping(array.shape))
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


def pieces(grouping: tuple[int, int, int]) -> Iterator[tuple[slice, slice, slice]]:
    """A tensor in pieces that stay in a core's cache from one pass over them to the next.

    Args:
        grouping: As `by_channels` gives it.

    Yields:
        Indices of all three axes.
    """
    before, channels, after = grouping
    if channels * after <= PIECE:
        rows = max(1, PIECE // max(1, channels * after))
        for start in range(0, before, rows):
            yield slice(start, start + rows), slice(None), slice(None)
        return
    some = max(1, PIECE // max(1, after))
    for row in range(before):
        for start in range(0, channels, some):
            for inner in range(0, after, PIECE):
                yield slice(row, row + 1), slice(start, start + some), slice(inner, inner + PIECE)


def steps_of(grouped: Floats, most: int) -> tuple[Floats, Floats, Floats]:
    """Step of every channel, steps per unit (0 where all is zero), both (channels, 1), and zero, (channels,).

    A zero is a number of steps from the least value. Values on both sides of zero have one step less than `most`, which
    is left for the rounding of zero itself.

    Args:
        grouped: Values as (before the channels, channels, after them).
        most: Number of the last step.

    Raises:
        CodecError: One is NaN or infinite, or they are too close to zero for float32's arithmetic.
    """
    least, largest = extremes(grouped)
    # Small arrays cost a call each, which a small tensor's encoding consists of: as few as can be.
    if least is None:
        steps = largest / np.float32(most)
        zeros = np.zeros(steps.size, np.float32)
    else:
        below = -least.astype(np.float64)
        parts = np.where((least < 0) & (largest > 0), most - 1.0, float(most))
        steps = ((largest + below) / parts).astype(np.float32)
        np.divide(below, steps, out=below, where=steps > 0)
        # Rounded up, so that the least value never falls below step 0.
        zeros = np.minimum(np.ceil(below), most).astype(np.float32)
    if np.minimum.reduce(steps) >= _SMALLEST_STEP:
        rates = np.float32(1) / steps
    else:
        if ((steps > 0) & (steps < _SMALLEST_STEP)).any():
            raise CodecError("Values this close to zero are not scaled.")
        rates = np.zeros_like(steps)
        np.divide(np.float32(1), steps, out=rates, where=steps > 0)
    return steps[:, None], rates[:, None], zeros


def quantise(grouped: Floats, rates: Floats, words: Array) -> None:
    """Writes values as numbers of steps from zero, modulo as many as an element of `words` holds.

    Args:
        grouped: Values as (before the channels, channels, after them).
        rates: Steps per unit, (channels, 1).
        words: Unsigned integers, of the values' shape.
    """
    room = np.empty(min(PIECE, grouped.size), np.float32)
    for part in pieces(grouped.shape):
        some = grouped[part]
        levels = room[: some.size].reshape(some.shape)
        np.multiply(some, rates[part[1]], out=levels)
        levels += _MAGIC
        # The lowest bits of a negative number, too, are that number modulo a power of two.
        words[part] = levels.view(np.uint32)


def restored(words: Array, zeros: Array, steps: Floats, last: int) -> Floats:
    """The values that `quantise` was given, to the nearest step; infinite where a step is too large.

    Args:
        words: Steps from zero, modulo `last` + 1, as (before the channels, channels, after them).
        zeros: Of the words' type, (channels, 1).
        steps: Sizes, (channels, 1).
        last: Number of the last step.
    """
    values = np.empty(words.shape, np.float32)
    below = bool(np.maximum.reduce(zeros[:, 0]))  # nothing is below zero behind a ReLU
    # Converted first: NumPy computes with numbers of one type twice as fast as of two.
    offsets = zeros.astype(np.float32)
    with np.errstate(over="ignore"):
        for part in pieces(words.shape):
            some, which = values[part], part[1]
            if below:
                from_least = words[part] + zeros[which]
                from_least &= last
                some[...] = from_least
                some -= offsets[which]
            else:
                some[...] = words[part]
            some *= steps[which]
    return values


def read_steps(frame: Any, channels: int, name: str) -> Floats:
    """The steps that a frame begins with, (channels, 1).

    Raises:
        CodecError: One is no size.
    """
    steps = np.frombuffer(frame, "<f4", channels).copy()
    # As in `extremes`; only a zero with a sign passes the second test alone.
    if np.maximum.reduce(steps.view(np.uint32)) >= INFINITE and not (
        np.isfinite(steps).all() and (steps >= 0).all()
    ):
        raise CodecError(f"A frame of codec {name} has steps that are no sizes.")
    return steps.reshape(channels, 1)
