"""From a path, a ModelProto or an onnx-ir model to an onnx-ir model whose weights stay on disk."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from partitioner import proto, wire
from partitioner.errors import InvalidModel, MissingWeights, ModelNotFound, UnsafePath

if TYPE_CHECKING:
    import onnx


def load(model: str | Path | onnx.ModelProto | ir.Model) -> tuple[ir.Model, str]:
    """Read a model without reading its weights.

    Args:
        model: path of an ONNX file, or a model in memory (which is not changed).

    Returns:
        The model, and a name for it: the file's stem, or the graph's name.

    Raises:
        InvalidModel: with its subclasses ModelNotFound, MissingWeights and UnsafePath.
        UnsupportedOp: for content that cannot be kept.
    """
    if isinstance(model, ir.Model):
        loaded = model.clone()
    elif isinstance(model, (str, os.PathLike)):
        path = Path(model)
        loaded = proto.parse(_read_stripped(path))
        _resolve(loaded, path)
        return loaded, path.stem
    else:
        loaded = proto.from_proto(model)
    for tensor in _external(loaded):
        if not tensor.base_dir:
            raise MissingWeights(
                f"tensor {tensor.name!r} is stored in {os.fspath(tensor.location)!r}, and a model in memory "
                "does not say where that file is",
                hint="pass the model's path instead",
            )
    return loaded, loaded.graph.name or "model"


def _read_stripped(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise InvalidModel("the file is empty, so it is no ONNX model")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return wire.strip_weights(data)
    except OSError as error:
        raise ModelNotFound(f"the model {path} cannot be read: {error.strerror}") from error
    except InvalidModel as error:
        raise type(error)(f"{path}: {error}", hint=error.hint) from error


def _resolve(model: ir.Model, path: Path) -> None:
    """Bind each external tensor to an absolute file, after checking that it may be read and is there."""
    real = path.resolve()
    # A cache of content-addressed blobs holds symbolic links to model and data in one other folder.
    folders = (path.parent.resolve(), real.parent)
    sizes: dict[Path, int] = {}
    for owner, key, tensor in _external_slots(model):
        location = os.fspath(tensor.location)
        if location == wire.SELF:
            file = real
        else:
            file = path.parent / location
            lexical = Path(os.path.normpath(path.parent.absolute() / location))
            inside = lexical.is_relative_to(os.path.normpath(path.parent.absolute()))
            if Path(location).is_absolute() or not inside or not _within(file.resolve(), folders):
                raise UnsafePath(
                    f"tensor {tensor.name!r} is stored in {location!r}, outside the model's folder {path.parent}",
                    hint="move the data file beside the model and save the model again",
                )
            file = file.resolve()
        if file not in sizes:
            try:
                sizes[file] = file.stat().st_size
            except OSError as error:
                raise MissingWeights(
                    f"the external data {location!r} of tensor {tensor.name!r} cannot be read: {error.strerror}",
                    hint=f"copy it to {path.parent}",
                ) from error
        offset, need = tensor.offset or 0, tensor.nbytes
        if tensor.length is not None and tensor.length != need:
            raise InvalidModel(
                f"tensor {tensor.name!r} of type {tensor.dtype.name.lower()} and shape {tensor.shape} "
                f"needs {need} bytes, but the model stores {tensor.length}"
            )
        if offset < 0 or offset + need > sizes[file]:
            raise MissingWeights(
                f"the external data {location!r} has {sizes[file]} bytes, but tensor {tensor.name!r} ends at "
                f"byte {offset + need}",
                hint="the file is truncated; copy it again",
            )
        bound = ir.ExternalTensor(
            os.fspath(file),
            offset,
            need,
            tensor.dtype,
            shape=tensor.shape,
            name=tensor.name,
            doc_string=tensor.doc_string,
        )
        _put(owner, key, bound)


def _within(path: Path, folders: tuple[Path, ...]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _external(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    return (tensor for _, _, tensor in _external_slots(model))


def _external_slots(model: ir.Model) -> Iterator[tuple[ir.Value | ir.Node, str, ir.ExternalTensor]]:
    """Every external tensor and where it is held: an initializer's value, or an attribute of a node."""
    graphs = [*model.graphs()]
    for function in model.functions.values():
        graphs += [function.graph, *function.graph.subgraphs()]
    for graph in graphs:
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value, "", value.const_value
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.type == ir.AttributeType.TENSOR and isinstance(
                    attribute.value, ir.ExternalTensor
                ):
                    yield node, name, attribute.value


def _put(owner: ir.Value | ir.Node, key: str, tensor: ir.ExternalTensor) -> None:
    if isinstance(owner, ir.Value):
        owner.const_value = tensor
    else:
        owner.attributes[key] = ir.AttrTensor(key, tensor)
