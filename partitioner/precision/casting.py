"""Casts: each op runs narrow or wide, and a value exists in whichever type its readers want."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from partitioner import tensors
from partitioner.errors import UnsupportedOp
from partitioner.needs import bodies, captured
from partitioner.precision.folding import constant, free_name, weight
from partitioner.precision.policy import BOUNDED, COMPUTE, NORMS, REDUCTIONS, Precision
from partitioner.precision.signatures import narrowable

_WIDE = ir.DataType.FLOAT


def cast(
    graph: ir.Graph,
    precision: Precision,
    *,
    narrow_boundary: Collection[str] = (),
    ranges: Mapping[str, tuple[float, float]] | None = None,
    apart: Collection[ir.Node] = (),
) -> list[str]:
    """Make a graph compute in a narrow type where that is safe.

    Args:
        graph: is changed; its ops are in topological order.
        precision: fp16 or bf16.
        narrow_boundary: inputs and outputs that themselves become narrow; all others keep their type.
        ranges: of tensors, by name; an op whose result would overflow stays wide.
        apart: ops that take and make wide numbers whatever their kind, because they are quantised.

    Returns:
        One sentence per op that stays wide against the rule, and why.

    Raises:
        UnsupportedOp: naming an op whose body hands out a value of the main graph that became narrow.
    """
    caster = _Caster(graph, precision, frozenset(narrow_boundary), ranges or {}, frozenset(apart))
    return caster.run()


class _Caster:
    def __init__(
        self,
        graph: ir.Graph,
        precision: Precision,
        boundary: frozenset[str],
        ranges: Mapping[str, tuple[float, float]],
        apart: frozenset[ir.Node],
    ) -> None:
        assert precision.dtype is not None
        self._graph = graph
        self._precision = precision
        self._dtype: ir.DataType = precision.dtype
        self._boundary = boundary
        self._ranges = ranges
        self._apart = apart
        self._is_narrow: set[ir.Value] = set()
        self._stays_wide: set[ir.Value] = set()  # results of wide ops: what only moves them stays wide too
        self._may_overflow: set[ir.Value] = set()  # numbers that the narrow type may not hold
        self._narrow_of: dict[ir.Value, ir.Value] = {}
        self._wide_of: dict[ir.Value, ir.Value] = {}
        self._fits: dict[ir.Value, bool] = {}
        self._notes: list[str] = []

    def run(self) -> list[str]:
        graph = self._graph
        for value in graph.inputs:
            if value.name in self._boundary and value.dtype == _WIDE:
                self._set_narrow(value)
        for node in [*graph]:
            taken, made = self._variables(node)
            if not any(_is_float(value) for value in (*node.inputs, *node.outputs)):
                pass  # integers, strings: nothing to decide
            elif node in self._apart:
                self._stay_apart(node)
            elif self._runs_narrow(node, taken, made):
                self._narrow(node, taken, made)
            elif self._is_indifferent(node):
                pass
            else:
                self._widen(node)
        for node in [*graph]:
            self._check_bodies(node)
        self._finish_outputs()
        self._drop_unused_weights()
        return self._notes

    # ------------------------------------------------------------------------------------------- decisions

    def _variables(self, node: ir.Node) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
        domain = "" if node.domain == "ai.onnx" else node.domain
        version = self._graph.opset_imports.get(node.domain, self._graph.opset_imports.get(domain, 1))
        return narrowable(domain, node.op_type, version, self._dtype, len(node.inputs), len(node.outputs))

    def _runs_narrow(self, node: ir.Node, taken: tuple[bool, ...], made: tuple[bool, ...]) -> bool:
        """Decide for one op, and remember what its results are like."""
        inputs = [value for value, free in zip(node.inputs, taken, strict=True) if free and _is_float(value)]
        outputs = [value for value in node.outputs if value.dtype == _WIDE]
        variable = [value for value in inputs if value is not None and not value.is_initializer()]
        if any(self._is_foreign(value) for value in (*node.inputs, *node.outputs)):
            self._stays_wide.update(outputs)
            return False  # the model is narrow here already, in a type of its own
        if node.op_type in NORMS:
            self._stays_wide.update(outputs)
            return False
        too_large = [value for value in inputs if value is not None and not self._holds(value)]
        if too_large:
            self._note(node, f"{too_large[0].name!r} holds numbers beyond {self._precision.largest:g}")
            self._may_overflow.update(outputs)
            return False
        overflowing = [value for value in node.outputs if self._range_overflows(value)]
        if overflowing:
            self._note(node, f"{overflowing[0].name!r} was seen beyond {self._precision.largest:g}")
            self._may_overflow.update(outputs)
            return False
        if any(value in self._may_overflow for value in variable):
            if node.op_type in COMPUTE:
                self._note(node, "what it reads may be beyond the range")
            if node.op_type not in BOUNDED:
                self._may_overflow.update(outputs)
            return False
        if node.op_type in REDUCTIONS or any(True for _ in bodies(node)):
            self._stays_wide.update(outputs)
            return False
        if not any(made) or not any(_is_float(v) and f for v, f in zip(node.inputs, taken, strict=True)):
            if node.op_type in COMPUTE:
                opset = self._graph.opset_imports.get("", 0)
                self._note(node, f"opset {opset} has no {self._precision.name} {node.op_type}")
            self._stays_wide.update(outputs)
            return False
        if node.op_type in COMPUTE or not variable:
            return True
        if all(value in self._stays_wide for value in variable):
            self._stays_wide.update(outputs)
            return False
        return True

    def _is_indifferent(self, node: ir.Node) -> bool:
        """Whether an op without float results (Shape, Greater) takes its inputs as they are."""
        if any(_is_float(value) for value in node.outputs) or any(True for _ in bodies(node)):
            return False
        if node.op_type in ("Shape", "Size"):
            return True
        return not any(value in self._is_narrow for value in node.inputs if value is not None)

    def _holds(self, value: ir.Value) -> bool:
        """Whether the narrow type holds an initializer's numbers (infinities are meant)."""
        if not value.is_initializer():
            return True
        if value not in self._fits:
            array = constant(value)
            finite = np.zeros(1) if array is None or not array.size else array[np.isfinite(array)]
            self._fits[value] = not finite.size or float(np.abs(finite).max()) <= self._precision.largest
        return self._fits[value]

    def _is_foreign(self, value: ir.Value | None) -> bool:
        return (
            value is not None and _is_float(value) and value.dtype != _WIDE and value not in self._is_narrow
        )

    def _range_overflows(self, value: ir.Value) -> bool:
        low, high = self._ranges.get(value.name or "", (0.0, 0.0))
        return max(abs(low), abs(high)) > self._precision.largest

    def _note(self, node: ir.Node, why: str) -> None:
        self._notes.append(f"{node.op_type} {node.name or node.outputs[0].name!r} stays wide: {why}")

    # --------------------------------------------------------------------------------------------- rewriting

    def _narrow(self, node: ir.Node, taken: tuple[bool, ...], made: tuple[bool, ...]) -> None:
        for index, (value, free) in enumerate(zip(node.inputs, taken, strict=True)):
            if value is None or not _is_float(value):
                continue
            if free:
                node.replace_input_with(index, self._as_narrow(value))
            elif value in self._is_narrow:
                node.replace_input_with(index, self._as_wide(value))
        for value, free in zip(node.outputs, made, strict=True):
            if free and value.dtype == _WIDE:
                self._set_narrow(value)

    def _widen(self, node: ir.Node) -> None:
        for index, value in enumerate(node.inputs):
            if value is not None and value in self._is_narrow:
                node.replace_input_with(index, self._as_wide(value))
        for body in bodies(node):
            self._widen_captured(body)

    def _stay_apart(self, node: ir.Node) -> None:
        """A quantised op: results may become narrow again, unless its weights or inputs are beyond the range."""
        self._widen(node)
        beyond = any(value in self._may_overflow for value in node.inputs if value is not None)
        if node.op_type == "DequantizeLinear":
            scale = constant(node.inputs[1])
            beyond = scale is not None and float(scale.max()) * 127 > self._precision.largest
        if beyond:
            self._may_overflow.update(value for value in node.outputs if value.dtype == _WIDE)

    def _widen_captured(self, body: ir.Graph) -> None:
        """Ops inside a body go on reading what they were written for."""
        for inner in body:
            self._widen(inner)

    def _check_bodies(self, node: ir.Node) -> None:
        for body in bodies(node):
            for value in captured(body):
                if value in self._is_narrow:
                    raise UnsupportedOp(
                        f"op {node.op_type!r} ({node.name or node.outputs[0].name!r}) hands out {value.name!r} of the "
                        f"main graph from inside its body, which has no {self._precision.name} form",
                        hint="deploy this model with precision fp32, or export it again",
                    )

    def _as_narrow(self, value: ir.Value) -> ir.Value:
        if value in self._is_narrow:
            return value
        if value not in self._narrow_of:
            if value.is_initializer():
                array = constant(value)
                assert array is not None
                name = free_name(self._graph, f"{value.name}.{self._suffix}")
                made = weight(self._graph, name, array.astype(self._dtype.numpy()), self._dtype)
            else:
                made = self._insert_cast(value, self._dtype)
            self._narrow_of[value] = made
        return self._narrow_of[value]

    def _as_wide(self, value: ir.Value) -> ir.Value:
        if value not in self._wide_of:
            self._wide_of[value] = self._insert_cast(value, _WIDE)
        return self._wide_of[value]

    @property
    def _suffix(self) -> str:
        return tensors.dtype_name(self._dtype)

    def _insert_cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        name = f"{value.name}.{tensors.dtype_name(dtype)}"
        node = ir.node("Cast", [value], {"to": int(dtype)}, name=f"{name}.cast")
        made = node.outputs[0]
        made.name, made.type, made.shape = name, ir.TensorType(dtype), value.shape
        producer = value.producer()
        if producer is None:
            self._graph.insert_before(self._graph[0], node)
        else:
            self._graph.insert_after(producer, node)
        return made

    def _set_narrow(self, value: ir.Value) -> None:
        value.type = ir.TensorType(self._dtype)
        self._is_narrow.add(value)

    def _finish_outputs(self) -> None:
        """Give every output the type that it is to have, under its own name."""
        graph = self._graph
        for index, value in enumerate(graph.outputs):
            wanted_narrow = value.name in self._boundary
            if value in graph.inputs or value.is_initializer():
                continue
            if value in self._is_narrow and not wanted_narrow:
                graph.outputs[index] = self._renamed(value, _WIDE)
            elif value.dtype == _WIDE and wanted_narrow:
                graph.outputs[index] = self._renamed(value, self._dtype)

    def _renamed(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        known = self._wide_of if dtype == _WIDE else self._narrow_of
        made = known.get(value) or self._insert_cast(value, dtype)
        made.name, value.name = value.name, f"{value.name}.{tensors.dtype_name(value.dtype or _WIDE)}"
        return made

    def _drop_unused_weights(self) -> None:
        for value in self._narrow_of:
            if value.is_initializer() and not value.uses() and not value.is_graph_output() and value.name:
                del self._graph.initializers[value.name]


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype in (_WIDE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
