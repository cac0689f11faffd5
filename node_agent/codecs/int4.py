"""`int4`: floats as 16 steps between the least and the largest of each 128 neighbours. Pure.

A frame is, per group, its least value and the size of a step (two float32), then half a byte per element: the lower
halves hold a group's first 64 elements. The last group is filled up with its last element.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from node_agent.codecs.base import (
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

GROUP = 128
"""Elements that share their steps: 4.5 bits per element in all."""

_MAGIC = np.float32(1.5 * 2**23)
"""Added to a float32 below 2²², it leaves the number, rounded to nearest, in the lowest bits."""

_SMALLEST_STEP = 2.0**-120
"""Below, 1/step and products of it leave float32's normal range."""


class Int4:
    """See the module."""

    name = values = "int4"
    most_expansion = 16

    def encode(self, array: Array) -> memoryview:
        """See `Codec.encode`."""
        if not is_float(array.dtype):
            return byte_view(array)
        grouped = _groups(array)
        least, steps = _steps(grouped)
        scaled = np.zeros_like(steps)
        np.divide(np.float32(1), steps, out=scaled, where=steps > 0)
        levels = grouped - least
        levels *= scaled
        levels += _MAGIC
        nibbles = levels.view(np.uint32).astype(np.uint8).reshape(-1, 2, GROUP // 2)
        frame = np.empty(self.exact_bytes(array.dtype.name, array.shape), np.uint8)
        split = 8 * len(grouped)
        frame[:split] = np.concatenate([least, steps], axis=1).astype("<f4").reshape(-1).view(np.uint8)
        # The last level can round up to 16 where values lie at the end of float32's precision.
        np.minimum(nibbles, 15, out=nibbles)
        frame[split:] = (nibbles[:, 0] | (nibbles[:, 1] << 4)).reshape(-1)
        return frame.data

    def decode(self, frame: Any, dtype: str, shape: Sequence[int]) -> Array:
        """See `Codec.decode`."""
        if not is_float(storage(dtype)):
            return from_bytes(frame, dtype, shape)
        check_length(frame, self.exact_bytes(dtype, shape), dtype, shape)
        elements = count(shape)
        if not elements:
            return np.empty(tuple(shape), storage(dtype))
        groups = -(-elements // GROUP)
        held = np.frombuffer(frame, np.uint8)
        scale = held[: 8 * groups].copy().view("<f4").reshape(groups, 2)
        if not np.isfinite(scale).all():
            raise CodecError("A frame of codec int4 has steps that are no numbers.")
        packed = held[8 * groups :].reshape(groups, GROUP // 2)
        values: Floats = np.empty((groups, 2, GROUP // 2), np.float32)
        values[:, 0] = packed & 15
        values[:, 1] = packed >> 4
        flat = values.reshape(groups, GROUP)
        with np.errstate(over="ignore", invalid="ignore"):
            flat *= scale[:, 1:]
            flat += scale[:, :1]
        return as_type(flat.reshape(-1)[:elements], dtype, shape)

    def bound(self, array: Array) -> Array:
        """See `Codec.bound`: half a step of the element's group."""
        if not is_float(array.dtype) or not array.size:
            return np.zeros(())
        grouped = _groups(array)
        least, steps = _steps(grouped)
        # Offsets far from zero cost float32's last bits.
        half = 0.501 * steps.astype(np.float64) + np.abs(least.astype(np.float64)) * 2.0**-21
        spread = np.broadcast_to(half, grouped.shape).reshape(-1)[: array.size].reshape(array.shape)
        return spread + rounding(array)

    def exact_bytes(self, dtype: str, shape: Sequence[int]) -> int:
        """Length of every frame."""
        if not is_float(storage(dtype)):
            return plain_bytes(dtype, shape)
        return -(-count(shape) // GROUP) * (8 + GROUP // 2)

    def most_bytes(self, dtype: str, shape: Sequence[int]) -> int:
        """See `Codec.most_bytes`."""
        return self.exact_bytes(dtype, shape)


def _groups(array: Array) -> Floats:
    """The elements as float32, (groups, GROUP)."""
    flat = flat_float32(array)
    extremes(flat.reshape(1, 1, -1))  # refuses NaN
    missing = -flat.size % GROUP
    if missing:
        flat = np.concatenate([flat, np.broadcast_to(flat[-1:], (missing,))])
    return flat.reshape(-1, GROUP)


def _steps(grouped: Floats) -> tuple[Floats, Floats]:
    """Least value and step of every group, each (groups, 1).

    Raises:
        CodecError: A group's values lie too close together, or too far apart, for float32's arithmetic.
    """
    least = grouped.min(axis=1, keepdims=True) if len(grouped) else np.empty((0, 1), np.float32)
    largest = grouped.max(axis=1, keepdims=True) if len(grouped) else least
    wide = (largest.astype(np.float64) - least) / 15
    if ((wide > 0) & (wide < _SMALLEST_STEP)).any() or (wide > 2.0**120).any():
        raise CodecError("Values this close together, or this far apart, are not scaled.")
    return least, wide.astype(np.float32)
