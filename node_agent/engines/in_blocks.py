"""Partitions whose tensors are handed over in blocks of channels, on any engine: most turn them round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from node_agent.engines.base import Arrays, Engine, Partition, Session
from node_agent.engines.choice import ChosenSession, chosen
from node_agent.layouts import Array, to_blocks, to_plain
from node_agent.messages import TensorSpec

Blocks = Mapping[str, int]
"""Channels per block by tensor."""


def blocks_of(specs: Sequence[TensorSpec]) -> dict[str, int]:
    """Those of some tensors that are in blocks."""
    return {spec.name: spec.block for spec in specs if spec.block}


def load(engine: Engine, name: str, partition: Partition) -> ChosenSession:
    """Loads a partition on an engine, whatever the engine makes of blocks.

    Args:
        engine: The engine; with an attribute `takes_blocks` that is true, it is handed the partition as it is.
        name: What it is called.
        partition: The partition.

    Raises:
        EngineError: As of `Engine.load`.
    """
    inputs, outputs = blocks_of(partition.inputs), blocks_of(partition.outputs)
    if getattr(engine, "takes_blocks", False) or not (inputs or outputs):
        return chosen(engine.load(partition), name)
    session = chosen(engine.load(in_plain(partition)), name)
    return ChosenSession(Turned(session, inputs, outputs), session.engine, session.notes)


def in_plain(partition: Partition) -> Partition:
    """The same partition, its tensors plain."""
    inputs, outputs = (
        [replace_block(spec) for spec in each] for each in (partition.inputs, partition.outputs)
    )
    return replace(partition, inputs=inputs, outputs=outputs)


def replace_block(spec: TensorSpec, block: int = 0) -> TensorSpec:
    """The same tensor in other blocks."""
    return TensorSpec(spec.name, spec.dtype, spec.shape, block)


class Turned:
    """A session that is handed some inputs in blocks and hands on some outputs so, and knows plain tensors only.

    Args:
        inner: The session.
        inputs: Which it is handed.
        outputs: Which it hands on.
    """

    def __init__(self, inner: Session, inputs: Blocks, outputs: Blocks) -> None:
        self._inner, self._inputs, self._outputs = inner, inputs, outputs
        self.outputs: Sequence[TensorSpec] = [
            replace_block(spec, outputs.get(spec.name, spec.block)) for spec in inner.outputs
        ]

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        """See `Session.run`."""
        plain = {
            name: to_plain(array, self._inputs[name]) if name in self._inputs else array
            for name, array in inputs.items()
        }
        made = self._inner.run(plain)
        return {
            name: to_blocks(array, self._outputs[name]) if name in self._outputs else array
            for name, array in made.items()
        }

    def close(self) -> None:
        """See `Session.close`."""
        self._inner.close()
