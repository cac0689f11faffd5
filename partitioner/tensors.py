"""Weights as byte streams: read in chunks from wherever they live, never held whole when they are in a file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import onnx_ir as ir

from partitioner import proto
from partitioner.errors import MissingWeights

CHUNK: Final = 4 * 1024 * 1024

_DTYPE_NAMES: Final[dict[ir.DataType, str]] = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.DOUBLE: "float64",
    ir.DataType.FLOAT8E4M3FN: "float8_e4m3fn",
    ir.DataType.FLOAT8E4M3FNUZ: "float8_e4m3fnuz",
    ir.DataType.FLOAT8E5M2: "float8_e5m2",
    ir.DataType.FLOAT8E5M2FNUZ: "float8_e5m2fnuz",
    ir.DataType.FLOAT8E8M0: "float8_e8m0fnu",
    ir.DataType.FLOAT4E2M1: "float4_e2m1fn",
}


def dtype_name(dtype: ir.DataType) -> str:
    """NumPy's name of an element type, ml_dtypes' where NumPy has none, or ``string``."""
    return _DTYPE_NAMES.get(dtype, dtype.name.lower())


def element_bytes(dtype: ir.DataType, elements: int) -> int:
    """Bytes of a packed tensor; a string counts as 16 bytes, since nobody knows before it is read."""
    if dtype == ir.DataType.STRING:
        return 16 * elements
    return (elements * int(dtype.bitwidth) + 7) // 8


def chunks(tensor: ir.TensorProtocol) -> Iterator[bytes | memoryview]:
    """Raw little-endian bytes of a tensor (ONNX ``raw_data`` layout), in pieces of at most 4 MiB from files.

    Raises:
        MissingWeights: if its file cannot be read or is too short.
    """
    if not isinstance(tensor, ir.ExternalTensor):
        yield tensor.tobytes()
        return
    left = tensor.nbytes
    try:
        with Path(tensor.path).open("rb") as file:
            file.seek(tensor.offset or 0)
            while left and (chunk := file.read(min(CHUNK, left))):
                left -= len(chunk)
                yield chunk
    except OSError as error:
        raise MissingWeights(
            f"the data of tensor {tensor.name!r} cannot be read from {os.fspath(tensor.path)}: {error.strerror}"
        ) from error
    if left:
        raise MissingWeights(f"{tensor.path} ends {left} bytes before the end of tensor {tensor.name!r}")


def in_memory(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """The tensor itself, or a copy of its bytes if it lies in a file."""
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    return proto.raw_tensor(tensor, b"".join(chunks(tensor)))


def renamed(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """The same data under another name; the tensor given keeps its own, since it may be the caller's."""
    if tensor.name == name:
        return tensor
    if isinstance(tensor, ir.ExternalTensor):
        return ir.ExternalTensor(
            tensor.location,
            tensor.offset,
            tensor.length,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=name,
            base_dir=tensor.base_dir,
        )
    if tensor.dtype == ir.DataType.STRING:
        return ir.StringTensor(tensor.numpy(), shape=ir.Shape(tensor.shape.numpy()), name=name)
    return ir.LazyTensor(lambda: tensor, dtype=tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name)


def sha256(tensor: ir.TensorProtocol) -> str:
    """Hex digest of the tensor's raw bytes."""
    digest = hashlib.sha256()
    for chunk in chunks(tensor):
        digest.update(chunk)
    return digest.hexdigest()
