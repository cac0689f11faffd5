"""Partitions from the partitioner's room to the agents': written once by content, described in the wire's words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from defer.hops import Part, Signature
from node_agent.messages import FileRef, TensorSpec

if TYPE_CHECKING:
    import partitioner


@dataclass(frozen=True, slots=True)
class WrittenPart:
    """A partition on this machine's disk: what to tell an agent, and where its files lie."""

    part: Part
    files: Mapping[FileRef, Path]


def written_in(directory: Path, parts: Iterable[Part]) -> tuple[WrittenPart, ...]:
    """Partitions whose files lie in a store."""
    return tuple(
        WrittenPart(
            part, {ref: directory / f"{ref.sha256}{ref.suffix}" for ref in (part.graph, *part.weights)}
        )
        for part in parts
    )


def write_parts(
    model: Path,
    chain: partitioner.BlockChain,
    positions: Sequence[int],
    directory: Path,
    precisions: Sequence[str] = (),
    ranges: Mapping[str, tuple[float, float]] | None = None,
    order: Sequence[int] = (),
) -> tuple[WrittenPart, ...]:
    """Cut a model at op positions and store the partitions by content.

    The files keep free dimensions free; only the warm-up shapes are bound.

    Args:
        model: The ONNX file.
        chain: Its blocks; the bindings of its inputs' free dimensions give the warm-up shapes.
        positions: Where to cut, increasing, exclusive of both ends.
        directory: Store; files that it already holds are not written again.
        precisions: One per partition; the model's own without any.
        ranges: What quantising needs to know, see `defer.precision`.
        order: The order of the ops in which positions count, from the plan; the model's own without one.

    Raises:
        UnsupportedPrecision: A partition cannot be written in the precision that was asked for.
    """
    import partitioner

    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    free = partitioner.split(model, tuple(positions), order=order)
    if any(precision != "fp32" for precision in precisions):
        from defer.precision import rewritten

        free = rewritten(free, precisions, ranges, chain.outputs)
    shapes = {spec.name: tuple(d for d in spec.shape if isinstance(d, int)) for spec in bound_inputs(chain)}
    frozen = partitioner.split(model, tuple(positions), input_shapes=shapes, order=order)
    return written_in(directory, [_write(*pair, directory) for pair in zip(free, frozen, strict=True)])


def _write(free: partitioner.Partition, frozen: partitioner.Partition, directory: Path) -> Part:
    import partitioner

    stored = partitioner.write_store(free, directory)
    graph = FileRef(stored.graph.sha256, stored.graph.nbytes, ".onnx")
    types = {spec.name: spec.dtype for spec in free.inputs}
    weights = tuple(FileRef(file.sha256, file.nbytes, ".bin") for file in stored.weights)
    return Part(
        graph=graph,
        weights=weights,
        inputs=tuple(map(wire_spec, free.inputs)),
        outputs=tuple(map(wire_spec, free.outputs)),
        # The shapes are bound, the types are those that cross.
        warm_up=tuple(TensorSpec(spec.name, types[spec.name], tuple(spec.shape)) for spec in frozen.inputs),
        convolved=partitioner.convolved(free),
    )


def wire_spec(spec: partitioner.TensorSpec) -> TensorSpec:
    """The partitioner's description of a tensor in the wire's words."""
    return TensorSpec(spec.name, spec.dtype, tuple(spec.shape))


def signature_of(chain: partitioner.BlockChain) -> Signature:
    """What a model takes and gives."""
    return tuple(map(wire_spec, chain.inputs)), tuple(map(wire_spec, chain.outputs)), bound_inputs(chain)


def bound_inputs(chain: partitioner.BlockChain) -> tuple[TensorSpec, ...]:
    """A model's inputs with every free dimension replaced by its bound value."""
    return bound(chain, chain.inputs)


def bound(chain: partitioner.BlockChain, specs: Iterable[partitioner.TensorSpec]) -> tuple[TensorSpec, ...]:
    """Tensors with their free dimensions replaced by the chain's values; what has none stays free."""
    bindings = chain.bindings
    return tuple(
        TensorSpec(
            spec.name,
            spec.dtype,
            tuple(bindings.get(d, d) if isinstance(d, str) else d for d in spec.shape),
        )
        for spec in specs
    )
