"""Tensors between partitions that are narrow on both sides: they cross as they are, without a cast to and fro."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import onnx_ir as ir

from partitioner.errors import UnsupportedOp
from partitioner.precision.policy import PRECISIONS
from partitioner.precision.rewriting import Rewritten, rewrite
from partitioner.splitting import Partition


def rewrite_chain(
    parts: Sequence[Partition],
    precisions: Sequence[str],
    *,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    keep: Collection[str] = (),
) -> tuple[Rewritten, ...]:
    """Write a precision into each partition of a model, and let narrow neighbours exchange narrow tensors.

    A tensor crosses as float16 or bfloat16 where the partition that makes it has it in that type already and all that
    read it compute in the same one. What is computed is bit for bit what it would be with the casts.

    Args:
        parts: All of one model, in order.
        precisions: One per partition, names in :data:`PRECISIONS`.
        ranges: See :func:`rewrite`.
        keep: Tensors that keep the model's type whoever reads them: the model's own outputs.

    Raises:
        UnsupportedPrecision, UnsupportedOp: As :func:`rewrite`.
    """
    wide = [rewrite(part, name, ranges=ranges) for part, name in zip(parts, precisions, strict=True)]
    narrow = crossing(parts, wide, precisions) - set(keep)
    if not narrow:
        return tuple(wide)
    try:
        return tuple(
            _again(part, name, before, ranges, narrow)
            for part, name, before in zip(parts, precisions, wide, strict=True)
        )
    except UnsupportedOp:
        return tuple(wide)  # an op inside a body wants one of them as it was


def crossing(
    parts: Sequence[Partition], wide: Sequence[Rewritten], precisions: Sequence[str]
) -> frozenset[str]:
    """Tensors that are narrow inside their maker, and wanted narrow by everybody who reads them.

    Args:
        parts: As they are in the model.
        wide: As they were rewritten with every boundary in the model's type.
        precisions: Of each.
    """
    readers: dict[str, set[str]] = {}
    for part, name in zip(parts, precisions, strict=True):
        for spec in part.inputs:
            readers.setdefault(spec.name, set()).add(name)
    return frozenset(
        made
        for each, name in zip(wide, precisions, strict=True)
        for made in _cast_at_the_end(each.partition, name)
        if readers.get(made) == {name}
    )


def _cast_at_the_end(partition: Partition, precision: str) -> list[str]:
    """Outputs that are computed in the narrow type and made wide for the boundary alone."""
    chosen = PRECISIONS[precision]
    if chosen.dtype is None or chosen.quantized:
        return []
    found = []
    for value in partition.model.graph.outputs:
        cast = value.producer()
        if cast is not None and cast.op_type == "Cast" and value.dtype == ir.DataType.FLOAT and value.name:
            source = cast.inputs[0]
            if source is not None and source.dtype == chosen.dtype:
                found.append(value.name)
    return found


def _again(
    part: Partition,
    precision: str,
    before: Rewritten,
    ranges: Mapping[str, tuple[float, float]] | None,
    narrow: Collection[str],
) -> Rewritten:
    own = {spec.name for spec in (*part.inputs, *part.outputs)} & set(narrow)
    return rewrite(part, precision, ranges=ranges, narrow=own) if own else before
