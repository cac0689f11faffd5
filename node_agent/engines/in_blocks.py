"""Partitions whose tensors are handed over in blocks of channels, on any engine: most turn them round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec

from node_agent.engines.base import Arrays, Engine, NotInBlocks, Partition, Session, takes_blocks
from node_agent.engines.choice import ChosenSession, chosen
from node_agent.errors import LoadFailedError
from node_agent.layouts import Array, channel_blocks_of, fits, to_blocks, to_plain
from node_agent.messages import TensorSpec


def load(engine: Engine, name: str, partition: Partition) -> ChosenSession:
    """Loads a partition on an engine, whatever the engine makes of blocks.

    Args:
        engine: The engine.
        name: What it is called.
        partition: The partition.

    Raises:
        EngineError: As of `Engine.load`, or a tensor cannot be in blocks as its spec says.
    """
    specs = (*partition.inputs, *partition.outputs)
    if not channel_blocks_of(specs):
        return chosen(engine.load(partition), name)
    for spec in specs:
        if spec.channel_block and not fits(spec, spec.channel_block):
            raise LoadFailedError(f"{spec.name!r} cannot lie in blocks of {spec.channel_block} channels.")
    reason = "it computes on plain tensors"
    if (able := takes_blocks(engine)) is not None:
        try:
            return chosen(able.load_in_blocks(partition), name)
        except NotInBlocks as finding:
            reason = str(finding)
    plain = replace(partition, inputs=_plain(partition.inputs), outputs=_plain(partition.outputs))
    session = chosen(engine.load(plain), name)
    note = f"{session.engine} has tensors turned that come in blocks of channels: {reason}"
    return ChosenSession(Turned(session, partition), session.engine, (*session.notes, note))


def _plain(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    return [msgspec.structs.replace(spec, channel_block=0) for spec in specs]


class Turned:
    """A session that is handed some inputs in blocks and hands on some outputs so, and knows plain tensors only.

    Args:
        inner: The session.
        partition: Its specs say which.
    """

    def __init__(self, inner: Session, partition: Partition) -> None:
        self._inner = inner
        self._inputs, self._outputs = map(channel_blocks_of, (partition.inputs, partition.outputs))
        self.outputs: Sequence[TensorSpec] = [
            msgspec.structs.replace(spec, channel_block=self._outputs.get(spec.name, 0))
            for spec in inner.outputs
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
