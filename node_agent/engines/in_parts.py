"""Loads a partition of which an engine lacks some ops: what it takes on it, the rest on the engines that take over.

ONNX Runtime does the same inside one session with its providers. Here the engine is TensorRT's own API, which takes a
graph whole or not at all.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from node_agent.engines.base import Arrays, Engine, Partition, Session
from node_agent.engines.choice import ChosenSession
from node_agent.engines.segmented import Part, chain
from node_agent.engines.segments import cut_aside
from node_agent.errors import AgentError, LoadFailedError
from node_agent.messages import TensorSpec
from node_agent.samples import samples

SIZES_FROM_VALUES = frozenset(
    {"NonZero", "Unique", "Compress", "NonMaxSuppression", "Loop", "If", "Scan", "StringSplit"}
)
"""Ops of which the size of an output may depend on the values of an input."""


@dataclass(frozen=True, slots=True)
class Named:
    """An engine that may take a part, and what it is called."""

    name: str
    engine: Engine


def load_in_parts(
    partition: Partition,
    refused: Sequence[int],
    reason: str,
    first: Named,
    others: Sequence[Named],
    folder: Path,
) -> Session:
    """Cuts a partition, and loads each part where it runs.

    Args:
        partition: What to load. Sizes of its usual requests must be known.
        refused: Positions of the ops that `first` lacks.
        reason: What it says about them.
        first: The engine that was asked for.
        others: The engines that take over, the fastest first; they get no options.
        folder: Where the parts are written until they are loaded.

    Raises:
        EngineMissingError: There is no `onnx` package to cut with.
        LoadFailedError: It cannot be cut, or a part runs nowhere.
    """
    usual = [replace_shape(spec, partition.usual.get(spec.name, spec.shape)) for spec in partition.inputs]
    if any(not isinstance(size, int) for spec in usual for size in spec.shape):
        raise LoadFailedError("The partition cannot be cut: the sizes of its usual requests are not known.")
    # Parts are run one after the other as they are loaded, which tells the sizes of what passes between them.
    held: Arrays = samples(usual)
    fixed = all(isinstance(size, int) for spec in partition.inputs for size in spec.shape)
    free = {size for spec in partition.inputs for size in spec.shape}
    parts: list[Part] = []
    used: dict[str, None] = {first.name: None}
    taken_over: dict[str, dict[str, None]] = {}
    with (
        tempfile.TemporaryDirectory(dir=folder, prefix=".parts-") as cut_here,
        contextlib.ExitStack() as loaded,
    ):
        segments, wanted = cut_aside(partition, refused, Path(cut_here))
        for segment in segments:
            names = tuple(spec.name for spec in segment.inputs)
            inputs = (
                [replace_shape(spec, held[spec.name].shape) for spec in segment.inputs]
                if fixed
                else segment.inputs
            )
            own = segment.supported and all(
                isinstance(size, int) or size in free for spec in inputs for size in spec.shape
            )
            piece = replace(
                partition,
                graph=Path(segment.graph),
                inputs=inputs,
                outputs=segment.outputs,
                usual={name: held[name].shape for name in names},
            )
            name, session = _load(piece, [first] if own else others, options=own)
            loaded.callback(session.close)
            used[name] = None
            if not own:
                taken_over.setdefault(name, {}).update(dict.fromkeys(segment.types))
            held |= session.run({each: held[each] for each in names})
            parts.append(Part(session, names, segment.outputs))
            if SIZES_FROM_VALUES & set(segment.types):
                fixed = False
        made = {spec.name: spec for part in parts for spec in part.outputs}
        whole = chain(parts, partition.outputs or [made[name] for name in wanted])
        loaded.pop_all()
    where = "; ".join(f"{', '.join(types)} on {name}" for name, types in taken_over.items())
    return ChosenSession(whole, "+".join(used), (f"{len(parts)} parts, {where}: {reason}",))


def replace_shape(spec: TensorSpec, shape: Sequence[int | str]) -> TensorSpec:
    """The same tensor with another shape."""
    return TensorSpec(spec.name, spec.dtype, tuple(shape))


def _load(piece: Partition, engines: Sequence[Named], *, options: bool) -> tuple[str, Session]:
    """The first that takes it."""
    failed = "no engine is there"
    for each in engines:
        try:
            return each.name, each.engine.load(piece if options else replace(piece, options={}))
        except AgentError as error:
            failed = f"{each.name}: {error}"
    raise LoadFailedError(f"A part of the partition runs nowhere: {failed}")
