"""Replace what is computed from shapes by its value, where the model's own shapes fix that value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import numpy as np
import onnx_ir as ir

from partitioner.proto import ValueType

# One entry per element: an int where the model fixes it, None where it depends on a free dimension.
Known = list[int | None]
_LIMIT = 64  # elements


def fold_shapes(model: ir.Model, types: Mapping[str, ValueType]) -> None:
    """Turn results of Shape, and of integer arithmetic on them, into initializers where they are fixed.

    Elements are followed one by one, so a shape with a free batch still gives its other dimensions. Only
    integers are computed here, and only exactly; floating-point constants are left to the engine.

    Args:
        model: changed in place; run :func:`remove_unused` afterwards.
        types: types by value name, free dimensions not bound.
    """
    for output, tensor in fixed_values(model.graph, types).items():
        if output.is_graph_output():
            continue
        constant = ir.Value(
            name=output.name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.shape.numpy()),
            const_value=tensor,
        )
        output.replace_all_uses_with(constant)
        output.name = None
        model.graph.register_initializer(constant)


def fixed_values(graph: ir.Graph, types: Mapping[str, ValueType]) -> dict[ir.Value, ir.TensorProtocol]:
    """Values computed from shapes that the given types fix, as tensors.

    Args:
        graph: its ops in topological order.
        types: types by value name.
    """
    known: dict[ir.Value, tuple[Known, int]] = {}  # elements and rank (0 or 1)
    fixed: dict[ir.Value, ir.TensorProtocol] = {}
    for node in graph:
        if node.domain not in ("", "ai.onnx") or len(node.outputs) != 1 or not node.inputs:
            continue
        result = _evaluate(node, known, types)
        if result is None or len(result[0]) > _LIMIT:
            continue
        output = node.outputs[0]
        type_ = types.get(output.name or "")
        if type_ is None or type_.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
            continue
        known[output] = result
        elements, rank = result
        if None not in elements:
            array = np.asarray(elements, dtype=type_.dtype.numpy()).reshape((-1,) if rank else ())
            fixed[output] = ir.tensor(array, name=output.name)
    return fixed


def _evaluate(
    node: ir.Node, known: Mapping[ir.Value, tuple[Known, int]], types: Mapping[str, ValueType]
) -> tuple[Known, int] | None:
    first = node.inputs[0]
    if first is None:
        return None
    if node.op_type in ("Shape", "Size"):
        type_ = types.get(first.name or "")
        if type_ is None or type_.dims is None:
            return None
        dims: Known = [dim if isinstance(dim, int) else None for dim in type_.dims]
        if node.op_type == "Size":
            return [_fold(prod, [dims])], 0
        start = node.attributes.get_int("start", 0)
        end = node.attributes.get_int("end", len(dims))
        return dims[slice(*_clamp(start, end, len(dims)))], 1
    operation = _OPERATIONS.get(node.op_type)
    if operation is None:
        return None
    arguments = [None if value is None else _read(value, known) for value in node.inputs]
    if all(value is None or value not in known for value in node.inputs):
        return None  # constants alone stay as they are
    if any(
        argument is None and value is not None for argument, value in zip(arguments, node.inputs, strict=True)
    ):
        return None
    return operation(node, arguments)


def _read(value: ir.Value, known: Mapping[ir.Value, tuple[Known, int]]) -> tuple[Known, int] | None:
    if value in known:
        return known[value]
    tensor = value.const_value if value.is_initializer() else None
    if tensor is None or tensor.size > _LIMIT or len(tensor.shape) > 1:
        return None
    if tensor.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        return None
    return [int(element) for element in np.atleast_1d(tensor.numpy())], len(tensor.shape)


def _clamp(start: int, end: int, size: int) -> tuple[int, int]:
    start, end = (value + size if value < 0 else value for value in (start, end))
    return min(max(start, 0), size), min(max(end, 0), size)


def _fold(function: Callable[[Sequence[int]], int], columns: Sequence[Known]) -> int | None:
    values = [element for column in columns for element in column]
    fixed = [element for element in values if element is not None]
    return function(fixed) if len(fixed) == len(values) else None


_Argument = tuple[Known, int] | None
_Operation = Callable[[ir.Node, Sequence[_Argument]], tuple[Known, int] | None]


def _gather(node: ir.Node, arguments: Sequence[_Argument]) -> tuple[Known, int] | None:
    data, indices = arguments
    if data is None or indices is None or data[1] != 1 or node.attributes.get_int("axis", 0) not in (0, -1):
        return None
    picked: Known = []
    for index in indices[0]:
        if index is None or not -len(data[0]) <= index < len(data[0]):
            return None
        picked.append(data[0][index])
    return picked, indices[1]


def _slice(node: ir.Node, arguments: Sequence[_Argument]) -> tuple[Known, int] | None:
    if len(arguments) == 1:  # before opset 10 the ranges are attributes
        starts, ends = node.attributes.get_ints("starts", ()), node.attributes.get_ints("ends", ())
        ranges: list[Known] = [[*starts], [*ends]]
    else:
        ranges = [[1] if argument is None else argument[0] for argument in arguments[1:]]
    data = arguments[0]
    if data is None or data[1] != 1 or any(len(column) != 1 or column[0] is None for column in ranges):
        return None
    start, end, step = ranges[0][0], ranges[1][0], (ranges[3][0] if len(ranges) > 3 else 1)
    if start is None or end is None or step is None or step < 1:
        return None
    low, high = _clamp(start, end, len(data[0]))
    return data[0][low:high:step], 1


def _concat(_node: ir.Node, arguments: Sequence[_Argument]) -> tuple[Known, int] | None:
    if any(argument is None or argument[1] != 1 for argument in arguments):
        return None
    return [element for argument in arguments if argument for element in argument[0]], 1


def _unsqueeze(_node: ir.Node, arguments: Sequence[_Argument]) -> tuple[Known, int] | None:
    data = arguments[0]
    return (data[0], 1) if data and data[1] == 0 else None


def _squeeze(_node: ir.Node, arguments: Sequence[_Argument]) -> tuple[Known, int] | None:
    data = arguments[0]
    return (data[0], 0) if data and data[1] == 1 and len(data[0]) == 1 else None


def _same(_node: ir.Node, arguments: Sequence[_Argument]) -> tuple[Known, int] | None:
    return arguments[0]


def _arithmetic(function: Callable[[int, int], int | None]) -> _Operation:
    def apply(_node: ir.Node, arguments: Sequence[_Argument]) -> tuple[Known, int] | None:
        if len(arguments) != 2:
            return None
        left, right = arguments
        if left is None or right is None:
            return None
        size = max(len(left[0]), len(right[0]))
        if {len(left[0]), len(right[0])} - {1, size}:
            return None
        a, b = (column * size if len(column) < size else column for column in (left[0], right[0]))
        out = [None if x is None or y is None else function(x, y) for x, y in zip(a, b, strict=True)]
        # Beyond 32 bits the op's own type could overflow, which only the engine does as the engine does.
        return [None if x is None or abs(x) >= 2**31 else x for x in out], max(left[1], right[1])

    return apply


_OPERATIONS: Mapping[str, _Operation] = {
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Identity": _same,
    "Cast": _same,
    "Add": _arithmetic(lambda x, y: x + y),
    "Sub": _arithmetic(lambda x, y: x - y),
    "Mul": _arithmetic(lambda x, y: x * y),
    "Div": _arithmetic(lambda x, y: x // y if x >= 0 and y > 0 else None),
    "Min": _arithmetic(min),
    "Max": _arithmetic(max),
}
