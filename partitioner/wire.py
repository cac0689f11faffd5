"""The few facts about protobuf's wire format that let weights stay on disk.

An ONNX file is mostly raw weight bytes. Parsing it whole costs twice its size in memory. Instead
:func:`strip_weights` walks the length-delimited fields that can hold a large tensor and replaces each large
``raw_data`` by a reference (offset, length) into the same file, so that what is left to parse is small and a
weight is read only when somebody writes it. :func:`field` builds the same framing for writing.

Field numbers: onnx.proto3 of ONNX 1.23 (they are frozen by protobuf's compatibility rules).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from typing import Final

from partitioner.errors import InvalidModel

SELF: Final = "<this file>"
"""Location that marks a tensor whose bytes stayed in the model file itself."""

THRESHOLD: Final = 16 * 1024
"""Tensors below this many bytes are parsed with the rest of the model."""

Buffer = bytes | mmap.mmap

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

MODEL_GRAPH: Final = 7
GRAPH_INITIALIZER: Final = 5
TENSOR_RAW_DATA: Final = 9
_TENSOR_EXTERNAL_DATA: Final = 13
_TENSOR_DATA_LOCATION: Final = 14

# message → the fields of it through which a tensor can be reached, and the message each one holds
_DESCENT: Final[Mapping[str, Mapping[int, str]]] = {
    "model": {MODEL_GRAPH: "graph", 25: "function"},
    "graph": {1: "node", GRAPH_INITIALIZER: "tensor"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 11: "graph"},
}


def varint(value: int) -> bytes:
    """Encode a non-negative integer, base 128, low groups first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field_header(number: int, length: int) -> bytes:
    """Tag and length of a length-delimited field whose ``length`` bytes follow."""
    return varint(number << 3 | _BYTES) + varint(length)


def field(number: int, payload: bytes) -> bytes:
    """One whole length-delimited field."""
    return field_header(number, len(payload)) + payload


def strip_weights(data: Buffer) -> bytes:
    """The same model with every large ``raw_data`` turned into a reference to :data:`SELF`.

    Args:
        data: a serialised ModelProto; a memory map is read only where there are no weights.

    Returns:
        A serialised ModelProto whose large tensors are external, at offsets into ``data``.

    Raises:
        InvalidModel: if the bytes end inside a field or are no protobuf message.
    """
    return _strip(data, 0, len(data), "model")


def _strip(data: Buffer, start: int, stop: int, message: str) -> bytes:
    descent = _DESCENT[message]
    parts: list[bytes] = []
    copied = start
    for number, begin, payload, end in _fields(data, start, stop):
        child = descent.get(number)
        if child is None or end - payload < THRESHOLD:
            continue
        inner = _strip_tensor(data, payload, end) if child == "tensor" else _strip(data, payload, end, child)
        parts += [data[copied:begin], field(number, inner)]
        copied = end
    parts.append(data[copied:stop])
    return b"".join(parts)


def _strip_tensor(data: Buffer, start: int, stop: int) -> bytes:
    raw: tuple[int, int] | None = None
    kept = bytearray()
    for number, begin, payload, end in _fields(data, start, stop):
        if number == TENSOR_RAW_DATA and end - payload >= THRESHOLD:
            raw = payload, end - payload
        else:
            kept += data[begin:end]
    if raw is None:
        return bytes(kept)
    for key, value in (("location", SELF), ("offset", str(raw[0])), ("length", str(raw[1]))):
        kept += field(_TENSOR_EXTERNAL_DATA, field(1, key.encode()) + field(2, value.encode()))
    kept += varint(_TENSOR_DATA_LOCATION << 3 | _VARINT) + varint(1)
    return bytes(kept)


def _fields(data: Buffer, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (number, start of tag, start of payload, end) of each field in ``data[start:stop]``."""
    at = start
    while at < stop:
        begin = at
        tag, at = _read_varint(data, at, stop)
        kind = tag & 7
        payload = at
        if kind == _BYTES:
            length, payload = _read_varint(data, at, stop)
            at = payload + length
        elif kind == _VARINT:
            _, at = _read_varint(data, at, stop)
        elif kind == _FIXED64:
            at += 8
        elif kind == _FIXED32:
            at += 4
        else:
            raise InvalidModel(f"not an ONNX model: unknown field type {kind} at byte {begin}")
        if at > stop:
            raise InvalidModel(
                f"the model is truncated: a field at byte {begin} ends at byte {at}, {at - stop} beyond the end",
                hint="copy or export the model file again",
            )
        yield tag >> 3, begin, payload, at


def _read_varint(data: Buffer, at: int, stop: int) -> tuple[int, int]:
    value = shift = 0
    while at < stop and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise InvalidModel("the model is truncated or no ONNX model: a number is cut off at its end")
