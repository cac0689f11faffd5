"""The files of an ONNX model: its graph, and the external data that it names. Needs onnx."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx

from defer.api import ModelFile, check_model_path
from defer.documents.files import check_file
from defer.errors import FileMissing, InvalidModel
from node_agent.messages import FileRef

_PIECE = 1 << 20


def model_files(path: Path, on_hashed: Callable[[int, int], None] | None = None) -> dict[ModelFile, Path]:
    """Every file of a model, the graph first, named by its content.

    Args:
        path: The ONNX file.
        on_hashed: Told bytes read so far and bytes in all.

    Raises:
        FileMissing: The model, or a file that it names, does not exist.
        InvalidModel: Not ONNX, or a file that lies outside of the model's folder.
    """
    if path.is_dir():
        raise InvalidModel("this is a folder, not a file", where=str(path), hint="name the ONNX file in it")
    check_file(path)
    if path.stat().st_size == 0:
        raise InvalidModel("the file is empty, so it is no ONNX model", where=str(path))
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf raises what it likes
        raise InvalidModel("not an ONNX model, or a truncated one", where=str(path)) from error
    locations = dict.fromkeys(str(check_model_path(location)) for location in _locations(model))
    found = {path.name: path} | {location: path.parent / location for location in locations}
    for location, file in found.items():
        if not file.is_file():
            raise FileMissing(f"the model's external data {location!r} does not exist", where=str(path))
    total = sum(file.stat().st_size for file in found.values())
    done = 0
    files: dict[ModelFile, Path] = {}
    for location, file in found.items():
        digest = hashlib.sha256()
        with file.open("rb") as source:
            while piece := source.read(_PIECE):
                digest.update(piece)
                done += len(piece)
                if on_hashed is not None:
                    on_hashed(done, total)
        suffix = ".onnx" if file is path else ".bin"
        files[ModelFile(location, FileRef(digest.hexdigest(), file.stat().st_size, suffix))] = file
    return files


def calibration_file(path: Path) -> dict[ModelFile, Path]:
    """A file of calibration requests, named by its content.

    Raises:
        FileMissing: It does not exist.
    """
    check_file(path, "check --calibration")
    with path.open("rb") as source:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
    return {ModelFile(path.name, FileRef(digest, path.stat().st_size)): path}


def _locations(model: onnx.ModelProto) -> Iterator[str]:
    """Paths of external data in the graph, its subgraphs and functions."""
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        tensors = []
        if graphs:
            graph = graphs.pop()
            nodes.extend(graph.node)
            tensors += [*graph.initializer]
            for sparse in graph.sparse_initializer:
                tensors += [sparse.values, sparse.indices]
        else:
            for attribute in nodes.pop().attribute:
                graphs += [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
                tensors += [*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])]
        for tensor in tensors:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                yield from (entry.value for entry in tensor.external_data if entry.key == "location")
