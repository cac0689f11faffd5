"""Quantise/dequantise pairs around the ops that compute: symmetric, per tensor before, per channel in the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from partitioner.precision.folding import constant, free_name, weight
from partitioner.precision.policy import COMPUTE, INT8_DEPTH, Precision

Ranges = Mapping[str, tuple[float, float]]
"""Least and greatest number seen in a tensor, by its name in the model."""


def quantizable(node: ir.Node) -> int | None:
    """The axis of the weight's output channels, if the op multiplies a variable by a constant float32 weight."""
    if node.op_type not in COMPUTE or node.domain not in ("", "ai.onnx") or len(node.inputs) < 2:
        return None
    data, kernel = node.inputs[0], node.inputs[1]
    if data is None or kernel is None or data.is_initializer() or not kernel.is_initializer():
        return None
    tensor = kernel.const_value
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) < 2:
        return None
    if node.op_type == "ConvTranspose":
        return 1 if node.attributes.get_int("group", 1) == 1 else None
    if node.op_type == "Gemm":
        return None if node.attributes.get_int("transA", 0) else 1 - node.attributes.get_int("transB", 0)
    return len(tensor.shape) - 1 if node.op_type == "MatMul" else 0


def depth(node: ir.Node, axis: int) -> int:
    """Products that are summed for one output of an op for which `quantizable` says `axis`."""
    kernel = node.inputs[1]
    assert kernel is not None
    assert kernel.const_value is not None
    sizes = kernel.const_value.shape.numpy()
    if node.op_type == "ConvTranspose":
        # [in, out, …]: each output position sums over the inputs.
        return sizes[0] * math.prod(sizes[2:])
    return math.prod(size for index, size in enumerate(sizes) if index != axis)


def quantize(graph: ir.Graph, precision: Precision, ranges: Ranges) -> list[str]:
    """Write the pairs into a graph.

    Args:
        graph: is changed.
        precision: int8 or fp8. Where the rest is cast, ops that int8 makes no faster are left to the rest.
        ranges: of the tensors that the computing ops read; one without a range stays wide.

    Returns:
        One sentence per op that stays wide, and why.
    """
    writer = _Writer(graph, precision)
    notes: list[str] = []
    for node in [*graph]:
        if node.op_type not in COMPUTE or node.domain not in ("", "ai.onnx"):
            continue
        axis = quantizable(node)
        data = node.inputs[0]
        where = f"{node.op_type} {node.name or node.outputs[0].name!r}"
        if axis is None or data is None:
            if any(value is not None and value.is_initializer() for value in node.inputs[1:2]):
                notes.append(f"{where} stays wide: its weight is not a float32 matrix of known channels")
            continue
        if data.name not in ranges:
            notes.append(f"{where} stays wide: there is no range for its input {data.name!r}")
            continue
        low, high = ranges[data.name]
        if not np.isfinite([low, high]).all() or low > high:
            notes.append(f"{where} stays wide: the range of {data.name!r} is {low:g} to {high:g}")
            continue
        if precision.rest and depth(node, axis) < INT8_DEPTH:
            continue
        node.replace_input_with(0, writer.activation(data, low, high))
        kernel = node.inputs[1]
        assert kernel is not None
        node.replace_input_with(1, writer.kernel(node, kernel, axis))
    writer.drop_unused()
    return notes


class _Writer:
    def __init__(self, graph: ir.Graph, precision: Precision) -> None:
        assert precision.dtype is not None
        self._graph = graph
        self._precision = precision
        self._dtype: ir.DataType = precision.dtype
        self._activations: dict[ir.Value, ir.Value] = {}
        self._kernels: dict[tuple[ir.Value, int], tuple[ir.Value, ir.Value, ir.Value]] = {}
        self._replaced: dict[ir.Value, None] = {}

    def activation(self, value: ir.Value, low: float, high: float) -> ir.Value:
        """`value` through one pair, made once whoever reads it."""
        if value in self._activations:
            return self._activations[value]
        step = max(abs(low), abs(high)) / self._precision.largest
        # A tensor of zeros has no step; any positive one represents it.
        scale = self._weight(f"{value.name}.scale", np.asarray(step or 1.0, np.float32), ir.DataType.FLOAT)
        zero = self._weight(f"{value.name}.zero", self._zeros(()), self._dtype)
        narrow = ir.node("QuantizeLinear", [value, scale, zero], name=f"{value.name}.quantize")
        narrow.outputs[0].name = f"{value.name}.{self._precision.name}"
        narrow.outputs[0].type, narrow.outputs[0].shape = ir.TensorType(self._dtype), value.shape
        wide = self._dequantize(f"{value.name}.dequantized", narrow.outputs[0], scale, zero, value.shape)
        first = value.producer()
        if first is None:
            self._graph.insert_before(self._graph[0], [narrow, wide])
        else:
            self._graph.insert_after(first, [narrow, wide])
        self._activations[value] = wide.outputs[0]
        return wide.outputs[0]

    def kernel(self, node: ir.Node, value: ir.Value, axis: int) -> ir.Value:
        """`value` as narrow numbers and what makes them wide again, just before `node`."""
        if (value, axis) not in self._kernels:
            array = np.asarray(constant(value), np.float32)
            others = tuple(dim for dim in range(array.ndim) if dim != axis)
            largest = np.abs(array).max(axis=others)
            steps = np.where(largest > 0, largest / self._precision.largest, 1.0).astype(np.float32)
            shape = [1] * array.ndim
            shape[axis] = -1
            narrow = self._round(array / steps.reshape(shape))
            self._kernels[value, axis] = (
                self._weight(f"{value.name}.{self._precision.name}", narrow, self._dtype),
                self._weight(f"{value.name}.scale", steps, ir.DataType.FLOAT),
                self._weight(f"{value.name}.zero", self._zeros(steps.shape), self._dtype),
            )
            self._replaced[value] = None
        numbers, scale, zero = self._kernels[value, axis]
        # One dequantiser per reader: engines fuse it into the reader, which they cannot when it is shared.
        made = f"{node.outputs[0].name}.{value.name}"
        wide = self._dequantize(made, numbers, scale, zero, value.shape, axis=axis)
        self._graph.insert_before(node, wide)
        return wide.outputs[0]

    def drop_unused(self) -> None:
        """Remove the wide weights that nobody reads any more."""
        for value in self._replaced:
            if not value.uses() and not value.is_graph_output() and value.name:
                del self._graph.initializers[value.name]

    def _dequantize(
        self,
        name: str,
        value: ir.Value,
        scale: ir.Value,
        zero: ir.Value,
        shape: ir.Shape | None,
        *,
        axis: int | None = None,
    ) -> ir.Node:
        attributes = {} if axis is None else {"axis": axis}
        node = ir.node("DequantizeLinear", [value, scale, zero], attributes, name=f"{name}.dequantize")
        node.outputs[0].name = name
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), shape
        return node

    def _weight(self, name: str, array: npt.NDArray[np.generic], dtype: ir.DataType) -> ir.Value:
        return weight(self._graph, free_name(self._graph, name), array, dtype)

    def _zeros(self, shape: tuple[int, ...]) -> npt.NDArray[np.generic]:
        return np.zeros(shape, np.int8 if self._dtype == ir.DataType.INT8 else ml_dtypes.float8_e4m3fn)

    def _round(self, array: npt.NDArray[np.float32]) -> npt.NDArray[np.generic]:
        if self._dtype == ir.DataType.INT8:
            return np.asarray(np.clip(np.rint(array), -127, 127), np.int8)
        return np.asarray(array, ml_dtypes.float8_e4m3fn)
