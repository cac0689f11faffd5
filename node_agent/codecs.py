"""How a tensor becomes a frame and back: one registry, encode beside decode. Pure.

A codec's `decode` trusts nothing: whatever the bytes, it returns an array of exactly the promised type and
shape or raises `CodecError`, and takes memory for no more than the promised size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import lz4.block
import numpy as np
import numpy.typing as npt

from node_agent.dtypes import storage
from node_agent.errors import CodecError

Array = npt.NDArray[Any]


class Codec(Protocol):
    """One way to encode tensors.

    Attributes:
        name: Its name in `TensorHeader.codec`.
        most_expansion: Largest ratio of decoded to encoded bytes that an honest frame can have; a frame that
            promises more is refused before anything is allocated.
    """

    name: str
    most_expansion: int

    def encode(self, array: Array) -> Any:
        """The frame of `array`: a one-dimensional buffer of bytes, which may share the array's memory."""

    def decode(self, frame: Any, dtype: str, shape: Sequence[int]) -> Array:
        """The array of wire type `dtype` and shape `shape` in `frame`; may share its memory, or be read-only.

        Raises:
            CodecError: The frame is not the encoding of such an array.
        """


def byte_view(array: Array) -> memoryview:
    """The bytes of `array` in C order, little endian; copied only where it is not so already."""
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    if array.size == 0:
        return memoryview(b"")
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def from_bytes(frame: Any, dtype: str, shape: Sequence[int]) -> Array:
    """The array whose bytes `frame` is, on the frame's own memory where that is aligned for its type."""
    held = storage(dtype)
    expected = math.prod(shape) * held.itemsize
    if len(frame) != expected:
        raise CodecError(
            f"A frame of {len(frame)} bytes cannot hold {dtype}{list(shape)}, which takes {expected}."
        )
    if expected == 0:
        return np.empty(tuple(shape), held)
    array = np.frombuffer(frame, held).reshape(tuple(shape))
    # A short message lies at any address in libzmq's receive buffer; engines expect aligned elements.
    return array if array.flags.aligned else array.copy()


class Raw:
    """The array's bytes in C order, little endian."""

    name = "raw"
    most_expansion = 1

    def encode(self, array: Array) -> memoryview:
        """See `Codec.encode`; shares the array's memory where it is contiguous."""
        return byte_view(array)

    def decode(self, frame: Any, dtype: str, shape: Sequence[int]) -> Array:
        """See `Codec.decode`."""
        return from_bytes(frame, dtype, shape)


class Lz4:
    """One LZ4 block of the array's bytes (https://github.com/lz4/lz4/blob/dev/doc/lz4_Block_format.md)."""

    name = "lz4"
    most_expansion = 255
    """A block's sequence stretches a match by at most 255 bytes per byte."""

    _LARGEST = 0x7E000000
    """LZ4_MAX_INPUT_SIZE of lz4.h."""

    def encode(self, array: Array) -> bytes:
        """See `Codec.encode`."""
        plain = byte_view(array)
        if len(plain) > self._LARGEST:
            raise CodecError(
                f"LZ4 takes at most {self._LARGEST} bytes at once, this tensor has {len(plain)}."
            )
        return bytes(lz4.block.compress(plain, store_size=False)) if len(plain) else b""

    def decode(self, frame: Any, dtype: str, shape: Sequence[int]) -> Array:
        """See `Codec.decode`."""
        expected = math.prod(shape) * storage(dtype).itemsize
        if expected == 0:
            return from_bytes(frame, dtype, shape)
        if expected > self._LARGEST or expected > self.most_expansion * len(frame):
            raise CodecError(f"An LZ4 frame of {len(frame)} bytes cannot hold {expected} bytes.")
        try:
            plain = lz4.block.decompress(frame, uncompressed_size=expected)
        except (lz4.block.LZ4BlockError, ValueError, OverflowError) as error:
            raise CodecError(f"An LZ4 frame of {len(frame)} bytes is damaged: {error}.") from None
        return from_bytes(plain, dtype, shape)


CODECS: dict[str, Codec] = {codec.name: codec for codec in (Raw(), Lz4())}
"""Every codec that this build knows, by name."""


def codec_named(name: str) -> Codec:
    """The codec called `name`.

    Raises:
        CodecError: There is none.
    """
    try:
        return CODECS[name]
    except KeyError:
        raise CodecError(
            f"Codec {name!r} is unknown here.", hint=f"This build has: {', '.join(CODECS)}."
        ) from None
