"""The one call: a partition in, the same partition in another precision out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from partitioner.cutting import spec
from partitioner.errors import UnsupportedPrecision
from partitioner.precision.casting import cast
from partitioner.precision.folding import fold_batch_norms
from partitioner.precision.policy import PRECISIONS, Precision
from partitioner.precision.quantizing import quantize
from partitioner.splitting import Partition


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A partition in another precision.

    Attributes:
        partition: the same ops; its model is a copy, the one it came from is unchanged.
        notes: one sentence per op that stays wide although its kind is narrow, and why.
    """

    partition: Partition
    notes: tuple[str, ...] = ()


def rewrite(
    partition: Partition,
    precision: str,
    *,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    narrow: Collection[str] = (),
) -> Rewritten:
    """Write a precision into a partition.

    Args:
        partition: from :func:`partitioner.split`.
        precision: a name in :data:`PRECISIONS`; ``fp32`` gives the partition back.
        ranges: least and greatest number by tensor name; int8 and fp8 need them (see :class:`Observer`), fp16
            uses them to keep wide what would overflow.
        narrow: inputs and outputs that become narrow themselves (fp16, bf16), so that fewer bytes cross the
            network; every partition that makes or reads the tensor must name it. All others keep the model's type.

    Raises:
        UnsupportedPrecision: if the name is unknown, ranges are missing, or the model's opset lacks the type.
        UnsupportedOp: naming an op that the precision cannot be written around.
    """
    chosen = PRECISIONS.get(precision)
    if chosen is None:
        raise UnsupportedPrecision(
            f"precision {precision!r} is unknown", hint=f"choose one of {', '.join(PRECISIONS)}"
        )
    if chosen.dtype is None:
        return Rewritten(partition)
    _check(partition, chosen, ranges, narrow)
    model = partition.model.clone()
    graph = model.graph
    fold_batch_norms(graph)
    if chosen.quantized:
        before = set(graph)
        notes = quantize(graph, chosen, ranges or {})
        if chosen.rest:
            notes = [note.replace(" stays wide: ", f" stays {chosen.rest}: ") for note in notes]
            notes += cast(graph, PRECISIONS[chosen.rest], ranges=ranges, apart=_quantised(graph, before))
    else:
        notes = cast(graph, chosen, narrow_boundary=narrow, ranges=ranges)
    for name, value in [*graph.initializers.items()]:
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
    # IR versions that brought the types: 4 bfloat16, 9 float8.
    model.ir_version = max(model.ir_version, 9 if precision == "fp8" else 4)
    rewritten = replace(
        partition,
        inputs=tuple(map(spec, graph.inputs)),
        outputs=tuple(map(spec, graph.outputs)),
        weight_bytes=sum(map(_bytes, graph.initializers.values())),
        model=model,
    )
    return Rewritten(rewritten, tuple(notes))


def _quantised(graph: ir.Graph, before: Collection[ir.Node]) -> set[ir.Node]:
    """The quantisers and dequantisers that are new in a graph, and the ops that compute on what they make."""
    made = {node for node in graph if node not in before}
    return made | {node for node in graph if any(v is not None and v.producer() in made for v in node.inputs)}


def _bytes(value: ir.Value) -> int:
    tensor = value.const_value
    return 0 if tensor is None or tensor.dtype == ir.DataType.STRING else tensor.nbytes


def _check(
    partition: Partition,
    precision: Precision,
    ranges: Mapping[str, tuple[float, float]] | None,
    narrow: Collection[str],
) -> None:
    opset = partition.model.graph.opset_imports.get("", 0)
    if opset < precision.opset:
        raise UnsupportedPrecision(
            f"precision {precision.name} needs ONNX opset {precision.opset}, and the model is of opset {opset}",
            hint=f"export the model with opset {precision.opset} or newer",
        )
    if precision.quantized and not ranges:
        raise UnsupportedPrecision(
            f"precision {precision.name} needs the range of every tensor that is quantised, and none was given",
            hint="measure them on representative inputs first",
        )
    if precision.quantized and narrow:
        raise UnsupportedPrecision(
            f"precision {precision.name} cannot narrow what crosses the network",
            hint="choose a codec for the link instead",
        )
