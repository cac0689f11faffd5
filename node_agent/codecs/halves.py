"""`float16` and `bfloat16`: floats of 4 or 8 bytes in 2. Pure.

Both are computed with integers: NumPy's own conversion to float16 goes element by element (0.7 GB/s where this does
6), and it has none to bfloat16. They round to nearest, ties to even (float16) or away from zero (bfloat16: half the
work), and refuse NaN, infinity and what is too large.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from node_agent.codecs.base import (
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

Words = npt.NDArray[np.uint32]
Halves = npt.NDArray[np.uint16]


class _Half:
    """What both have in common: which types they take, and frames of two bytes per element."""

    name: str
    values: str
    most_expansion = 4
    largest: float
    """Rounds to the largest finite number of the format at most."""
    relative: float
    """Half the distance of two neighbours, relative to them."""
    absolute: float
    """Half the distance of the smallest numbers."""

    def encode(self, array: Array) -> memoryview:
        """See `Codec.encode`."""
        if not _applies(array.dtype):
            return byte_view(array)
        flat = flat_float32(array)
        least, largest = extremes(flat.reshape(1, 1, -1))
        most = float(largest[0] if least is None else max(-least[0], largest[0]))
        if most > self.largest:
            raise CodecError(f"{most:.3g} is too large for {self.name}.")
        narrow = np.empty(flat.size, "<u2")
        for start in range(0, flat.size, PIECE):
            piece = slice(start, start + PIECE)
            self._narrow(flat[piece], narrow[piece])
        return byte_view(narrow)

    def decode(self, frame: Any, dtype: str, shape: Sequence[int]) -> Array:
        """See `Codec.decode`."""
        if not _applies(storage(dtype)):
            return from_bytes(frame, dtype, shape)
        check_length(frame, self.exact_bytes(dtype, shape), dtype, shape)
        return as_type(self._widen(np.frombuffer(frame, "<u2").astype(np.uint32)), dtype, shape)

    def bound(self, array: Array) -> Array:
        """See `Codec.bound`."""
        if not _applies(array.dtype):
            return np.zeros(())
        return np.abs(array.astype(np.float64)) * self.relative + self.absolute + rounding(array)

    def exact_bytes(self, dtype: str, shape: Sequence[int]) -> int:
        """Length of every frame."""
        return 2 * count(shape) if _applies(storage(dtype)) else plain_bytes(dtype, shape)

    def most_bytes(self, dtype: str, shape: Sequence[int]) -> int:
        """See `Codec.most_bytes`."""
        return self.exact_bytes(dtype, shape)

    def _narrow(self, some: Floats, narrow: Halves) -> None:
        raise NotImplementedError

    def _widen(self, bits: Words) -> Floats:
        raise NotImplementedError


class Float16(_Half):
    """IEEE 754 binary16: 11 significant bits, up to 65504, smallest step 2⁻²⁴."""

    name = values = "float16"
    largest = 65519.0
    relative = 2.0**-11
    absolute = 2.0**-25

    def _narrow(self, some: Floats, narrow: Halves) -> None:
        # Scaled so that its exponents are those of float32: then the upper bits are the half, subnormals too.
        bits: Words = (some * np.float32(2.0**-112)).view(np.uint32)
        sign = bits >> 16
        sign &= 0x8000
        bits &= 0x7FFFFFFF
        # Half of the last bit that stays, or a little less where that bit is not set: so ties become even.
        rounded: Words = np.right_shift(bits, np.uint32(13))
        rounded &= 1
        rounded += 0xFFF
        rounded += bits
        rounded >>= 13
        rounded |= sign
        narrow[:] = rounded

    def _widen(self, bits: Words) -> Floats:
        sign = bits & 0x8000
        sign <<= 16
        bits &= 0x7FFF
        bits <<= 13
        bits |= sign
        values: Floats = bits.view(np.float32)
        values *= np.float32(2.0**112)
        return values


class Bfloat16(_Half):
    """The upper half of a float32: 8 significant bits, the whole range."""

    name = values = "bfloat16"
    largest = 3.3895e38
    relative = 2.0**-8
    absolute = 2.0**-134

    def _narrow(self, some: Floats, narrow: Halves) -> None:
        # Half of the last bit that stays carries into it.
        bits = some.view(np.uint32) + 0x8000
        np.right_shift(bits, 16, out=narrow, dtype=np.uint32, casting="unsafe")

    def _widen(self, bits: Words) -> Floats:
        bits <<= 16
        values: Floats = bits.view(np.float32)
        return values


def _applies(held: np.dtype[Any]) -> bool:
    return is_float(held) and held.itemsize > 2
