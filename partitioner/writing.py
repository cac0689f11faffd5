"""Whole model files, streamed: weights go from where they are to where they belong in chunks."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Final

import onnx_ir as ir

from partitioner import proto, tensors, wire
from partitioner.errors import WriteFailed

_STREAMED_FROM: Final = 64 * 1024


@contextmanager
def translated_errors(folder: Path) -> Iterator[None]:
    """Turn what the operating system refuses into this room's error.

    Raises:
        WriteFailed: instead of OSError.
    """
    try:
        yield
    except OSError as error:
        raise WriteFailed(
            f"{folder} cannot be written: {error.strerror or error}",
            hint="free space or choose another directory",
        ) from error


@contextmanager
def atomic(target: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name complete or not at all, and that its owner alone may read."""
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".partial-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def graph_bytes(model: ir.Model, replaced: dict[str, ir.TensorProtocol | None]) -> bytes:
    """The serialised graph of a model.

    Args:
        model: is not changed.
        replaced: by name, another tensor to write in place of an initializer, or None to leave it out.
    """
    values = dict(model.graph.initializers)
    kept = {name: value.const_value for name, value in values.items()}
    try:
        for name, value in values.items():
            if name not in replaced:
                tensor = kept[name]
                value.const_value = None if tensor is None else tensors.in_memory(tensor)
            elif replaced[name] is None:
                del model.graph.initializers[name]
            else:
                value.const_value = replaced[name]
        return proto.serialize_graph(model.graph, ir_version=model.ir_version)
    finally:
        model.graph.initializers.clear()
        for name, value in values.items():
            value.const_value = kept[name]
            model.graph.initializers[name] = value


def write_model(model: ir.Model, target: Path, *, embed_up_to: int) -> tuple[str, str | None]:
    """Write a model file, and beside it a data file if its weights are large.

    Args:
        model: is not changed.
        target: the ``.onnx`` file; a data file is called the same with ``.data`` appended.
        embed_up_to: bytes of weights that may lie inside the model file (protobuf ends at 2 GiB).

    Returns:
        Sha256 of the model file, and of the data file or None.

    Raises:
        OSError: as the system gives it.
    """
    streamed = {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
        and value.const_value.dtype != ir.DataType.STRING
        and value.const_value.nbytes >= _STREAMED_FROM
    }
    if sum(tensor.nbytes for tensor in streamed.values()) > embed_up_to:
        data = target.with_name(target.name + ".data")
        references, data_digest = _write_data(data, streamed)
        graph = graph_bytes(model, references)
        content = proto.serialize_envelope(model) + wire.field(wire.MODEL_GRAPH, graph)
        target.write_bytes(content)
        return hashlib.sha256(content).hexdigest(), data_digest
    graph = graph_bytes(model, dict.fromkeys(streamed))
    digest = hashlib.sha256()
    with target.open("wb") as file:
        for piece in _embedded(proto.serialize_envelope(model), graph, streamed):
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest(), None


def _embedded(
    envelope: bytes, graph: bytes, streamed: dict[str, ir.TensorProtocol]
) -> Iterator[bytes | memoryview]:
    """The bytes of a ModelProto whose graph ends with the streamed initializers."""
    heads: list[bytes] = []
    total = len(graph)
    for name, tensor in streamed.items():
        inner = proto.tensor_header(tensor, name) + wire.field_header(wire.TENSOR_RAW_DATA, tensor.nbytes)
        head = wire.field_header(wire.GRAPH_INITIALIZER, len(inner) + tensor.nbytes) + inner
        heads.append(head)
        total += len(head) + tensor.nbytes
    yield envelope + wire.field_header(wire.MODEL_GRAPH, total) + graph
    for head, tensor in zip(heads, streamed.values(), strict=True):
        yield head
        yield from tensors.chunks(tensor)


def _write_data(
    target: Path, streamed: dict[str, ir.TensorProtocol]
) -> tuple[dict[str, ir.TensorProtocol | None], str]:
    references: dict[str, ir.TensorProtocol | None] = {}
    digest = hashlib.sha256()
    offset = 0
    with target.open("wb") as file:
        for name, tensor in streamed.items():
            padding = bytes(-offset % 4096)  # whole pages, so that an engine can map each weight
            offset += len(padding)
            for piece in chain((padding,), tensors.chunks(tensor)):
                digest.update(piece)
                file.write(piece)
            references[name] = ir.ExternalTensor(
                target.name,
                offset,
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=name,
            )
            offset += tensor.nbytes
    return references, digest.hexdigest()
