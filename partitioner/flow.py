"""What the ops of a model hand to each other, whatever order they run in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from partitioner.binding import bind
from partitioner.costs import Costs
from partitioner.cutting import refusal
from partitioner.layout import Layout
from partitioner.preparing import input_types, prepare
from partitioner.reordering import predecessors
from partitioner.splitting import constant_bytes, constant_reads

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True)
class Flow:
    """A model as a graph of ops; op i is the one at position i of the model's own order.

    Attributes:
        reads: per op, the tensors it reads, model inputs included.
        makes: per op, the tensors it makes.
        after: per op, the ops that must run before it, also those of which it only needs a shape.
        together: groups of ops between which something flows that cannot be sent.
        tensor_bytes: bytes of every tensor read or made, free dimensions bound.
        flops: per op.
        weight_bytes: per op, bytes of the constant tensors it reads.
    """

    reads: tuple[tuple[str, ...], ...]
    makes: tuple[tuple[str, ...], ...]
    after: tuple[tuple[int, ...], ...]
    together: tuple[tuple[int, ...], ...]
    tensor_bytes: Mapping[str, int]
    flops: tuple[int, ...]
    weight_bytes: tuple[int, ...]


def flow(
    model: str | Path | onnx.ModelProto | ir.Model,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
) -> Flow:
    """The graph of a model's ops, with what each op and tensor costs.

    Args:
        model: a path, or a model in memory (which is not changed).
        input_shapes: numbers for free dimensions, by input name; a batch defaults to 1.

    Raises:
        PartitionerError: as :func:`analyze` does.
    """
    prepared = prepare(model)
    layout = prepared.layout
    costs = Costs(prepared, bind(input_types(prepared.model.graph), input_shapes or {}))
    return Flow(
        reads=tuple(tuple(value.name or "" for value in reads) for reads in layout.reads),
        makes=tuple(tuple(value.name for value in node.outputs if value.name) for node in layout.ops),
        after=predecessors(layout),
        together=_together(layout),
        tensor_bytes={value.name: costs.value_bytes(value) for value in layout.made if value.name},
        flops=tuple(costs.op_flops(node) for node in layout.ops),
        weight_bytes=tuple(
            sum(constant_bytes(value) for value in constant_reads(layout, node)) for node in layout.ops
        ),
    )


def _together(layout: Layout) -> tuple[tuple[int, ...], ...]:
    """Ops that share a device because what flows between them cannot be sent."""
    ends = {*layout.inputs, *layout.outputs}
    groups = []
    for value, position in layout.made.items():
        if not refusal(value):
            continue
        if value in ends and value in layout.last:  # alive from the start or to the end, in any order
            return (tuple(range(len(layout.ops))),)
        readers = [reader for reader, reads in enumerate(layout.reads) if value in reads]
        if readers:
            groups.append((position, *readers))
    return tuple(groups)
