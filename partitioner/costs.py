"""Bytes and operations of a prepared model, free dimensions bound."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import onnx_ir as ir

from partitioner import tensors
from partitioner.binding import Bound
from partitioner.flops import op_flops
from partitioner.needs import bodies, needs
from partitioner.preparing import Prepared
from partitioner.proto import ShapeInference, ValueType


class Costs:
    """Sizes of values and operations of ops for one choice of input shapes.

    A shape that only the data decides (the output of NonZero, of a loop that stops by condition, of an op
    from a foreign domain) is estimated: its free dimensions are taken as large as lets the tensor hold as
    many elements as the largest tensor its op reads.
    """

    def __init__(self, prepared: Prepared, bound: Bound) -> None:
        """Infer all shapes once.

        Args:
            prepared: the model.
            bound: its inputs, every dimension a number.

        Raises:
            InvalidModel: if inference rejects the model.
        """
        self._model = prepared.model
        self._types = prepared.bound_types(bound.types, bound.values)
        self._elements: dict[ir.Value, int] = {}
        for value in prepared.model.graph.inputs:
            self._elements[value] = prod(self._dims(value) or (1,))
        for node in prepared.model.graph:
            self._estimate(node)

    def _dims(self, value: ir.Value | None) -> tuple[int, ...] | None:
        if value is None:
            return None
        if value.const_value is not None and value.is_initializer():
            return tuple(value.const_value.shape.numpy())
        type_ = self._types.get(value.name or "")
        dims: Sequence[object] | None = None if type_ is None else type_.dims
        if dims is None and value.shape is not None:
            dims = tuple(value.shape)
        if dims is None or any(not isinstance(dim, int) for dim in dims):
            return None
        return tuple(dim for dim in dims if isinstance(dim, int))

    def _estimate(self, node: ir.Node) -> None:
        largest = 1
        for value in needs(node):
            known = self._elements.get(value)
            if known is None:
                known = prod(self._dims(value) or (1,))
            largest = max(largest, known)
        for output in node.outputs:
            dims = self._dims(output)
            if dims is not None:
                self._elements[output] = prod(dims)
                continue
            type_ = self._types.get(output.name or "")
            fixed = prod(dim for dim in (type_.dims if type_ and type_.dims else ()) if isinstance(dim, int))
            if node.op_type == "NonZero":  # one index per dimension of the input, for every element of it
                fixed, largest = 1, largest * max(1, fixed)
            self._elements[output] = max(fixed, largest)

    def value_bytes(self, value: ir.Value) -> int:
        """Bytes of a value of the main graph (an upper estimate where only the data decides)."""
        dtype = value.dtype if value.dtype is not None else ir.DataType.FLOAT
        if dtype == ir.DataType.UNDEFINED:
            dtype = ir.DataType.FLOAT
        elements = self._elements.get(value)
        return tensors.element_bytes(dtype, prod(self._dims(value) or (1,)) if elements is None else elements)

    def op_flops(self, node: ir.Node) -> int:
        """Operations of one op, its bodies included (the larger branch of If; each turn of a loop)."""
        inputs = [self._shape(value) for value in node.inputs]
        outputs = [self._shape(value) for value in node.outputs]
        if node.op_type not in ("If", "Loop", "Scan"):
            return op_flops(node, inputs, outputs)
        per_body = [self._body_flops(node, body) for body in bodies(node)]
        if node.op_type == "If":
            return max(per_body, default=0)
        return self._turns(node) * sum(per_body)

    def _shape(self, value: ir.Value | None) -> tuple[int, ...] | None:
        dims = self._dims(value)
        if dims is None and value is not None and value in self._elements:
            return (self._elements[value],)
        return dims

    def _turns(self, node: ir.Node) -> int:
        """How often a loop's body runs: the trip count where constant, the scanned length, else once."""
        if node.op_type == "Loop":
            limit = node.inputs[0]
            if limit is not None and limit.is_initializer() and limit.const_value is not None:
                return max(1, min(int(limit.const_value.numpy().reshape(-1)[0]), 2**31))
            return 1
        scanned = int(node.attributes.get_int("num_scan_inputs", 1))
        axes = node.attributes.get_ints("scan_input_axes", ())
        dims = self._dims(node.inputs[-scanned]) if scanned else None
        return dims[axes[0] if axes else 0] if dims else 1

    def _body_flops(self, node: ir.Node, body: ir.Graph) -> int:
        types: dict[str, ValueType] = {}
        outside = [value for value in needs(node) if value.name]
        for value in outside:
            dtype = value.dtype if value.dtype is not None else ir.DataType.UNDEFINED
            types[value.name or ""] = ValueType("tensor", dtype, self._dims(value))
        carried = list(node.inputs)
        if node.op_type == "Scan":
            scanned = int(node.attributes.get_int("num_scan_inputs", 1))
            first = len(carried) - scanned
            for index, (inner, state) in enumerate(zip(body.inputs, carried, strict=False)):
                dims = self._dims(state)
                types[inner.name or ""] = ValueType(
                    "tensor", _dtype(state), dims[1:] if dims and index >= first else dims
                )
        elif node.op_type == "Loop":
            types |= {inner.name or "": ValueType("tensor", _dtype(inner), ()) for inner in body.inputs[:2]}
            for inner, state in zip(body.inputs[2:], carried[2:], strict=False):
                types[inner.name or ""] = ValueType("tensor", _dtype(state), self._dims(state))
        inputs = [value for value in (*body.inputs, *outside) if types.get(value.name or "")]
        inference = ShapeInference(self._model, body, inputs)
        inner_costs = Costs.__new__(Costs)
        inner_costs._model = self._model
        inner_costs._types = inference.run(types)
        inner_costs._types.update(types)
        inner_costs._elements = {}
        for inner_node in body:
            inner_costs._estimate(inner_node)
        return sum(inner_costs.op_flops(inner_node) for inner_node in body)


def _dtype(value: ir.Value | None) -> ir.DataType:
    return ir.DataType.UNDEFINED if value is None or value.dtype is None else value.dtype
