"""Writes a network to disk, weight by weight, so that never more than one weight is held in memory."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING

from models.building import recipe
from models.errors import UnwritablePathError

if TYPE_CHECKING:
    import onnx

    from models.graph import Recipe, Weight

EXTERNAL_ABOVE = 1 << 30
"""Bytes of weights above which they go to a file of their own; one protobuf message ends at 2 GiB."""

_ALIGNMENT = 4096
"""External weights start on pages, so that an engine can map them."""

_EMBEDDED_UP_TO = 64
"""Bytes up to which a weight stays in the graph; loaders want shapes and scalars at hand."""

# Field numbers of onnx.proto, which never change.
_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW_DATA = 7, 5, 9


def save(name: str, path: str | os.PathLike[str], *, seed: int = 0, external: bool | None = None) -> Path:
    """Write the network to an ONNX file, all or nothing.

    Args:
        name: One of `models.NAMES`.
        path: The file; one that exists is replaced.
        seed: Seed of the weights.
        external: Put the weights into `<path>.data` beside it; by default only above 1 GiB.

    Returns:
        The path of the ONNX file.

    Raises:
        UnknownModelError: There is no such network.
        UnwritablePathError: The folder is missing or not writable, the path is a folder, or the disk is full.
        WrongArgumentError: The seed is negative.
        MissingPackageError: onnx is not installed.
    """
    made = recipe(name, seed=seed)
    target = Path(path)
    if external is None:
        external = made.weight_bytes > EXTERNAL_ABOVE
    try:
        if target.exists() and not target.is_file():
            # Replacing a device node or a pipe by a file would break more than this program.
            raise OSError(errno.EEXIST, "it exists and is not a regular file")
        if external:
            _save_external(made, target)
        else:
            _replace(target, lambda file: _write_embedded(made, file))
    except OSError as error:
        reason = error.strerror or str(error)
        raise UnwritablePathError(
            f"cannot write {name!r} to {str(target)!r}: {reason}", hint=_advice(target, error)
        ) from error
    return target


def _save_external(made: Recipe, target: Path) -> None:
    data = target.with_name(target.name + ".data")
    model, places = _with_places(made, data.name)

    def write_data(file: IO[bytes]) -> None:
        for weight, offset in places:
            file.write(bytes(offset - file.tell()))
            file.write(_bytes_of(weight))

    _replace(data, write_data)
    # The graph comes last: whoever finds it finds its weights too.
    _replace(target, lambda file: _write(file, model.SerializeToString(deterministic=True)))


def _with_places(made: Recipe, location: str) -> tuple[onnx.ModelProto, list[tuple[Weight, int]]]:
    """The graph with references into the file `location`, and each weight's offset in it."""
    model = type(made.model)()
    model.CopyFrom(made.model)
    places: list[tuple[Weight, int]] = []
    end = 0
    for weight in made.weights:
        tensor = model.graph.initializer.add()
        tensor.CopyFrom(weight.header())
        if weight.nbytes <= _EMBEDDED_UP_TO:
            tensor.raw_data = weight.data().tobytes()
            continue
        offset = -(-end // _ALIGNMENT) * _ALIGNMENT
        end = offset + weight.nbytes
        places.append((weight, offset))
        tensor.data_location = type(tensor).EXTERNAL
        for key, value in (("location", location), ("offset", str(offset)), ("length", str(weight.nbytes))):
            tensor.external_data.add(key=key, value=value)
    return model, places


def _write_embedded(made: Recipe, file: IO[bytes]) -> None:
    """Write what `made.to_proto()` would serialise to, with one weight in memory at a time.

    Protobuf puts fields in the order of their numbers and a length before each, so the message is
    written in pieces: what precedes the graph, what precedes its initializers, each of these, and the rest.
    """
    before, after = _parted(made.model, _MODEL_GRAPH, drop="graph")
    graph_before, graph_after = _parted(made.model.graph, _GRAPH_INITIALIZER)
    tensors = []
    for weight in made.weights:
        header = weight.header().SerializeToString(deterministic=True)
        header += _tag(_TENSOR_RAW_DATA, weight.nbytes)
        tensors.append((_tag(_GRAPH_INITIALIZER, len(header) + weight.nbytes) + header, weight))
    length = len(graph_before) + len(graph_after)
    length += sum(len(header) + weight.nbytes for header, weight in tensors)
    file.write(before + _tag(_MODEL_GRAPH, length) + graph_before)
    for header, weight in tensors:
        file.write(header)
        file.write(_bytes_of(weight))
    file.write(graph_after + after)


def _parted(
    message: onnx.ModelProto | onnx.GraphProto, number: int, drop: str | None = None
) -> tuple[bytes, bytes]:
    """The message serialised in two parts: fields numbered below `number`, and those above."""
    parts = []
    for below in (True, False):
        part = type(message)()
        part.CopyFrom(message)
        for descriptor, _ in message.ListFields():
            if (descriptor.number < number) != below or descriptor.name == drop:
                part.ClearField(descriptor.name)
        parts.append(part.SerializeToString(deterministic=True))
    return parts[0], parts[1]


def _tag(number: int, length: int) -> bytes:
    """What comes before a field of `length` bytes: number and wire type 2, then the length, as varints."""
    return _varint(number << 3 | 2) + _varint(length)


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)


def _bytes_of(weight: Weight) -> memoryview:
    return weight.data().reshape(-1).view("uint8").data


def _write(file: IO[bytes], content: bytes) -> None:
    file.write(content)


def _replace(target: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Let `write` fill a new file beside `target` and put it in its place once it is whole."""
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _advice(target: Path, error: OSError) -> str:
    if not target.parent.is_dir():
        return f"make the folder {str(target.parent)!r} first"
    if target.is_dir():
        return "name a file, as in model.onnx"
    if error.errno == errno.ENOSPC:
        return "free some space or choose another disk"
    return "choose a place that you may write to"
