"""The one form of a model that analysis and splitting both start from, so that their positions agree."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from partitioner import proto, tensors
from partitioner.errors import InvalidModel, UnsupportedOp
from partitioner.layout import Layout, lay_out
from partitioner.loading import load
from partitioner.loops import loop_states
from partitioner.needs import needs
from partitioner.passes.fold_shapes import fixed_values, fold_shapes
from partitioner.passes.gather_weights import gather_weights
from partitioner.passes.inline_functions import inline_functions
from partitioner.passes.remove_unused import remove_unused
from partitioner.proto import ShapeInference, ValueType
from partitioner.roles import assign_roles

if TYPE_CHECKING:
    import onnx


_HINT_TURNS = 16  # ops that inference is helped over one by one; after these, all at once


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model after all passes, with types and order.

    Attributes:
        name: of the model.
        model: its ops in topological order, its weights the main graph's initializers.
        inference: to infer types again with dimensions bound.
        hints: what inference has to be told, see :func:`_infer`.
        types: types by value name with free dimensions named, as far as they can be inferred.
        layout: roles and order of the ops.
    """

    name: str
    model: ir.Model
    inference: ShapeInference
    hints: Mapping[str, ValueType]
    types: Mapping[str, ValueType]
    layout: Layout

    def bound_types(self, inputs: Mapping[str, ValueType], values: Mapping[str, int]) -> dict[str, ValueType]:
        """Types inferred once more with input dimensions bound.

        Args:
            inputs: types of the model's inputs.
            values: the number for each bound dimension.
        """
        hints = {
            name: ValueType(
                hint.kind, hint.dtype, hint.dims and tuple(_bound(dim, values) for dim in hint.dims)
            )
            for name, hint in self.hints.items()
        }
        fixed: dict[str, ir.TensorProtocol] = {}
        while True:
            types = {**self.inference.run(inputs, hints, fixed), **inputs}
            # Inference follows values through few ops only; a slice up to a computed length it does not.
            found = fixed_values(self.model.graph, types)
            fresh = {v.name: tensor for v, tensor in found.items() if v.name and v.name not in fixed}
            if not fresh:
                return types
            fixed.update(fresh)

    def digest(self) -> str:
        """Sha256 over structure and weights; reads every weight once."""
        graph = self.model.graph
        total = hashlib.sha256()
        bare = ir.GraphView(
            tuple(graph.inputs),
            tuple(graph.outputs),
            nodes=tuple(graph),
            opset_imports=dict(graph.opset_imports),
            name=graph.name,
        )
        total.update(proto.serialize_envelope(self.model))
        total.update(proto.serialize_graph(bare, ir_version=self.model.ir_version))
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if tensor is None:
                continue
            total.update(f"{name}\0{tensor.dtype.name}\0{tuple(tensor.shape)}\0".encode())
            for chunk in tensors.chunks(tensor):
                total.update(chunk)
        return total.hexdigest()


def prepare(model: str | Path | onnx.ModelProto | ir.Model) -> Prepared:
    """Read, check and normalise a model, infer its types and order its ops.

    The result depends on the model alone.

    Args:
        model: a path, or a model in memory (which is not changed).

    Raises:
        InvalidModel: if it is none, is truncated, or lacks weights.
        UnsupportedOp: naming an op that cannot be analysed.
    """
    loaded, name = load(model)
    graph = loaded.graph
    functions = list(loaded.functions.values())
    proto.check_ops(graph.all_nodes(), loaded.opset_imports, loaded.functions)
    for function in functions:
        proto.check_ops(function.all_nodes(), function.opset_imports, loaded.functions)
    _check_ends(graph)
    _check_values(graph)
    _sort(graph)
    inline_functions(loaded)
    gather_weights(loaded)
    remove_unused(loaded)
    if not len(graph):
        raise InvalidModel(
            "the model has no ops: its outputs are inputs or constants, so there is nothing to split"
        )
    _name_dimensions(graph)
    inputs = input_types(graph)
    fold_shapes(loaded, _infer(loaded, inputs)[2])
    remove_unused(loaded)
    inference, hints, types = _infer(loaded, inputs)
    _declare(graph, types)
    return Prepared(
        name, loaded, inference, hints, types, lay_out(loaded, assign_roles(loaded, types), types)
    )


def input_types(graph: ir.Graph) -> dict[str, ValueType]:
    """Declared types of a graph's inputs, by name."""
    return {value.name or "": declared(value) for value in graph.inputs}


def declared(value: ir.Value) -> ValueType:
    """The type a value carries in the model, believed or not."""
    dims: tuple[int | str | None, ...] | None = None
    if value.shape is not None:
        dims = tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
    if value.type is None:
        return ValueType("tensor", ir.DataType.UNDEFINED, dims)
    if isinstance(value.type, ir.TensorType):
        return ValueType("tensor", value.type.dtype, dims)
    kind = type(value.type).__name__.removesuffix("Type").lower()
    return ValueType(kind, ir.DataType.UNDEFINED, None)


def _infer(
    model: ir.Model, inputs: Mapping[str, ValueType]
) -> tuple[ShapeInference, dict[str, ValueType], dict[str, ValueType]]:
    """Infer types, telling inference what it cannot find: states of loops, and what only the model declares.

    Declared shapes are the last resort, since exporters get them wrong.
    """
    graph = model.graph
    inference = ShapeInference(model, graph, graph.inputs)
    constants = {
        value.name or "": ValueType("tensor", tensor.dtype, tuple(tensor.shape.numpy()))
        for value in graph.initializers.values()
        if (tensor := value.const_value) is not None
    }
    hints: dict[str, ValueType] = {}
    for turn in range(_HINT_TURNS + 2):
        types = {**inference.run(inputs, hints), **inputs, **constants}
        fresh: dict[str, ValueType] = {}
        for hint in _hints(model, types, hints):
            fresh.update(hint)
            if turn < _HINT_TURNS:
                break  # what follows this op may be inferred now
        if not fresh:
            break
        hints.update(fresh)
    return inference, hints, types


def _hints(
    model: ir.Model, types: Mapping[str, ValueType], hints: Mapping[str, ValueType]
) -> Iterator[dict[str, ValueType]]:
    """Types of the outputs of each op that inference lost, as far as they are known otherwise."""
    for node in model.graph:
        unknown = {
            output.name: known
            for output in node.outputs
            if output.name and output.name not in hints and _is_lost(known := types.get(output.name))
        }
        if not unknown:
            continue
        found = loop_states(model, node, types) if node.op_type == "Loop" else {}
        for output in node.outputs:
            guess = declared(output)
            if output.name not in unknown or output.name in found or guess.kind != "tensor":
                continue
            inferred = unknown[output.name]
            dtype = inferred.dtype if inferred is not None and inferred.dtype.value else guess.dtype
            if dtype.value and (guess.dims is not None or inferred is None or not inferred.dtype.value):
                found[output.name or ""] = ValueType("tensor", dtype, guess.dims)
        found = {name: type_ for name, type_ in found.items() if name in unknown}
        if found:
            yield found


def _is_lost(known: ValueType | None) -> bool:
    return known is None or (known.kind == "tensor" and (known.dims is None or not known.dtype.value))


def _bound(dim: int | str | None, values: Mapping[str, int]) -> int | str | None:
    return values.get(dim) if isinstance(dim, str) else dim


def _check_ends(graph: ir.Graph) -> None:
    """Refuse a model that hands nothing out, or takes or hands out what no frame can hold."""
    if not graph.outputs:
        raise InvalidModel("the model has no outputs, so there is nothing to compute")
    for word, values in (("input", graph.inputs), ("output", graph.outputs)):
        for value in values:
            kind = declared(value).kind
            if kind != "tensor":
                node = value.producer()
                maker = "" if node is None else f", made by op {node.op_type!r}"
                raise UnsupportedOp(
                    f"the model's {word} {value.name!r}{maker} is a {kind}; only tensors can be sent",
                    hint="change the model so that its inputs and outputs are tensors",
                )


def _check_values(graph: ir.Graph) -> None:
    """Refuse values that nothing makes."""
    made = {*graph.inputs, *graph.initializers.values()}
    for node in graph:
        made.update(node.outputs)
    for node in graph:
        for value in needs(node):
            if value not in made:
                raise InvalidModel(
                    f"op {node.op_type!r} (node {node.name or node.outputs[0].name!r}) reads {value.name!r}, "
                    "which nothing in the model makes"
                )
    for value in graph.outputs:
        if value not in made:
            raise InvalidModel(f"the model's output {value.name!r} is made by nothing in the model")


def _sort(graph: ir.Graph) -> None:
    """Bring the ops into a topological order where the file has none."""
    seen: set[ir.Value] = {*graph.inputs, *graph.initializers.values()}
    for node in graph:
        if any(value not in seen for value in needs(node)):
            break
        seen.update(node.outputs)
    else:
        return
    try:
        graph.sort()
    except ValueError as error:
        raise InvalidModel("the model's ops depend on each other in a circle") from error


def _name_dimensions(graph: ir.Graph) -> None:
    """Name the free dimensions that the model's inputs leave unnamed, so that they can be bound."""
    for value in graph.inputs:
        if value.shape is not None:
            stem = re.sub(r"\W", "_", value.name or "input")
            value.shape = ir.Shape(
                dim if isinstance(dim, int) else (dim.value or f"{stem}_dim{axis}")
                for axis, dim in enumerate(value.shape)
            )


def _declare(graph: ir.Graph, types: Mapping[str, ValueType]) -> None:
    """Write inferred types into the model, naming dimensions that only the run will tell."""
    for node in graph:
        for output in node.outputs:
            type_ = types.get(output.name or "")
            if output.name and type_ is not None:
                write_type(output, type_)


def write_type(value: ir.Value, type_: ValueType) -> None:
    """Declare a value's type; a tensor's unknown dimensions get names of their own."""
    if type_.kind != "tensor":
        if type_.kind in ("sequence", "optional") and type_.dtype.value:
            held = ir.TensorType(type_.dtype)
            value.type = ir.SequenceType(held) if type_.kind == "sequence" else ir.OptionalType(held)
        return
    if type_.dtype.value:
        value.type = ir.TensorType(type_.dtype)
    if type_.dims is None:
        value.shape = None
        return
    stem = re.sub(r"\W", "_", value.name or "")
    value.shape = ir.Shape(f"{stem}_dim{axis}" if dim is None else dim for axis, dim in enumerate(type_.dims))
