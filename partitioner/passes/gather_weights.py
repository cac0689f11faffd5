"""Bring every weight to one place: the initializers of the main graph, none of them an input."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from partitioner.errors import InvalidModel
from partitioner.tensors import in_memory, renamed

_BODY_LIMIT = 1024  # bytes; smaller constants inside a body stay where they are


def gather_weights(model: ir.Model) -> None:
    """Turn initializers listed as inputs, and Constant ops, into plain initializers of the main graph.

    Models before IR version 4 list each initializer as an input, newer ones where a caller may override it;
    either way it is a constant here and is never sent. IR version 4 is the first that allows an initializer
    which is no input, so older models are raised to it. Large weights inside the bodies of If, Loop and Scan
    move out, where they can be shared and stored by content.

    Raises:
        InvalidModel: if a Constant op holds no value.
    """
    graph = model.graph
    model.ir_version = max(model.ir_version, 4)
    kept = [value for value in graph.inputs if not value.is_initializer()]
    if len(kept) != len(graph.inputs):
        graph.inputs[:] = kept
    taken = {value.name for g in model.graphs() for value in _defined(g)}
    for body in [*model.graphs()]:
        for node in [*body]:
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
                tensor = _constant(node)
                if tensor is not None and (body is graph or tensor.nbytes >= _BODY_LIMIT):
                    _lift(graph, body, node, tensor, taken)
        if body is not graph:
            for name, value in [*body.initializers.items()]:
                if value.const_value is not None and value.const_value.nbytes >= _BODY_LIMIT:
                    _move_out(graph, body, name, value, taken)
    _read_the_rest(model)


def _defined(graph: ir.Graph) -> list[ir.Value]:
    produced = [output for node in graph for output in node.outputs]
    return [*graph.inputs, *graph.initializers.values(), *produced]


def _constant(node: ir.Node) -> ir.TensorProtocol | None:
    """The value of a Constant op as a tensor; None for the sparse kind, which stays an op."""
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            return None
        if name == "value":
            return attribute.as_tensor()
        if name in ("value_float", "value_floats"):
            return ir.tensor(np.asarray(attribute.value, dtype=np.float32))
        if name in ("value_int", "value_ints"):
            return ir.tensor(np.asarray(attribute.value, dtype=np.int64))
        if name in ("value_string", "value_strings", "sparse_value"):
            return None
    raise InvalidModel(f"the Constant op {node.name or node.outputs[0].name!r} holds no value")


def _lift(
    graph: ir.Graph, body: ir.Graph, node: ir.Node, tensor: ir.TensorProtocol, taken: set[str | None]
) -> None:
    old = node.outputs[0]
    if old.is_graph_output() and body is not graph:
        return  # a body's output must be made inside the body
    new = _initializer(old.name or "constant", tensor, taken if body is not graph else None)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    body.remove(node, safe=True)
    graph.register_initializer(new)


def _move_out(graph: ir.Graph, body: ir.Graph, name: str, value: ir.Value, taken: set[str | None]) -> None:
    if value.is_graph_output() or value.is_graph_input() or value.const_value is None:
        return
    new = _initializer(name, value.const_value, taken)
    value.replace_all_uses_with(new)
    del body.initializers[name]
    graph.register_initializer(new)


def _read_the_rest(model: ir.Model) -> None:
    """Read tensors that stayed inside bodies, functions and attributes: only initializers may lie in files."""
    graphs = [*model.graphs()]
    for function in model.functions.values():
        graphs += [function.graph, *function.graph.subgraphs()]
    for graph in graphs:
        for node in graph:
            for name, attribute in [*node.attributes.items()]:
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    node.attributes[name] = ir.AttrTensor(name, in_memory(attribute.as_tensor()))
        if graph is not model.graph:
            for value in graph.initializers.values():
                if value.const_value is not None:
                    value.const_value = in_memory(value.const_value)


def _initializer(name: str, tensor: ir.TensorProtocol, taken: set[str | None] | None) -> ir.Value:
    """A new initializer; ``taken`` are the names it has to avoid, None to keep the name as it is."""
    unique, count = name, 1
    while taken is not None and unique in taken:
        count += 1
        unique = f"{name}.{count}"
    if taken is not None:
        taken.add(unique)
    return ir.Value(
        name=unique,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        const_value=renamed(tensor, unique),
    )
