"""Which tensors lie between convolutions, so that whoever computes those may choose how they lie in memory. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx_ir as ir

from partitioner.needs import bodies
from partitioner.splitting import Partition

_ELEMENTWISE = "Add BatchNormalization Clip HardSigmoid HardSwish LeakyRelu Mul Relu Sigmoid Sum Tanh"
_POOLS = "AveragePool GlobalAveragePool GlobalMaxPool MaxPool"
KEEPING = frozenset(f"{_ELEMENTWISE} {_POOLS} Concat".split())
"""Ops that compute on channels wherever those lie, and leave them there."""

_QUANTISED = frozenset(("QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger"))


def convolved(partition: Partition) -> tuple[str, ...]:
    """Inputs that reach a convolution through nothing but `KEEPING` ops, and outputs that come from one so.

    None in a quantised partition, whose convolutions compute on integers, which engines lay out otherwise; none where
    bodies of loops and branches may read what nobody sees.
    """
    graph = partition.model.graph
    if any(node.op_type in _QUANTISED or any(bodies(node)) for node in graph):
        return ()
    values = {value.name: value for value in (*graph.inputs, *graph.outputs)}
    inputs = (spec.name for spec in partition.inputs if _reaches(values[spec.name], _readers))
    outputs = (spec.name for spec in partition.outputs if _reaches(values[spec.name], _maker))
    return (*inputs, *outputs)


def _reaches(
    start: ir.Value, step: Callable[[ir.Value], Iterable[tuple[ir.Node, Iterable[ir.Value]]]]
) -> bool:
    """Whether a convolution is found from a value in steps over `KEEPING` ops."""
    seen, left = {start}, [start]
    while left:
        for node, values in step(left.pop()):
            if node.op_type == "Conv" and _whole(node):
                return True
            if node.op_type in KEEPING:
                fresh = [value for value in values if value not in seen]
                seen.update(fresh)
                left += fresh
    return False


def _readers(value: ir.Value) -> Iterable[tuple[ir.Node, Iterable[ir.Value]]]:
    # What is a convolution's weight or bias is no picture.
    return (
        (use.node, use.node.outputs) for use in value.uses() if use.node.op_type != "Conv" or use.idx == 0
    )


def _maker(value: ir.Value) -> Iterable[tuple[ir.Node, Iterable[ir.Value]]]:
    node = value.producer()
    return () if node is None else ((node, [read for read in node.inputs if read is not None]),)


def _whole(node: ir.Node) -> bool:
    """Whether a convolution reads all channels, or each by itself: engines treat other groups in their own way."""
    attribute = node.attributes.get("group")
    groups = 1 if attribute is None else attribute.as_int()
    shape = node.inputs[1].shape if node.inputs[1] is not None else None
    return groups == 1 or (shape is not None and shape[1] == 1)
