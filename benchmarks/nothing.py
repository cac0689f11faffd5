"""An engine whose partitions compute nothing: what comes in goes out. For what a hop costs beside the engine.

Engines of other packages are found by an entry point; `installed` stands in for the package.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from node_agent.engines.base import Arrays, Partition, Session
from node_agent.errors import LoadFailedError
from node_agent.messages import EngineInfo, TensorSpec

NAME = "nothing"
ROOT = Path(__file__).resolve().parent.parent


class Engine:
    """See the module."""

    def info(self) -> EngineInfo:
        """See `node_agent.engines.base.Engine.info`."""
        return EngineInfo(NAME, "1", "none")

    def load(self, partition: Partition) -> Session:
        """See `node_agent.engines.base.Engine.load`."""
        if len(partition.inputs) != len(partition.outputs):
            raise LoadFailedError("What computes nothing has an output per input.")
        return _Session(partition)


class _Session:
    def __init__(self, partition: Partition) -> None:
        self.outputs: Sequence[TensorSpec] = tuple(partition.outputs)
        self._names = [
            (gives.name, takes.name) for gives, takes in zip(self.outputs, partition.inputs, strict=True)
        ]

    def run(self, inputs: Mapping[str, object]) -> Arrays:
        return {gives: inputs[takes] for gives, takes in self._names}  # type: ignore[misc]

    def close(self) -> None:
        pass


@contextlib.contextmanager
def installed(directory: Path) -> Iterator[None]:
    """Has child processes that start meanwhile find the engine, as if it were a package that somebody installed."""
    info = directory / "defer_nothing-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: defer-nothing\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[defer.engines]\n{NAME} = {__name__}:{Engine.__name__}\n")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(directory), str(ROOT), *([before] if before else [])])
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
