"""gRPC messages of an inference; their tensors are views into the message, never copied on the way in. Pure.

protobuf would copy every tensor twice. A message's fields may come in any order and be told apart without knowing them,
so the tensors' bytes are taken out first, and the small rest is left to protobuf.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from defer.errors import WrongInput
from defer.gateway.calls import (
    Answer,
    Call,
    Tensor,
    Wanted,
    classes_of,
    parameters_of,
    refuse_shared_memory,
)
from defer.gateway.datatypes import WIRE, check_shape, check_size, datatype_of, join_bytes, wire_of
from defer.gateway.protobuf import message
from defer.units import show_count
from node_agent.dtypes import storage

RAW_INPUTS = 7
"""Field of `ModelInferRequest` with the inputs' bytes."""

RAW_OUTPUTS = 6
"""Field of `ModelInferResponse` with the outputs' bytes."""

_LENGTH_DELIMITED = 2
_FIXED = {1: 8, 5: 4}
"""Bytes of fields with a fixed length, by wire type."""

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Where the elements are of a tensor that does not come raw; FP16 and BF16 always do."""


def taken_out(data: bytes, field: int) -> tuple[bytes, list[memoryview]]:
    """A message without one repeated field of bytes, and the values of that field as views.

    Raises:
        WrongInput: Not a message.
    """
    view = memoryview(data)
    kept: list[memoryview] = []
    found: list[memoryview] = []
    at, end = 0, len(data)
    while at < end:
        start = at
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == _LENGTH_DELIMITED:
            length, at = _varint(data, at)
            begin, at = at, at + length
            if tag >> 3 == field and at <= end:
                found.append(view[begin:at])
                continue
        elif kind == 0:
            _, at = _varint(data, at)
        elif kind in _FIXED:
            at += _FIXED[kind]
        else:
            raise WrongInput("not a message of the protocol: an unknown wire type")
        if at > end:
            raise WrongInput("not a message of the protocol: it is cut off")
        kept.append(view[start:at])
    return b"".join(kept), found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise WrongInput("not a message of the protocol: a number is cut off")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7


def parse(data: bytes, trace: str = "") -> Call:
    """The call in a `ModelInferRequest`.

    Raises:
        WrongInput: Not a request, or its tensors are not what it says.
    """
    rest, raw = taken_out(data, RAW_INPUTS)
    try:
        request = message("ModelInferRequest").FromString(rest)
    except DecodeError as error:
        raise WrongInput(f"not an inference request: {error}") from None
    parameters = parameters_of(values(request.parameters))
    if raw and len(raw) != len(request.inputs):
        raise WrongInput(
            f"{show_count(len(request.inputs), 'input')} came with {show_count(len(raw), 'raw content')}"
        )
    inputs = tuple(_tensor(given, raw[at] if raw else None) for at, given in enumerate(request.inputs))
    return Call(
        request.model_name,
        request.model_version,
        request.id,
        inputs,
        tuple(_wanted(output) for output in request.outputs),
        True,
        parameters.timeout_s,
        parameters.priority,
        trace,
    )


def values(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters by name, whichever kind each is."""
    return {
        key: getattr(parameter, parameter.WhichOneof("parameter_choice") or "", None)
        for key, parameter in parameters.items()
    }


def _tensor(given: Any, raw: memoryview | None) -> Tensor:
    refuse_shared_memory("input", given.name, values(given.parameters))
    wire = wire_of(given.datatype, given.name)
    shape = tuple(given.shape)
    if raw is None:
        return Tensor(given.name, wire, shape, _from_contents(given, shape))
    if given.HasField("contents"):
        raise WrongInput(f"input {given.name!r} has both raw and other contents")
    check_size(given.name, given.datatype, shape, len(raw))
    return Tensor(given.name, wire, shape, raw)


def _from_contents(given: Any, shape: Sequence[int]) -> bytes:
    check_shape(given.name, shape)
    field = _CONTENTS.get(given.datatype)
    if field is None:
        raise WrongInput(f"input {given.name!r} of {given.datatype} must come as raw contents")
    elements = getattr(given.contents, field)
    if len(elements) != math.prod(shape):
        raise WrongInput(
            f"input {given.name!r} has {show_count(len(elements), 'element')} in `{field}`, "
            f"its shape {list(shape)} says {math.prod(shape)}"
        )
    if given.datatype == "BYTES":
        return join_bytes(elements)
    try:
        return np.array(elements, storage(WIRE[given.datatype])).tobytes()
    except OverflowError as error:
        raise WrongInput(f"input {given.name!r} is not {given.datatype}: {error}") from None


def _wanted(output: Any) -> Wanted:
    parameters = values(output.parameters)
    refuse_shared_memory("output", output.name, parameters)
    return Wanted(output.name, True, classes_of(output.name, parameters))


def response(call: Call, answer: Answer, *, final: bool = False) -> bytes:
    """An answer as the bytes of a `ModelInferResponse`; a tensor is copied once, to where it is sent from.

    Args:
        call: What was asked.
        answer: The answer.
        final: Whether to say that no other answer to this request follows, as streams do.
    """
    told = message("ModelInferResponse")(model_name=answer.model, model_version=answer.version, id=call.id)
    if final:
        told.parameters["triton_final_response"].bool_param = True
    parts: list[Any] = [b""]
    for header, frame in zip(answer.headers, answer.frames, strict=True):
        told.outputs.add(name=header.name, datatype=datatype_of(header.dtype), shape=header.shape)
        parts += (_delimited(RAW_OUTPUTS, header.nbytes), frame)
    parts[0] = told.SerializeToString()
    return b"".join(parts)


def stream_response(body: bytes) -> bytes:
    """A `ModelInferResponse` as the bytes of a `ModelStreamInferResponse`."""
    return b"".join((_delimited(2, len(body)), body))


def stream_error(text: str) -> bytes:
    """An error as the bytes of a `ModelStreamInferResponse`."""
    said: bytes = message("ModelStreamInferResponse")(error_message=text).SerializeToString()
    return said


def _delimited(field: int, length: int) -> bytes:
    """Tag and length in front of a field's bytes."""
    out = bytearray([field << 3 | _LENGTH_DELIMITED])
    while length >= 0x80:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    out.append(length)
    return bytes(out)
