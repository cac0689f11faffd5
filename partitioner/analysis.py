"""Describe a model as a chain of blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from partitioner.binding import bind
from partitioner.caching import refuse_cache
from partitioner.chain import Block, BlockChain, Boundary, TensorSpec
from partitioner.costs import Costs
from partitioner.cutting import refusal, spec
from partitioner.layout import Layout
from partitioner.needs import needs
from partitioner.preparing import input_types, prepare
from partitioner.reordering import with_order
from partitioner.splitting import weight_sizes

if TYPE_CHECKING:
    import onnx


def analyze(
    model: str | Path | onnx.ModelProto | ir.Model,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    *,
    order: Sequence[int] = (),
) -> BlockChain:
    """Describe a model as a chain with one block per op, and what every block and boundary costs.

    Ops between which the model cannot be cut (a sequence, an optional, strings or a tensor of unknown rank
    would have to cross) share a block. Ops that only compute on constants or on shapes own no position; they
    are repeated wherever they are needed. Positions do not depend on ``input_shapes``.

    Args:
        model: a path, or a model in memory (which is not changed).
        input_shapes: numbers for free dimensions, by input name; a batch defaults to 1.
        order: another order of the ops, as positions in the model's own; positions are then places in it.

    Raises:
        InvalidModel: if the model cannot be read.
        UnsupportedOp: naming an op that cannot be treated.
        KeyValueCache: naming an input through which a decoder gets its own cache back.
        InvalidOrder: if ``order`` is no topological order of this model's ops.
        WrongInput: if ``input_shapes`` does not fit the model.
        MissingDimension: naming an input and a dimension that is free, no batch, and not given.
    """
    prepared = with_order(prepare(model), order)
    refuse_cache(prepared.model.graph)
    graph, layout = prepared.model.graph, prepared.layout
    bound = bind(input_types(graph), input_shapes or {})
    costs = Costs(prepared, bound)
    frontiers = list(layout.frontiers())
    end = len(layout.ops)
    cuts = [p for p in range(1, end) if not any(refusal(value) for value in frontiers[p])]
    edges = [0, *cuts, end]
    sizes = {value: costs.value_bytes(value) for frontier in frontiers for value in frontier}
    alive = [sum(sizes[value] for value in frontier) for frontier in frontiers]
    boundaries = tuple(
        Boundary(position, tuple(value.name or "" for value in frontiers[position]), alive[position])
        for position in edges
    )
    blocks = tuple(_block(layout, costs, alive, start, stop) for start, stop in pairwise(edges))
    specs: dict[str, TensorSpec] = {}
    nbytes: dict[str, int] = {}
    for position in edges:
        for value in frontiers[position]:
            if value.name not in specs:
                specs[value.name or ""] = spec(value)
                nbytes[value.name or ""] = sizes[value]
    weights = weight_sizes(layout, 0, end)
    return BlockChain(
        model=prepared.name,
        digest=prepared.digest(),
        inputs=tuple(spec(value) for value in graph.inputs),
        outputs=tuple(spec(value) for value in graph.outputs),
        blocks=blocks,
        boundaries=boundaries,
        tensors=specs,
        tensor_bytes=nbytes,
        bindings=dict(bound.values),
        weight_sizes=weights,
        weight_bytes=sum(weights.values()),
    )


def _block(layout: Layout, costs: Costs, alive: Sequence[int], start: int, stop: int) -> Block:
    nodes = layout.ops[start:stop]
    weights = weight_sizes(layout, start, stop)
    names = [node.name or node.outputs[0].name or node.op_type for node in nodes]
    flops = peak = 0
    for position, node in enumerate(nodes, start):
        repeated = _repeated(layout, node)
        flops += sum(costs.op_flops(op) for op in (node, *repeated))
        made = sum(
            costs.value_bytes(output) for op in (node, *repeated) for output in op.outputs if output.name
        )
        peak = max(peak, alive[position] + made)
    return Block(
        start=start,
        stop=stop,
        name=names[0] if len(names) == 1 else f"{names[0]}..{names[-1]}",
        op_types=tuple(node.op_type for node in nodes),
        flops=flops,
        weights=tuple(weights),
        weight_bytes=sum(weights.values()),
        activation_bytes=peak,
    )


def _repeated(layout: Layout, node: ir.Node) -> list[ir.Node]:
    """The dequantisers that are repeated for one main op."""
    dequantized = layout.roles.dequantized
    return [dequantized[value] for value in needs(node) if value in dequantized]
