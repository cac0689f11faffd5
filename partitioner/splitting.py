"""Cut a model at positions into partitions that are models of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from partitioner import tensors
from partitioner.binding import bind
from partitioner.chain import TensorSpec
from partitioner.cutting import refusal, spec
from partitioner.errors import InvalidCut
from partitioner.layout import Layout
from partitioner.needs import needs
from partitioner.preparing import Prepared, input_types, prepare, write_type
from partitioner.reordering import with_order

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True)
class Partition:
    """The ops ``[start, stop)`` as a model that runs by itself.

    Attributes:
        index: place in the chain, from 0.
        start: position of the first op.
        stop: position after the last op.
        inputs: what it reads: model inputs and tensors that earlier partitions make.
        outputs: what it makes that later partitions or the caller read, and nothing else.
        weight_bytes: bytes of the constant tensors its ops read, each once.
        model: the ops, weights still on disk where the model was read from a file.
    """

    index: int
    start: int
    stop: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weight_bytes: int
    model: ir.Model


def split(
    model: str | Path | onnx.ModelProto | ir.Model,
    boundaries: Sequence[int],
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    order: Sequence[int] = (),
) -> tuple[Partition, ...]:
    """Cut a model into ``len(boundaries) + 1`` partitions.

    Partitions run one after the other, with a dict that starts with the model's inputs and takes each
    partition's outputs, give the model's outputs. A model output that is itself a model input is made by none.

    Args:
        model: a path, or a model in memory (which is not changed).
        boundaries: positions as in :func:`analyze`, increasing, each inside the chain.
        input_shapes: freezes the named inputs to these shapes, and what follows from them; without it
            free dimensions stay free.
        order: as in :func:`analyze`.

    Raises:
        InvalidModel: if the model cannot be read.
        UnsupportedOp: naming an op that cannot be treated.
        InvalidCut: naming a position that is no boundary, and why.
        InvalidOrder: if ``order`` is no topological order of this model's ops.
        WrongInput: if ``input_shapes`` does not fit the model.
    """
    prepared = with_order(prepare(model), order)
    layout = prepared.layout
    if input_shapes:
        _freeze(prepared, input_shapes)
    cuts = _check_positions(boundaries, len(layout.ops))
    wanted = set(cuts)
    for position, frontier in enumerate(layout.frontiers()):
        if position in wanted:
            for value in frontier:
                reason = refusal(value)
                if reason:
                    raise InvalidCut(
                        f"the model cannot be cut at position {position}: {reason}",
                        hint="cut at one of the positions that analyze lists",
                    )
    edges = [0, *cuts, len(layout.ops)]
    return tuple(
        _partition(prepared, index, start, stop) for index, (start, stop) in enumerate(pairwise(edges))
    )


def _check_positions(boundaries: Sequence[int], end: int) -> list[int]:
    previous = 0
    for position in boundaries:
        if not previous < position < end:
            raise InvalidCut(
                f"position {position} is no place to cut: positions must increase, from 1 to {end - 1}",
                hint="take positions from analyze",
            )
        previous = position
    return [int(position) for position in boundaries]


def _freeze(prepared: Prepared, input_shapes: Mapping[str, Sequence[int]]) -> None:
    graph = prepared.model.graph
    bound = bind(input_types(graph), input_shapes, complete=False)
    for name, type_ in bound.types.items():
        write_type(next(value for value in graph.inputs if value.name == name), type_)
    types = prepared.bound_types(bound.types, bound.values)
    for node in graph:
        for output in node.outputs:
            inferred = types.get(output.name or "")
            if inferred is not None and inferred.dims is not None:
                write_type(output, inferred)


class _Assembly:
    """Collects the nodes, weights and imports of one partition, each once, producers before consumers."""

    def __init__(self, layout: Layout, start: int, stop: int, imported_shapes: frozenset[ir.Value]) -> None:
        self._layout = layout
        self._start = start
        self._imported_shapes = imported_shapes
        self._seen: set[ir.Node] = set(layout.ops[start:stop])
        self.nodes: list[ir.Node] = []
        self.weights: dict[ir.Value, None] = {}
        self.imports: dict[ir.Value, None] = {}

    def add(self, node: ir.Node) -> None:
        """Append a main op after whatever repeated ops it needs."""
        for value in needs(node):
            self.require(value)
        self.nodes.append(node)

    def require(self, value: ir.Value) -> None:
        """Make a value available: as weight, import, or by repeating the ops that compute it."""
        roles = self._layout.roles
        pending: list[tuple[ir.Value | None, ir.Node | None]] = [(value, None)]
        while pending:
            wanted, finished = pending.pop()
            if finished is not None:
                self.nodes.append(finished)
                continue
            assert wanted is not None
            if wanted.is_initializer():
                self.weights[wanted] = None
                continue
            repeated = wanted in roles.constants or wanted in roles.dequantized or wanted in roles.shapes
            if not repeated or wanted in self._imported_shapes:
                if self._layout.made.get(wanted, 0) < self._start or wanted in self._imported_shapes:
                    self.imports[wanted] = None
                continue
            node = wanted.producer()
            assert node is not None
            if node not in self._seen:
                self._seen.add(node)
                pending.append((None, node))
                pending += [(source, None) for source in reversed(needs(node))]


def _partition(prepared: Prepared, index: int, start: int, stop: int) -> Partition:
    layout = prepared.layout
    end = len(layout.ops)
    before = frozenset(layout.carried(start))
    assembly = _Assembly(layout, start, stop, before)
    for node in layout.ops[start:stop]:
        assembly.add(node)
    outputs = [
        output
        for node in layout.ops[start:stop]
        for output in node.outputs
        if layout.last.get(output, -1) >= stop
    ]
    outputs += [value for value in layout.carried(stop) if value not in before]
    if stop == end:  # constants that the model hands out belong to no op; the last partition makes them
        outputs = [v for v in layout.outputs if v in set(outputs) or v in layout.roles.constants]
    for value in outputs:
        assembly.require(value)
    graph = prepared.model.graph
    view = ir.GraphView(
        tuple(assembly.imports),
        tuple(outputs),
        nodes=assembly.nodes,
        initializers=tuple(assembly.weights),
        doc_string=graph.doc_string,
        opset_imports=dict(graph.opset_imports),
        name=graph.name,
        metadata_props=dict(graph.metadata_props),
    )
    whole = prepared.model
    part = ir.Model(
        view.clone(),
        ir_version=whole.ir_version,
        producer_name=whole.producer_name,
        producer_version=whole.producer_version,
        domain=whole.domain,
        model_version=whole.model_version,
        doc_string=whole.doc_string,
        functions=_called(whole, assembly.nodes),
        metadata_props=dict(whole.metadata_props),
    )
    return Partition(
        index,
        start,
        stop,
        tuple(spec(value) for value in assembly.imports),
        tuple(spec(value) for value in outputs),
        sum(weight_sizes(layout, start, stop).values()),
        part,
    )


def _called(model: ir.Model, nodes: Sequence[ir.Node]) -> tuple[ir.Function, ...]:
    """The functions that these ops call, directly or through one another, in the model's order."""
    called: set[object] = set()
    pending = [*nodes]
    while pending:
        node = pending.pop()
        name = node.op_identifier()
        if name in model.functions and name not in called:
            called.add(name)
            pending += model.functions[name].all_nodes()
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
                pending += attribute.as_graph()
            elif attribute.type == ir.AttributeType.GRAPHS and not attribute.is_ref():
                pending += [inner for body in attribute.as_graphs() for inner in body]
    return tuple(function for name, function in model.functions.items() if name in called)


def weight_sizes(layout: Layout, start: int, stop: int) -> dict[str, int]:
    """Constant tensors that the ops ``[start, stop)`` read, and their bytes.

    A tensor computed from constants counts with its own bytes, since an engine folds it when it loads.
    """
    found: dict[str, int] = {}
    for node in layout.ops[start:stop]:
        for value in constant_reads(layout, node):
            found[value.name or ""] = constant_bytes(value)
    return found


def constant_reads(layout: Layout, node: ir.Node) -> tuple[ir.Value, ...]:
    """Constant values that a main op reads, and those read by the dequantisers repeated for it."""
    roles = layout.roles
    found: dict[ir.Value, None] = {}
    for value in needs(node):
        if value in roles.constants:
            found[value] = None
        elif value in roles.dequantized:
            scale = needs(roles.dequantized[value])
            found.update((v, None) for v in scale if v in roles.constants)
    return tuple(found)


def constant_bytes(value: ir.Value) -> int:
    """Bytes of a constant value; 0 for one computed by ops whose shape nobody knows."""
    if value.const_value is not None and value.is_initializer():
        return (
            value.const_value.nbytes
            if value.const_value.dtype != ir.DataType.STRING
            else 16 * value.const_value.size
        )
    if value.shape is None or value.dtype is None or not value.shape.is_static():
        return 0
    elements = 1
    for dim in value.shape:
        elements *= int(dim)  # type: ignore[arg-type]
    return tensors.element_bytes(value.dtype, elements)
