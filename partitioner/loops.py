"""Shapes of loop states, which ONNX's inference gives up because a body could change them."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from partitioner.needs import captured
from partitioner.proto import ShapeInference, ValueType


def loop_states(model: ir.Model, node: ir.Node, types: Mapping[str, ValueType]) -> dict[str, ValueType]:
    """Types of those outputs of a Loop whose shape the body provably keeps.

    If a body turns states of some shapes into states of the same shapes, it does so in every turn.

    Args:
        model: gives opsets and functions.
        node: a Loop of the main graph.
        types: types by value name of what lies outside.
    """
    body = node.attributes["body"].as_graph()
    initial = [types.get(value.name or "") if value is not None else None for value in node.inputs[2:]]
    inside: dict[str, ValueType] = {
        value.name or "": known
        for value in captured(body)
        if (known := types.get(value.name or "")) is not None
    }
    for inner, dtype in zip(body.inputs[:2], (ir.DataType.INT64, ir.DataType.BOOL), strict=False):
        inside[inner.name or ""] = ValueType("tensor", dtype, ())
    for inner, known in zip(body.inputs[2:], initial, strict=False):
        if known is not None:
            inside[inner.name or ""] = known
    names = [value for value in (*body.inputs, *captured(body)) if value.name in inside]
    result = ShapeInference(model, body, names).run(inside)
    kept: dict[str, ValueType] = {}
    for outer, inner, known in zip(node.outputs, body.outputs[1:], initial, strict=False):
        if known is None or known.dims is None or None in known.dims:
            return {}
        if result.get(inner.name or "") != known:
            return {}  # one state that changes may change the others in the next turn
        kept[outer.name or ""] = known
    return kept
