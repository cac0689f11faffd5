"""Roles, order and liveness of a model's ops: what is alive at which position."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

import onnx_ir as ir

from partitioner import tensors
from partitioner.needs import needs
from partitioner.ordering import OpGraph, best_order
from partitioner.proto import ValueType
from partitioner.roles import Roles

_NOMINAL = 64  # a free dimension counts as this many when ops are ordered, whatever it will be
_BEFORE = -1  # inputs are made before op 0


@dataclass(slots=True)
class Layout:
    """The main ops in their chosen order, and the lives of the tensors between them.

    A tensor is alive at position p (between op p - 1 and op p) if it is made before p and read at or after
    it. Results of repeated ops (:class:`Roles`) are no tensors of their own here: a dequantised tensor counts
    as a read of its quantised source; a result computed from shapes is repeated where the tensors it looks
    at are alive anyway, and is carried across a position where they are not.

    Attributes:
        ops: main ops in order; their indices are the positions.
        roles: see there.
        reads: per op, the tensors it reads.
        shape_reads: per op, the results computed from shapes it reads.
        made: position of the op that makes a tensor, -1 for the model's inputs.
        last: position of the last op that reads a tensor; L for the model's outputs.
    """

    ops: tuple[ir.Node, ...]
    roles: Roles
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    reads: list[tuple[ir.Value, ...]] = field(default_factory=list)
    shape_reads: list[tuple[ir.Value, ...]] = field(default_factory=list)
    made: dict[ir.Value, int] = field(default_factory=dict)
    last: dict[ir.Value, int] = field(default_factory=dict)
    _shape_last: dict[ir.Value, int] = field(default_factory=dict)
    _ready: dict[ir.Value, int] = field(default_factory=dict)
    _expiry: dict[ir.Value, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Derive reads and lives from order and roles."""
        end = len(self.ops)
        self.made = dict.fromkeys(self.inputs, _BEFORE)
        for position, node in enumerate(self.ops):
            tensor_reads, shape_reads = split_reads(node, self.roles)
            self.reads.append(tensor_reads)
            self.shape_reads.append(shape_reads)
            self.last.update(dict.fromkeys(tensor_reads, position))
            self._shape_last.update(dict.fromkeys(shape_reads, position))
            self.made.update((output, position) for output in node.outputs)
        self.last.update((value, end) for value in self.outputs if value in self.made)
        for value, node in self.roles.shapes.items():
            if node.op_type in ("Shape", "Size"):
                source = node.inputs[0]
                assert source is not None
                tensor = self._tensor(source)
                if self.made[tensor] == _BEFORE:
                    self.last.setdefault(tensor, 0)  # an input of which only the shape is used
                self._ready[value] = self.made[tensor]
                self._expiry[value] = max(self.made[tensor], self.last.get(tensor, _BEFORE))
            else:
                sources = [v for v in needs(node) if v in self.roles.shapes]
                self._ready[value] = max(self._ready[v] for v in sources)
                self._expiry[value] = min(self._expiry[v] for v in sources)

    def _tensor(self, value: ir.Value) -> ir.Value:
        node = self.roles.dequantized.get(value)
        source = value if node is None else node.inputs[0]
        assert source is not None
        return source

    def carried(self, position: int) -> tuple[ir.Value, ...]:
        """Results computed from shapes that have to cross a position."""
        found: dict[ir.Value, None] = {}
        if position == 0:
            return ()
        pending = [
            value for value, last in self._shape_last.items() if self._expiry[value] < position <= last
        ]
        while pending:
            value = pending.pop(0)
            if self._expiry[value] >= position or value in found:
                continue
            if self._ready[value] < position:
                found[value] = None
            else:  # it needs one tensor that is gone and one that is not made yet
                pending += [v for v in needs(self.roles.shapes[value]) if v in self.roles.shapes]
        return tuple(found)

    def frontiers(self) -> Iterator[tuple[ir.Value, ...]]:
        """What crosses each position 0 … L, in the order in which it is made.

        At position 0 that is the model's inputs that are used, at position L its outputs.
        """
        ends: list[list[ir.Value]] = [[] for _ in range(len(self.ops) + 2)]
        for value, last in self.last.items():
            ends[last + 1].append(value)
        alive = {value: None for value in self.inputs if value in self.last}
        for position, node in enumerate((*self.ops, None)):
            for value in ends[position]:
                alive.pop(value, None)
            if node is None:
                yield self.outputs
                return
            yield (*alive, *self.carried(position)) if self._shape_last else tuple(alive)
            alive.update((output, None) for output in node.outputs if output in self.last)


def split_reads(node: ir.Node, roles: Roles) -> tuple[tuple[ir.Value, ...], tuple[ir.Value, ...]]:
    """The tensors, and the results computed from shapes, that a main op reads."""
    tensor_reads: dict[ir.Value, None] = {}
    shape_reads: dict[ir.Value, None] = {}
    for value in needs(node):
        if value in roles.constants:
            continue
        if value in roles.shapes:
            shape_reads[value] = None
            continue
        source = roles.dequantized[value].inputs[0] if value in roles.dequantized else value
        assert source is not None
        tensor_reads[source] = None
    return tuple(tensor_reads), tuple(shape_reads)


def lay_out(model: ir.Model, roles: Roles, types: Mapping[str, ValueType]) -> Layout:
    """Choose the order of a model's main ops.

    Args:
        model: prepared.
        roles: of its ops.
        types: with free dimensions named; each counts as 64 here, a batch in front as 1, so that the order
            does not depend on the shapes somebody asks about.
    """
    graph = model.graph
    main = set(roles.main)
    nodes = [node for node in graph if not all(output in roles.constants for output in node.outputs)]
    number = {node: index for index, node in enumerate(nodes)}
    values: dict[ir.Value, int] = {}
    sizes: list[int] = []
    for value in (*graph.inputs, *(output for node in nodes for output in node.outputs)):
        values[value] = len(sizes)
        sizes.append(_nominal_bytes(types.get(value.name or "")))
    after: list[list[int]] = []
    reads: list[list[int]] = []
    writes: list[list[int]] = []
    for node in nodes:
        producers = (value.producer() for value in needs(node))
        after.append(list(dict.fromkeys(number[p] for p in producers if p is not None and p in number)))
        counts = node in main
        reads.append([values[value] for value in split_reads(node, roles)[0]] if counts else [])
        writes.append([values[value] for value in node.outputs] if counts else [])
    kept = [False] * len(sizes)
    for value in graph.outputs:
        if value in values:
            kept[values[value]] = True
    given = [values[value] for value in graph.inputs]
    order = best_order(OpGraph(after, reads, writes, sizes, kept, [node in main for node in nodes], given))
    ops = tuple(nodes[index] for index in order if nodes[index] in main)
    return Layout(ops, roles, tuple(graph.inputs), tuple(graph.outputs))


def _nominal_bytes(type_: ValueType | None) -> int:
    if type_ is None or type_.dims is None:
        return _NOMINAL
    dims = [
        dim if isinstance(dim, int) else (1 if axis == 0 and len(type_.dims) > 1 else _NOMINAL)
        for axis, dim in enumerate(type_.dims)
    ]
    return tensors.element_bytes(type_.dtype, prod(dims)) if type_.dtype.value else 4 * prod(dims)
