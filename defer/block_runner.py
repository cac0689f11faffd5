"""Runs a model block by block on this machine, from any boundary: what codec errors do to the output is measured so.

Each block is a partition of its own, in the engine that an agent would take. All blocks together take the memory of
the whole model once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy.typing as npt

import partitioner
from defer.parts import write_parts
from node_agent.engines import engine_named
from node_agent.engines.base import Partition, Session

ENGINE = "onnxruntime-cpu"
"""What runs the blocks: codec errors pass through a model alike whichever engine computes it."""

Array = npt.NDArray[Any]
Arrays = dict[str, Array]


class BlockRunner:
    """The blocks of one chain, loaded; use it as a context manager.

    Args:
        model: The ONNX file.
        chain: Its blocks.
        directory: Where the blocks' partition files go; files that it already holds are not written again.
        threads: Threads of a run; as many as there are cores by default.
    """

    def __init__(
        self, model: Path, chain: partitioner.BlockChain, directory: Path, threads: int | None = None
    ) -> None:
        self.chain = chain
        self._model = model
        self._directory = directory
        self._threads = threads or _cores()
        self._sessions: list[tuple[tuple[str, ...], Session]] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Cut and load.

        Raises:
            EngineMissingError: ONNX Runtime is not installed here.
            EngineError: A block cannot be loaded.
        """
        engine = engine_named(ENGINE)
        positions = [boundary.position for boundary in self.chain.boundaries[1:-1]]
        with ExitStack() as stack:
            for written in write_parts(self._model, self.chain, positions, self._directory):
                part = written.part
                partition = Partition(written.files[part.graph], part.inputs, (), self._threads)
                session = stack.enter_context(closing(engine.load(partition)))
                self._sessions.append((tuple(spec.name for spec in part.inputs), session))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sessions.clear()
        self._stack.close()

    def run(self, state: Mapping[str, Array], start: int, stop: int | None = None) -> Arrays:
        """The tensors on boundary `stop` (the model's outputs by default) from those on boundary `start`.

        Raises:
            RunFailedError: The engine failed.
        """
        held = dict(state)
        last = len(self._sessions) if stop is None else stop
        for number in range(start, last):
            held = self._step(held, number)
        return held

    def states(self, inputs: Mapping[str, Array]) -> list[Arrays]:
        """The tensors on every boundary, 0 to L, of one request."""
        found = [_only(inputs, self.chain.boundaries[0].tensors)]
        # Later boundaries may name inputs that the first does not, and outputs may be inputs.
        held = dict(inputs)
        for number in range(len(self._sessions)):
            held = self._step(held, number)
            found.append(held)
        return found

    def _step(self, held: Arrays, number: int) -> Arrays:
        wanted, session = self._sessions[number]
        results = session.run({name: held[name] for name in wanted})
        return _only({**held, **results}, self.chain.boundaries[number + 1].tensors)


def _only(held: Mapping[str, Array], names: Iterable[str]) -> Arrays:
    return {name: held[name] for name in names}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
