"""What an engine is: it turns a partition on disk into a session that runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from node_agent.messages import EngineInfo, TensorSpec

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition to load.

    Attributes:
        graph: Its ONNX file; external data lies in the same directory.
        inputs: What it consumes, named as in the file.
        outputs: What is wanted of it; empty for everything that it produces.
        threads: Threads that one run may use.
        options: Engine options of the deployment, by name.
        usual: Shapes that requests will usually have, by input, where some dimension is free.
        progress: Told what an engine that compiles is doing, and how far it is, 0 to 1.
    """

    graph: Path
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    threads: int = 1
    options: Mapping[str, str] = field(default_factory=dict)
    usual: Mapping[str, Sequence[int]] = field(default_factory=dict)
    progress: Callable[[str, float], None] | None = None


class Session(Protocol):
    """A loaded partition. `run` is called from one thread at a time, `close` after the last run.

    Attributes:
        outputs: What `run` returns.
    """

    outputs: Sequence[TensorSpec]

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Runs the partition once.

        Args:
            inputs: By name; element types without a NumPy type are raw bits. May be read-only, and is not
                kept.

        Returns:
            Outputs by name, C contiguous; types without a NumPy type as raw bits. The caller owns them.

        Raises:
            RunFailedError: The engine failed.
        """

    def close(self) -> None:
        """Gives back what the session holds."""


class OverlappingSession(Session, Protocol):
    """A session whose runs have two halves, so that copies of one run beside the computation of another.

    `run` must not be called while something is in flight. All three are called from one thread at a time.

    Attributes:
        slots: Runs that may be in flight.
    """

    slots: int

    def submit(self, inputs: Mapping[str, npt.NDArray[Any]]) -> None:
        """Starts a run; what it takes as `run`, and the inputs may change as soon as it has returned.

        Raises:
            RunFailedError: It was not started; `collect` will not give it.
        """

    def collect(self) -> Arrays:
        """Waits for the oldest run in flight; releases the GIL meanwhile.

        Raises:
            RunFailedError: That run failed, and is in flight no more.
        """


def overlapping(session: Session | None) -> OverlappingSession | None:
    """The session itself where several of its runs may be in flight; None where each ends before the next."""
    several: Any = session
    offers = hasattr(session, "submit") and hasattr(session, "collect")
    return several if offers and getattr(session, "slots", 1) > 1 else None


class Engine(Protocol):
    """One way to run ONNX. Imported lazily: its package may be missing."""

    def info(self) -> EngineInfo:
        """Name, version and provider, or what is missing; never raises."""

    def load(self, partition: Partition) -> Session:
        """Loads a partition; releases the GIL while it does, so that the agent's other threads go on.

        Raises:
            EngineMissingError: The engine is not installed.
            LoadFailedError: It refuses the partition.
        """


class NotInBlocks(Exception):  # noqa: N818 a finding, not a failure
    """Why an engine does not take a partition's tensors in blocks of channels."""


class BlockEngine(Engine, Protocol):
    """An engine that computes on blocks of channels, and may be handed tensors so; see `node_agent.layouts`."""

    def channel_block(self) -> int:
        """Channels per block on this device; 0 where it computes on plain tensors alone."""

    def load_in_blocks(self, partition: Partition) -> Session:
        """Loads a partition some of whose tensors are in blocks, as their specs say.

        Raises:
            NotInBlocks: It does not take this partition so; `load` may take it in plain.
        """


def takes_blocks(engine: Engine) -> BlockEngine | None:
    """The engine itself where it can be handed tensors in blocks."""
    able: Any = engine
    return able if hasattr(engine, "load_in_blocks") else None
