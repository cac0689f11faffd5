"""HTTP bodies of an inference: JSON, and JSON with the tensors' bytes behind it (the binary data extension). Pure.

    POST /v2/models/M/infer
    Inference-Header-Content-Length: 123

    {"inputs": [{"name": "x", …, "parameters": {"binary_data_size": 4096}}]}<4096 bytes>

Binary tensors are views into the body, never copies of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from defer.api import ModelInfo
from defer.errors import WrongInput
from defer.gateway.calls import (
    Answer,
    Call,
    Parameters,
    Tensor,
    Wanted,
    classes_of,
    parameters_of,
    refuse_shared_memory,
)
from defer.gateway.datatypes import check_size, datatype_of, from_json, to_json, wire_of
from node_agent.dtypes import ITEM_BYTES

_NO_DATA = msgspec.Raw()


class _Input(msgspec.Struct):
    name: str
    shape: tuple[int, ...]
    datatype: str
    parameters: dict[str, Any] = {}
    data: msgspec.Raw = _NO_DATA


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class _Request(msgspec.Struct):
    inputs: list[_Input]
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: list[_Output] = []


_REQUESTS = msgspec.json.Decoder(_Request)
_ENCODER = msgspec.json.Encoder()


def parse(model: str, version: str, body: Any, json_length: int | None, trace: str = "") -> Call:
    """The call in a request's body.

    Args:
        model: The model's name, from the path.
        version: Its version, or empty.
        body: The whole body.
        json_length: Length of the JSON in front, where binary data follows it; None where all is JSON.
        trace: W3C trace context, from the header.

    Raises:
        WrongInput: Not a request, or its tensors are not what it says.
    """
    view = memoryview(body)
    if json_length is not None and not 0 < json_length <= len(view):
        raise WrongInput(f"Inference-Header-Content-Length is {json_length}, the body has {len(view)} bytes")
    try:
        request = _REQUESTS.decode(view if json_length is None else view[:json_length])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WrongInput(f"not an inference request: {error}") from None
    parameters = parameters_of(request.parameters)
    inputs, at = [], len(view) if json_length is None else json_length
    for given in request.inputs:
        tensor, at = _tensor(given, view, at)
        inputs.append(tensor)
    if at != len(view):
        raise WrongInput(f"{len(view) - at} bytes follow the binary data of the last input")
    return Call(
        model,
        version,
        request.id,
        tuple(inputs),
        tuple(_wanted(output, parameters) for output in request.outputs),
        parameters.binary,
        parameters.timeout_s,
        parameters.priority,
        trace,
    )


def input_names(body: Any, json_length: int | None) -> list[str]:
    """The names of a request's inputs, whatever else is wrong with it; none where it is not a request."""
    view = memoryview(body)
    try:
        request = _REQUESTS.decode(view if json_length is None else view[:json_length])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return []
    return [given.name for given in request.inputs]


def _tensor(given: _Input, view: memoryview, at: int) -> tuple[Tensor, int]:
    refuse_shared_memory("input", given.name, given.parameters)
    wire = wire_of(given.datatype, given.name)
    size = given.parameters.get("binary_data_size")
    if size is None:
        if not given.data:
            raise WrongInput(f"input {given.name!r} has neither `data` nor `binary_data_size`")
        raw = from_json(given.name, given.datatype, given.shape, given.data)
        return Tensor(given.name, wire, given.shape, raw), at
    if given.data:
        raise WrongInput(f"input {given.name!r} has both `data` and `binary_data_size`")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(view) - at:
        raise WrongInput(
            f"input {given.name!r}: `binary_data_size` is {size!r}, {len(view) - at} bytes of binary data are left"
        )
    check_size(given.name, given.datatype, given.shape, size)
    return Tensor(given.name, wire, given.shape, view[at : at + size]), at + size


def _wanted(output: _Output, parameters: Parameters) -> Wanted:
    refuse_shared_memory("output", output.name, output.parameters)
    binary = output.parameters.get("binary_data", parameters.binary)
    if not isinstance(binary, bool):
        raise WrongInput(f"output {output.name!r}: `binary_data` is {binary!r}, neither true nor false")
    return Wanted(output.name, binary, classes_of(output.name, output.parameters))


def parse_raw(model: ModelInfo, version: str, body: Any, trace: str = "") -> Call:
    """The call in a raw binary request: the body is the only input's bytes, and its shape follows from their number.

    Raises:
        WrongInput: The model has several inputs or several free dimensions, or the bytes fit no shape.
    """
    if len(model.inputs) != 1:
        raise WrongInput(f"model {model.name!r} has {len(model.inputs)} inputs: a raw binary request has one")
    (spec,) = model.inputs
    free = [at for at, dim in enumerate(spec.shape) if isinstance(dim, str)]
    fixed = math.prod(dim for dim in spec.shape if isinstance(dim, int))
    if spec.dtype == "string":
        if fixed != 1 or free:
            raise WrongInput(
                f"input {spec.name!r} has several elements: a raw binary request has one of BYTES"
            )
        shape = tuple(dim for dim in spec.shape if isinstance(dim, int))
        element = len(body).to_bytes(4, "little") + bytes(body)
        return Call(
            model.name, version, "", (Tensor(spec.name, spec.dtype, shape, element),), (), True, trace=trace
        )
    width = ITEM_BYTES[spec.dtype] * fixed
    count, rest = divmod(len(body), width) if width else (0, len(body))
    if len(free) > 1 or rest or (not free and count != 1):
        dims = [dim if isinstance(dim, int) else -1 for dim in spec.shape]
        if len(free) > 1 or not width:
            why = "do not say the shape"
        elif free:
            why = f"are not a multiple of {width} bytes, one row,"
        else:
            why = f"are not the {width} bytes"
        raise WrongInput(f"{len(body)} bytes {why} of input {spec.name!r}, {datatype_of(spec.dtype)}{dims}")
    shape = tuple(count if isinstance(dim, str) else dim for dim in spec.shape)
    tensor = Tensor(spec.name, spec.dtype, shape, memoryview(body))
    return Call(model.name, version, "", (tensor,), (), True, trace=trace)


@dataclass(frozen=True, slots=True)
class Body:
    """A response's body.

    Attributes:
        parts: Its pieces, in order; large ones are the frames themselves.
        json_length: Length of the JSON in front, where binary data follows it; None where all is JSON.
    """

    parts: Sequence[Any]
    json_length: int | None

    @property
    def nbytes(self) -> int:
        """Its length in bytes."""
        return sum(len(part) for part in self.parts)


def answer_body(call: Call, answer: Answer) -> Body:
    """The response's body.

    Raises:
        WrongInput: An output asked for as JSON cannot be written so.
    """
    binary = {wanted.name: wanted.binary for wanted in call.wanted}
    outputs: list[dict[str, Any]] = []
    frames: list[Any] = []
    for header, frame in zip(answer.headers, answer.frames, strict=True):
        output: dict[str, Any] = {
            "name": header.name,
            "datatype": datatype_of(header.dtype),
            "shape": header.shape,
        }
        if binary.get(header.name, call.binary):
            output["parameters"] = {"binary_data_size": header.nbytes}
            frames.append(frame)
        else:
            output["data"] = to_json(header.name, header.dtype, header.shape, frame)
        outputs.append(output)
    said: dict[str, Any] = {"model_name": answer.model, "model_version": answer.version, "outputs": outputs}
    if call.id:
        said["id"] = call.id
    head = _ENCODER.encode(said)
    return Body((head, *frames), len(head) if frames else None)
