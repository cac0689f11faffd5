"""Partitions as content-addressed files, so that a weight is stored and sent once whatever the plan."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx_ir as ir

from partitioner import proto, tensors, wire
from partitioner.splitting import Partition
from partitioner.writing import atomic, graph_bytes, translated_errors

EXTERNAL_FROM: Final = 64 * 1024
"""Initializers of at least this many bytes get a file of their own."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a store; its name is its sha256 and a suffix.

    Attributes:
        sha256: hex digest of the content.
        nbytes: size of the file.
    """

    sha256: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class StoredPartition:
    """The files that one partition consists of.

    Attributes:
        graph: ``<sha256>.onnx``, loadable by path where the weights lie beside it.
        weights: ``<sha256>.bin`` each, in the order of the partition's initializers, each once.
    """

    graph: StoredFile
    weights: tuple[StoredFile, ...]


def write_store(partition: Partition, directory: str | Path) -> StoredPartition:
    """Write a partition into a content-addressed store.

    The same partition gives the same files; a file that is there already is not written again. The graph
    refers to the weights by bare file name, so both must lie in one directory; ONNX Runtime refuses a weight
    file that is a symbolic link out of the graph's own (resolved) directory, and takes hard links.

    Args:
        partition: from :func:`split`.
        directory: made if missing.

    Raises:
        WriteFailed: if the system refuses; no partial file is left.
        MissingWeights: if the model's own file is gone.
    """
    folder = Path(directory)
    stored: dict[str, StoredFile] = {}
    replaced: dict[str, ir.TensorProtocol | None] = {}
    with translated_errors(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, value in partition.model.graph.initializers.items():
            tensor = value.const_value
            if tensor is None or tensor.dtype == ir.DataType.STRING or tensor.nbytes < EXTERNAL_FROM:
                continue
            digest = tensors.sha256(tensor)
            target = folder / f"{digest}.bin"
            if digest not in stored and not _present(target, tensor.nbytes):
                with atomic(target) as file:
                    for chunk in tensors.chunks(tensor):
                        file.write(chunk)
            stored[digest] = StoredFile(digest, tensor.nbytes)
            replaced[name] = ir.ExternalTensor(
                target.name, 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
            )
        graph = graph_bytes(partition.model, replaced)
        content = proto.serialize_envelope(partition.model) + wire.field(wire.MODEL_GRAPH, graph)
        digest = hashlib.sha256(content).hexdigest()
        if not _present(folder / f"{digest}.onnx", len(content)):
            with atomic(folder / f"{digest}.onnx") as file:
                file.write(content)
    return StoredPartition(StoredFile(digest, len(content)), tuple(stored.values()))


def _present(path: Path, nbytes: int) -> bool:
    return path.is_file() and path.stat().st_size == nbytes
