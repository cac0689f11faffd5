"""Partitions from the partitioner's room to the agents': written once by content, described in the wire's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import partitioner
from defer.errors import WrongInput
from defer.hops import Part
from node_agent.messages import FileRef, TensorSpec


@dataclass(frozen=True, slots=True)
class WrittenPart:
    """A partition on this machine's disk: what to tell an agent, and where its files lie."""

    part: Part
    files: Mapping[FileRef, Path]


def write_parts(
    model: Path, positions: Sequence[int], bindings: Mapping[str, int], directory: Path
) -> tuple[WrittenPart, ...]:
    """Cut a model at op positions and store the partitions by content.

    Args:
        model: The ONNX file.
        positions: Where to cut, increasing, exclusive of both ends.
        bindings: Value of each free dimension in warm-up shapes.
        directory: Store; files that it already holds are not written again.
    """
    directory.mkdir(parents=True, exist_ok=True)
    return tuple(
        _write(partition, bindings, directory) for partition in partitioner.split(model, tuple(positions))
    )


def _write(partition: partitioner.Partition, bindings: Mapping[str, int], directory: Path) -> WrittenPart:
    stored = partitioner.write_store(partition, directory)
    graph = FileRef(stored.graph.sha256, stored.graph.nbytes, ".onnx")
    weights = tuple(FileRef(file.sha256, file.nbytes, ".bin") for file in stored.weights)
    inputs = tuple(wire_spec(spec) for spec in partition.inputs)
    part = Part(
        graph=graph,
        weights=weights,
        inputs=inputs,
        outputs=tuple(wire_spec(spec) for spec in partition.outputs),
        warm_up=tuple(bind(spec, bindings) for spec in inputs),
    )
    return WrittenPart(part, {file: directory / f"{file.sha256}{file.suffix}" for file in (graph, *weights)})


def wire_spec(spec: partitioner.TensorSpec) -> TensorSpec:
    """The partitioner's description of a tensor in the wire's words."""
    return TensorSpec(spec.name, spec.dtype, tuple(spec.shape))


def bind(spec: TensorSpec, bindings: Mapping[str, int]) -> TensorSpec:
    """The spec with its free dimensions replaced by their bound values.

    Raises:
        WrongInput: A free dimension has no value.
    """
    shape: list[int | str] = []
    for dimension in spec.shape:
        if isinstance(dimension, str) and dimension not in bindings:
            raise WrongInput(
                f"tensor {spec.name!r} has the free dimension {dimension!r}, which no input shape binds",
                hint="give the shape of the input that it comes from: --input NAME=1,3,224,224",
            )
        shape.append(bindings[dimension] if isinstance(dimension, str) else dimension)
    return TensorSpec(spec.name, spec.dtype, tuple(shape))
