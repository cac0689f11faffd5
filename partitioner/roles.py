"""Which ops make up the row of positions, and which are repeated wherever their results are needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from partitioner.needs import bodies, needs
from partitioner.proto import ONNX_DOMAINS, ValueType

RANDOM: Final = frozenset(
    (
        "RandomNormal",
        "RandomUniform",
        "RandomNormalLike",
        "RandomUniformLike",
        "Multinomial",
        "Bernoulli",
        "Dropout",
    )
)
"""Ops that may give another result each time, so they run exactly once."""

# fmt: off
_SHAPE_ARITHMETIC: Final = frozenset((
    "Abs", "Add", "And", "Cast", "CastLike", "Ceil", "Clip", "Concat", "ConstantOfShape", "Div",
    "Equal", "Expand", "Floor", "Gather", "Greater", "GreaterOrEqual", "Identity", "Less",
    "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Range", "Reciprocal",
    "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "Round", "Shape", "Sign", "Size",
    "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Unsqueeze", "Where",
))
# fmt: on


@dataclass(frozen=True, slots=True)
class Roles:
    """The part each op of a graph plays.

    Attributes:
        main: ops that own a position, in the graph's order.
        constants: values that depend on no input: initializers and what is computed from them alone. They
            are repeated in every partition that reads them.
        shapes: cheap results (rank 0 or 1) computed from shapes alone, by value. They are repeated where
            the tensor whose shape is taken is at hand anyway, and sent (a few bytes) only where it is not.
        dequantized: results of DequantizeLinear on an activation with constant scale. They are repeated, so
            that what crosses a boundary is the quantised tensor, a quarter of the bytes.
    """

    main: tuple[ir.Node, ...]
    constants: frozenset[ir.Value]
    shapes: Mapping[ir.Value, ir.Node]
    dequantized: Mapping[ir.Value, ir.Node]


def assign_roles(model: ir.Model, types: Mapping[str, ValueType]) -> Roles:
    """Sort a graph's ops into roles.

    Args:
        model: prepared, its ops in topological order.
        types: types by value name.

    Returns:
        The roles. A graph in which nothing depends on an input has all its ops as main ones, since a chain
        needs a block.
    """
    graph = model.graph
    constants: set[ir.Value] = set(graph.initializers.values())
    shapes: dict[ir.Value, ir.Node] = {}
    dequantized: dict[ir.Value, ir.Node] = {}
    main: list[ir.Node] = []
    for node in graph:
        reads = needs(node)
        if all(value in constants for value in reads) and _repeatable(node):
            constants.update(node.outputs)
        elif _is_shape(node, reads, constants, shapes, types):
            shapes.update((output, node) for output in node.outputs)
        elif _is_dequantize(node, constants, types) and node.inputs[0] not in dequantized:
            dequantized[node.outputs[0]] = node
        else:
            main.append(node)
    if not main:
        return Roles(tuple(graph), frozenset(graph.initializers.values()), {}, {})
    return Roles(tuple(main), frozenset(constants), shapes, dequantized)


def _repeatable(node: ir.Node) -> bool:
    """Whether running the op twice gives the same result twice."""
    if node.op_type in RANDOM:
        return False
    if node.domain not in ONNX_DOMAINS and node.op_type not in ("DequantizeLinear", "QuantizeLinear"):
        return False
    return all(_repeatable(inner) for body in bodies(node) for inner in body)


def _is_shape(
    node: ir.Node,
    reads: tuple[ir.Value, ...],
    constants: set[ir.Value],
    shapes: Mapping[ir.Value, ir.Node],
    types: Mapping[str, ValueType],
) -> bool:
    if node.op_type not in _SHAPE_ARITHMETIC or node.domain not in ("", "ai.onnx"):
        return False
    if any(output.is_graph_output() for output in node.outputs):
        return False  # it is made once, where the result is handed out
    if node.op_type in ("Shape", "Size"):
        source = types.get(reads[0].name or "")
        return reads[0] not in shapes and source is not None and source.kind == "tensor"
    if not all(value in shapes or value in constants for value in reads):
        return False
    for output in node.outputs:
        type_ = types.get(output.name or "")
        if type_ is None or type_.dims is None or len(type_.dims) > 1 or type_.dtype == ir.DataType.STRING:
            return False
    return True


def _is_dequantize(node: ir.Node, constants: set[ir.Value], types: Mapping[str, ValueType]) -> bool:
    if node.op_type != "DequantizeLinear" or node.domain not in ("", "com.microsoft"):
        return False
    source, output = node.inputs[0], node.outputs[0]
    if source is None or output.is_graph_output():
        return False
    if any(value is not None and value not in constants for value in node.inputs[1:]):
        return False
    before, after = types.get(source.name or ""), types.get(output.name or "")
    if before is None or after is None or ir.DataType.UNDEFINED in (before.dtype, after.dtype):
        return node.domain == "com.microsoft" and before is not None and before.dtype in _BYTE_TYPES
    return bool(before.dtype.bitwidth < after.dtype.bitwidth)


_BYTE_TYPES: Final = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16)
