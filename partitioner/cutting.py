"""Which tensors may cross a boundary, and how one is declared there."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from partitioner.chain import TensorSpec
from partitioner.tensors import dtype_name

UNKNOWN_RANK: Final = ("*",)
"""Shape of a model input or output of which not even the rank is known; no boundary tensor has it."""


def refusal(value: ir.Value) -> str:
    """Why a value cannot cross a boundary; empty if it can.

    Only dense tensors of whole-byte elements and known rank cross: an agent must be able to check a frame
    against its declaration before it takes it.
    """
    node = value.producer()
    maker = f"made by op {node.op_type!r}" if node is not None else "an input of the model"
    where = f"{value.name!r}, {maker},"
    if value.type is not None and not isinstance(value.type, ir.TensorType):
        return f"{where} is a {type(value.type).__name__.removesuffix('Type').lower()}, not a tensor"
    if value.dtype is None or value.dtype == ir.DataType.UNDEFINED:
        return f"the element type of {where} is unknown"
    if value.dtype == ir.DataType.STRING:
        return f"{where} holds strings"
    if value.dtype.bitwidth % 8:
        return f"{where} has elements of {value.dtype.bitwidth} bits"
    if value.shape is None:
        return f"the rank of {where} is unknown"
    return ""


def spec(value: ir.Value) -> TensorSpec:
    """Declaration of a value: fixed dimensions as ints, free ones by name."""
    dtype = "undefined" if value.dtype is None else dtype_name(value.dtype)
    if value.shape is None:
        return TensorSpec(value.name or "", dtype, UNKNOWN_RANK)
    dims = (
        dim if isinstance(dim, int) else (dim.value or f"dim{axis}") for axis, dim in enumerate(value.shape)
    )
    return TensorSpec(value.name or "", dtype, tuple(dims))
