"""Element types on the wire and in memory. Pure.

A type is named by NumPy's name. `bfloat16` and the `float8` types exist in NumPy only with an extension that
an edge box need not install, so they are held as the unsigned integers of the same width: their raw bits.
Strings are held as Python's, and travel as UTF-8, each behind its length (`node_agent.codecs.text`). Types narrower
than a byte do not travel.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from node_agent.errors import CodecError

_PLAIN = (
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
    "complex64",
    "complex128",
)

_BITS = {
    "bfloat16": "uint16",
    "float8_e4m3fn": "uint8",
    "float8_e4m3fnuz": "uint8",
    "float8_e5m2": "uint8",
    "float8_e5m2fnuz": "uint8",
    "float8_e8m0fnu": "uint8",
}

STORAGE: dict[str, np.dtype[np.generic]] = {
    **{name: np.dtype(name).newbyteorder("<") for name in _PLAIN},
    **{name: np.dtype(held).newbyteorder("<") for name, held in _BITS.items()},
}
"""NumPy type that holds a wire type's elements, little endian, by wire name."""

STRING = "string"
"""The wire name of text: the one type whose elements differ in length."""

ITEM_BYTES: dict[str, int] = {name: dtype.itemsize for name, dtype in STORAGE.items()} | {STRING: 4}
"""Bytes of one element, by wire name; of text the least, its length."""

RAW_BITS = frozenset(_BITS)
"""Types that are held as raw bits."""


def storage(dtype: str) -> np.dtype[np.generic]:
    """The NumPy type that holds elements of wire type `dtype`.

    Raises:
        CodecError: The type does not travel.
    """
    if dtype == STRING:
        return _OBJECTS
    try:
        return STORAGE[dtype]
    except KeyError:
        raise CodecError(
            f"Tensors of type {dtype!r} cannot be sent.", hint=f"Types that can: {', '.join(ITEM_BYTES)}."
        ) from None


def wire_name(array: npt.NDArray[np.generic]) -> str:
    """The wire name of an array's own element type (an extension's `bfloat16` keeps its name).

    Raises:
        CodecError: The type does not travel.
    """
    dtype = array.dtype
    name = _NAMES.get(dtype)
    if name is None:
        # NumPy works a type's name out anew each time, which takes longer than sending a small tensor.
        name = STRING if dtype.kind in "OUS" else dtype.name
        storage(name)
        _NAMES[dtype] = name
    return name


_OBJECTS: np.dtype[np.generic] = np.dtype(object)

_NAMES: dict[np.dtype[np.generic], str] = {}
"""Wire names of types that have been sent; there are not many."""
