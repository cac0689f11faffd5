"""The protocol's element types, and tensors between its three notations: JSON, its raw bytes, and defer's wire. Pure.

The protocol (Open Inference Protocol v2) names thirteen types. Twelve have the same raw bytes as the wire: C order,
little endian, `BF16` as its bits. `BYTES` is a sequence of elements, each behind its length in four bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from defer.errors import WrongInput
from defer.units import show_count
from node_agent.dtypes import ITEM_BYTES, storage

WIRE: dict[str, str] = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BF16": "bfloat16",
    "BYTES": "string",
}
"""The wire's name of each of the protocol's types."""

DATATYPE: dict[str, str] = {wire: datatype for datatype, wire in WIRE.items()}
"""The protocol's name of each of the wire's types that it has one for."""

LENGTH = struct.Struct("<I")
"""The length before each element of a BYTES tensor."""

_DECODERS: dict[str, msgspec.json.Decoder[Any]] = {
    "b": msgspec.json.Decoder(list[bool]),
    "i": msgspec.json.Decoder(list[int]),
    "u": msgspec.json.Decoder(list[int]),
    "f": msgspec.json.Decoder(list[float]),
    "S": msgspec.json.Decoder(list[str]),
}
_NESTED: msgspec.json.Decoder[Any] = msgspec.json.Decoder()


def datatype_of(wire: str) -> str:
    """The protocol's name of a wire type; one that the protocol lacks keeps its own, in capitals."""
    return DATATYPE.get(wire, wire.upper())


def wire_of(datatype: str, name: str) -> str:
    """The wire's name of a protocol type.

    Raises:
        WrongInput: The protocol has no such type.
    """
    wire = WIRE.get(datatype)
    if wire is None:
        raise WrongInput(
            f"input {name!r} has datatype {datatype!r}, which the protocol does not have; it has {', '.join(WIRE)}"
        )
    return wire


def check_size(name: str, datatype: str, shape: Sequence[int], nbytes: int) -> None:
    """Whether raw bytes are as long as the tensor's type and shape say.

    Raises:
        WrongInput: They are not, or a dimension is negative.
    """
    check_shape(name, shape)
    if datatype == "BYTES":
        return
    expected = ITEM_BYTES[WIRE[datatype]] * math.prod(shape)
    if nbytes != expected:
        raise WrongInput(
            f"input {name!r}, {datatype}{list(shape)}, takes {expected} bytes, {nbytes} were given"
        )


def check_shape(name: str, shape: Sequence[int]) -> None:
    """Whether a given tensor can have this shape.

    Raises:
        WrongInput: A dimension is negative.
    """
    if any(dim < 0 for dim in shape):
        raise WrongInput(f"input {name!r} has a negative dimension: {list(shape)}")


def split_bytes(name: str, data: bytes | memoryview, count: int) -> list[bytes]:
    """The elements of a BYTES tensor in raw form.

    Raises:
        WrongInput: The lengths do not add up, or there are not `count` elements.
    """
    elements: list[bytes] = []
    view, at = memoryview(data), 0
    while at < len(view):
        if at + LENGTH.size > len(view):
            raise WrongInput(f"input {name!r}: a BYTES element's length is cut off")
        (length,) = LENGTH.unpack_from(view, at)
        at += LENGTH.size
        if at + length > len(view):
            raise WrongInput(f"input {name!r}: a BYTES element of {length} bytes is cut off")
        elements.append(bytes(view[at : at + length]))
        at += length
    if len(elements) != count:
        raise WrongInput(f"input {name!r} has {len(elements)} BYTES elements, its shape says {count}")
    return elements


def join_bytes(elements: Sequence[bytes]) -> bytes:
    """A BYTES tensor in raw form."""
    return b"".join(part for element in elements for part in (LENGTH.pack(len(element)), element))


def from_json(name: str, datatype: str, shape: Sequence[int], data: msgspec.Raw) -> bytes:
    """The raw bytes of a tensor that came as JSON, flat or nested as its shape.

    Raises:
        WrongInput: Not such a tensor: another number of elements, another type, or a number out of range.
    """
    check_shape(name, shape)
    count = math.prod(shape)
    kind = "S" if datatype == "BYTES" else storage(WIRE[datatype]).kind
    if datatype == "BF16":
        kind = "f"
    try:
        values = _DECODERS[kind].decode(data)
    except (msgspec.MsgspecError, RecursionError):
        values = _flattened(name, kind, shape, data)
    if len(values) != count:
        raise WrongInput(
            f"input {name!r} has {show_count(len(values), 'element')}, its shape {list(shape)} says {count}"
        )
    if kind == "S":
        return join_bytes([value.encode() for value in values])
    try:
        if datatype == "BF16":
            return to_bf16(np.array(values, np.float32)).tobytes()
        return np.array(values, storage(WIRE[datatype])).tobytes()
    except (OverflowError, ValueError) as error:
        raise WrongInput(f"input {name!r} is not {datatype}: {error}") from None


def _flattened(name: str, kind: str, shape: Sequence[int], data: msgspec.Raw) -> list[Any]:
    """The elements of nested lists that are nested as the shape says."""
    try:
        level: list[Any] = [_NESTED.decode(data)]
    except (msgspec.MsgspecError, RecursionError) as error:
        raise WrongInput(f"the data of input {name!r} is not JSON: {error}") from None
    flat = level[0]
    if isinstance(flat, list) and not any(isinstance(part, list) for part in flat):
        return _typed(name, kind, flat)
    for dim in shape:
        if not all(isinstance(part, list) and len(part) == dim for part in level):
            raise WrongInput(f"the data of input {name!r} is neither flat nor nested as {list(shape)}")
        level = [element for part in level for element in part]
    return _typed(name, kind, level)


_WORDS = {"S": "strings", "b": "true and false", "i": "whole numbers", "u": "whole numbers", "f": "numbers"}
"""What elements are, by the kind of their type."""


def _typed(name: str, kind: str, elements: list[Any]) -> list[Any]:
    """The elements, all of one kind."""
    try:
        values: list[Any] = _DECODERS[kind].decode(msgspec.json.encode(elements))
    except msgspec.MsgspecError as error:
        raise WrongInput(f"the data of input {name!r} are not {_WORDS[kind]}: {error}") from None
    return values


def to_json(name: str, wire: str, shape: Sequence[int], frame: Any) -> list[Any]:
    """A raw tensor's elements for JSON, flat. Values that JSON lacks (NaN, infinities) are encoded as null.

    Raises:
        WrongInput: A BYTES element is not UTF-8, so that only the binary form can carry it.
    """
    if wire == "string":
        try:
            return [element.decode() for element in split_bytes(name, frame, math.prod(shape))]
        except UnicodeDecodeError:
            raise WrongInput(
                f"output {name!r} holds bytes that are not UTF-8", hint="ask for it as binary data"
            ) from None
    if wire == "bfloat16":
        bits = np.frombuffer(frame, "<u2").astype(np.uint32) << 16
        return list(bits.view(np.float32).tolist())
    return list(np.frombuffer(frame, storage(wire)).tolist())


def to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The bits of float32 values rounded to bfloat16, to nearest even; a NaN stays one."""
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype("<u2")
