"""What a codec is, and how arrays become bytes and back. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from node_agent.codecs.text import decode_text, encode_text
from node_agent.dtypes import STRING, storage
from node_agent.errors import CodecError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

PIECE = 64 * 1024
"""Elements of a piece: what several passes make of it stays in a core's own cache from one to the next."""

INFINITE = 0x7F800000
"""Infinity's bits: those of a float32 that is not negative are below, and those of all other ones are not."""

_GLANCE = 256
"""Elements that tell whether a tensor may have no negative ones."""


class Codec(Protocol):
    """One way to encode tensors.

    A codec that has no use for an element type (int8 on integers) encodes it as its raw bytes. One that cannot take a
    value (a NaN where values are scaled) raises `CodecError`, and whoever packs the tensor sends it raw.

    Attributes:
        name: Its name in `TensorHeader.codec`.
        values: Name of the codec that decodes to the same values: `raw` for every lossless codec, `int8` for
            `int8-lz4`. Codecs with one such name have one error.
        most_expansion: Largest ratio of decoded to encoded bytes that an honest frame can have; a frame that
            promises more is refused before anything is allocated.
    """

    name: str
    values: str
    most_expansion: int

    def encode(self, array: Array) -> Any:
        """The frame of `array`: a one-dimensional buffer of bytes, which may share the array's memory.

        Raises:
            CodecError: The codec does not take such values, for example NaN.
        """

    def decode(self, frame: Any, dtype: str, shape: Sequence[int]) -> Array:
        """The array of wire type `dtype` and shape `shape` in `frame`; may share its memory, or be read-only.

        Raises:
            CodecError: The frame is not the encoding of such an array.
        """

    def bound(self, array: Array) -> Array:
        """Most that a round trip changes each element of `array`; of its shape, or of none for all alike."""

    def most_bytes(self, dtype: str, shape: Sequence[int]) -> int:
        """Largest frame that an array of this type and shape can have."""


class Sized(Codec, Protocol):
    """A codec whose frames have a length that follows from type and shape, so that others can take them further."""

    def exact_bytes(self, dtype: str, shape: Sequence[int]) -> int:
        """That length."""


class Lossless:
    """What every codec that gives back all bits has in common, whatever the array."""

    values = "raw"

    def bound(self, array: Array) -> Array:  # noqa: ARG002
        """See `Codec.bound`."""
        return np.zeros(())


def count(shape: Sequence[int]) -> int:
    """Number of elements of a shape."""
    return math.prod(shape)


def plain_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes that an array takes unencoded."""
    return math.prod(shape) * storage(dtype).itemsize


def item_bytes(dtype: str) -> int:
    """Bytes of an element of wire type `dtype`, unencoded."""
    return storage(dtype).itemsize


def is_float(held: np.dtype[Any]) -> bool:
    """Whether elements held so are floating-point numbers; raw bits of `bfloat16` and the like are not."""
    return held.kind == "f"


def byte_view(array: Array) -> memoryview:
    """The bytes of `array` in C order, little endian; copied only where it is not so already."""
    if array.dtype.kind in "OUS":
        return memoryview(encode_text(array))
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    if array.size == 0:
        return memoryview(b"")
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def from_bytes(frame: Any, dtype: str, shape: Sequence[int]) -> Array:
    """The array whose bytes `frame` is, on the frame's own memory where that is aligned for its type."""
    if dtype == STRING:
        return decode_text(frame, shape)
    held = storage(dtype)
    expected = math.prod(shape) * held.itemsize
    check_length(frame, expected, dtype, shape)
    if expected == 0:
        return np.empty(tuple(shape), held)
    array = np.frombuffer(frame, held).reshape(tuple(shape))
    # A short message lies at any address in libzmq's receive buffer; engines expect aligned elements.
    return array if array.flags.aligned else array.copy()


def check_length(frame: Any, expected: int, dtype: str, shape: Sequence[int]) -> None:
    """Checks the length of a frame that has only one possible length.

    Raises:
        CodecError: It has another.
    """
    if len(frame) != expected:
        raise CodecError(
            f"A frame of {len(frame)} bytes cannot hold {dtype}{list(shape)}, which takes {expected}."
        )


def flat_float32(array: Array) -> Floats:
    """The elements in C order as float32; one too large for it is infinite there."""
    flat: Floats
    if array.dtype == np.float32:
        flat = np.ascontiguousarray(array, np.float32).reshape(-1)
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            flat = np.ascontiguousarray(array, np.float32).reshape(-1)
    return flat


def extremes(grouped: Floats) -> tuple[Floats | None, Floats]:
    """Per channel the least of its values and zero (None where no value is negative), and the largest of them.

    Args:
        grouped: Values as (before the channels, channels, after them), contiguous.

    Raises:
        CodecError: A value is NaN or infinite.
    """
    if not grouped.size:
        return None, np.zeros(grouped.shape[1], np.float32)
    bits = grouped.view(np.uint32)
    # Floats that are not negative have the order of their bits, with infinity and NaN at the end, and integers
    # compare faster. So behind a ReLU one pass tells all; a few elements tell whether it is worth trying.
    if np.maximum.reduce(bits.reshape(-1)[:_GLANCE]) < INFINITE:
        tops = _along(np.maximum, bits)
        if np.maximum.reduce(tops) < INFINITE:
            return None, tops.view(np.float32)
    least, largest = _along(np.minimum, grouped), _along(np.maximum, grouped)
    # NaN is the least and the largest of any set that holds it.
    if not (np.isfinite(least).all() and np.isfinite(largest).all()):
        raise CodecError("A lossy codec takes no NaN, no infinity and nothing above float32's range.")
    return np.minimum(least, np.float32(0)), np.maximum(largest, np.float32(0))


def _along(reduce: np.ufunc, grouped: Array) -> Array:
    """The least or largest value of every channel."""
    if grouped.shape[2] == 1:
        found: Array = reduce.reduce(grouped[:, :, 0], axis=0)
    else:
        found = reduce.reduce(grouped, axis=2)
        found = found[0] if len(found) == 1 else reduce.reduce(found, axis=0)
    return found


def as_type(values: npt.NDArray[np.float32], dtype: str, shape: Sequence[int]) -> Array:
    """Decoded float32 elements as an array of wire type `dtype`; what a float16 cannot hold becomes infinite."""
    if dtype == "float32":
        return values.reshape(tuple(shape))
    with np.errstate(over="ignore", invalid="ignore"):
        array: Array = values.astype(storage(dtype), copy=False).reshape(tuple(shape))
    return array


def rounding(array: Array) -> Array:
    """What is lost per element by computing in float32 and by storing in the array's own type."""
    coarsest = max(float(np.finfo(array.dtype).eps), float(np.finfo(np.float32).eps))
    with np.errstate(over="ignore"):
        lost: Array = np.abs(array.astype(np.float64)) * (4 * coarsest) + np.finfo(np.float32).tiny
    if array.dtype == np.float16:
        lost += 2.0**-24  # the distance of its smallest numbers
    return lost
