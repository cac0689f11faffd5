"""Tensors of text as frames: each element as UTF-8 behind its length, four bytes, little endian. Pure.

The same form as BYTES of the Open Inference Protocol, so that a gateway hands them on as they are.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from node_agent.errors import CodecError

_LENGTH = struct.Struct("<I")


def encode_text(array: npt.NDArray[Any]) -> bytes:
    """The frame of an array whose elements are `str` or `bytes`; what is neither is written as its text."""
    parts: list[bytes] = []
    for element in array.reshape(-1).tolist():
        raw = element if isinstance(element, bytes) else str(element).encode()
        parts += (_LENGTH.pack(len(raw)), raw)
    return b"".join(parts)


def decode_text(frame: Any, shape: Sequence[int]) -> npt.NDArray[Any]:
    """The array of `str` in a frame.

    Raises:
        CodecError: The lengths do not add up, the number of elements is another, or an element is not UTF-8.
    """
    data, at = bytes(memoryview(getattr(frame, "buffer", frame))), 0
    count = math.prod(shape)
    elements: list[str] = []
    while at < len(data) and len(elements) < count:
        end = at + _LENGTH.size
        if end > len(data):
            break
        (length,) = _LENGTH.unpack_from(data, at)
        at, end = end, end + length
        if end > len(data):
            break
        try:
            elements.append(data[at:end].decode())
        except UnicodeDecodeError:
            raise CodecError(f"Element {len(elements)} of a tensor of text is not UTF-8.") from None
        at = end
    if at != len(data) or len(elements) != count:
        raise CodecError(f"A frame of {len(data)} bytes does not hold string{list(shape)}.")
    array = np.empty(count, object)
    array[:] = elements
    return array.reshape(tuple(shape))
