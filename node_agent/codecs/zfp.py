"""`zfp` and `zfp-lz4` (lossless), `zfp8` and `zfp8-lz4`: blocks of neighbours, transformed. Needs the extra `zfp`. Pure.

A frame is a header (length of the zfp stream in bytes, and the tolerance: 0 for lossless) and the stream, behind LZ4
where the name says so. zfp wants neighbours, so dimensions of 1 are dropped: on (1, C, H, W) it would fill blocks with
copies, three to four times the size. It has no types but float32, float64, int32 and int64, and its lossy modes spoil
a whole block that holds a NaN, so NaN and infinity are refused.

zfp's decoder does not look where a stream ends. So a stream is decoded from a buffer as long as the most that any bits
can make it read, with zeros behind the frame's own.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from node_agent.codecs.base import Array, byte_view, from_bytes, is_float, plain_bytes
from node_agent.codecs.lz4_block import compress, decompress
from node_agent.dtypes import storage
from node_agent.errors import CodecError

try:
    import zfpy
except ImportError:  # an optional extra
    zfpy = None

AVAILABLE = zfpy is not None
"""Whether zfp is installed here."""

_HEADER = struct.Struct("<Qd")
_TYPES = {"float32": 3, "float64": 4, "int32": 1, "int64": 2}
"""zfp_type of zfp.h, by wire type."""

_SMALLEST = 2.0**-100
"""Below such a tolerance its transform leaves float32's normal range."""

_BLOCK = 4
"""Side of a block."""

_DIMENSIONS = 3
"""zfp takes up to four; blocks of 4⁴ gain nothing on activations, and small fourth dimensions cost most."""


class Zfp:
    """See the module.

    Args:
        name: Its name.
        tolerance: Largest error, relative to the tensor's largest magnitude; 0 for lossless.
        packed: Whether LZ4 compresses the stream.
    """

    def __init__(self, name: str, *, tolerance: float, packed: bool) -> None:
        self.name = name
        self.values = "raw" if tolerance == 0 else name.removesuffix("-lz4")
        # A block of zeros, 4³ elements of eight bytes, is one bit.
        self.most_expansion = 8 * 8 * _BLOCK**_DIMENSIONS * (255 if packed else 1)
        self._tolerance = tolerance
        self._packed = packed

    def encode(self, array: Array) -> bytes | memoryview:
        """See `Codec.encode`."""
        if not self._applies(array.dtype) or not array.size:
            return byte_view(array)
        if is_float(array.dtype) and not np.isfinite(array).all():
            raise CodecError("zfp takes no NaN and no infinity.")
        blocks = np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(_squeezed(array.shape))
        tolerance = self._tolerance * float(np.abs(blocks).max()) if self._tolerance else 0.0
        if 0 < tolerance < _SMALLEST:
            raise CodecError("zfp's lossy modes take no values this close to zero.")
        lossy = {"tolerance": tolerance} if tolerance else {}
        stream = zfpy.compress_numpy(blocks, write_header=False, **lossy)
        return _HEADER.pack(len(stream), tolerance) + (compress(stream) if self._packed else stream)

    def decode(self, frame: Any, dtype: str, shape: Sequence[int]) -> Array:
        """See `Codec.decode`."""
        held = storage(dtype)
        if not self._applies(held) or not math.prod(shape):
            return from_bytes(frame, dtype, shape)
        if len(frame) <= _HEADER.size or plain_bytes(dtype, shape) > self.most_expansion * len(frame):
            raise CodecError(f"A zfp frame of {len(frame)} bytes cannot hold {dtype}{list(shape)}.")
        length, tolerance = _HEADER.unpack(bytes(memoryview(frame)[: _HEADER.size]))
        squeezed = _squeezed(shape)
        most = _most_read(squeezed, held)
        if not 0 < length <= most or not (math.isfinite(tolerance) and tolerance >= 0):
            raise CodecError(f"A zfp frame states a stream of {length} bytes and a tolerance of {tolerance}.")
        stream = memoryview(frame)[_HEADER.size :]
        plain = decompress(stream, length) if self._packed else stream
        if len(plain) != length:
            raise CodecError(f"A zfp frame holds {len(plain)} bytes in place of {length}.")
        safe = np.zeros(most, np.uint8)
        safe[:length] = np.frombuffer(plain, np.uint8)
        lossy = {"tolerance": tolerance} if tolerance else {}
        try:
            decoded = zfpy._decompress(safe.data, _TYPES[dtype], squeezed, **lossy)
        except ValueError as error:
            raise CodecError(f"A zfp frame is damaged: {error}.") from None
        result: Array = np.asarray(decoded).astype(held, copy=False).reshape(tuple(shape))
        return result

    def bound(self, array: Array) -> Array:
        """See `Codec.bound`."""
        if not self._tolerance or not self._applies(array.dtype) or not array.size:
            return np.zeros(())
        return np.asarray(self._tolerance * float(np.abs(array.astype(np.float64)).max()))

    def most_bytes(self, dtype: str, shape: Sequence[int]) -> int:
        """See `Codec.most_bytes`."""
        held = storage(dtype)
        if not self._applies(held) or not math.prod(shape):
            return plain_bytes(dtype, shape)
        most = _most_read(_squeezed(shape), held)
        return _HEADER.size + most + (most // 255 + 16 if self._packed else 0)

    def _applies(self, held: np.dtype[Any]) -> bool:
        return held.name in _TYPES and (is_float(held) or not self._tolerance)


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape that zfp sees: no dimension that would leave most of a block empty, and at most three."""
    sizes = [size for size in shape if size > 1] or [1]
    while len(sizes) > _DIMENSIONS:
        sizes[:2] = [sizes[0] * sizes[1]]
    while len(sizes) > 1 and min(sizes) < _BLOCK:
        at = sizes.index(min(sizes))
        left = max(at - 1, 0)
        sizes[left : left + 2] = [sizes[left] * sizes[left + 1]]
    return tuple(sizes)


def _most_read(squeezed: Sequence[int], held: np.dtype[Any]) -> int:
    """Bytes that zfp reads or writes at most.

    Per block a sign, an exponent and a precision, and per bit plane one bit for each element and one for each group
    test (zfp's `decode_ints`).
    """
    blocks = math.prod(-(-size // _BLOCK) for size in squeezed)
    planes, elements = 8 * held.itemsize, math.prod(_BLOCK for _ in squeezed)
    return blocks * (planes * (2 * elements + 2) + 128) // 8 + 64
