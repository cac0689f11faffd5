"""Loads partitions from the store into an engine, warms them up and shares them between epochs.

Used from the loading thread; only `sessions` is read from another.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from node_agent.batching import Batching, prove
from node_agent.engines import engine_named, in_blocks, options_of
from node_agent.engines.base import Partition, Session, overlapping
from node_agent.epochs import blocks_of, files_of
from node_agent.errors import EngineError, LoadFailedError
from node_agent.machine import resident_bytes
from node_agent.messages import AUTO_ENGINE, HopSpec, Load, TensorSpec
from node_agent.samples import samples
from node_agent.store import FileStore

log = logging.getLogger(__name__)

Key = tuple[str, str, tuple[tuple[str, str], ...], tuple[str, ...], tuple[tuple[str, int], ...]]
Report = Callable[[str, float], None]


class BoundSpec(NamedTuple):
    """A tensor whose whole shape is known."""

    name: str
    shape: tuple[int, ...]


@dataclass(slots=True)
class _Shared:
    """A session and how many hops use it."""

    session: Session
    users: int = 0
    proofs: dict[tuple[Any, ...], tuple[Batching | None, str]] = field(default_factory=dict)
    """How it batches, by warm-up and sizes."""


class Loader:
    """See the module.

    Args:
        store: Where the files are.
        engine: The engine that `auto` stands for here.
        threads: Threads that one run may use.
    """

    def __init__(self, store: FileStore, engine: str, threads: int) -> None:
        self._store = store
        self._engine = engine
        self.threads = threads
        self._shared: dict[Key, _Shared] = {}
        self._epochs: dict[int, tuple[Load, dict[int, Key]]] = {}
        self._batching: dict[int, dict[int, tuple[Batching | None, str]]] = {}
        self.loads = 0
        """Partitions loaded since the start; one that epochs share counts once."""

    @property
    def idle(self) -> bool:
        """Whether nothing is loaded, so that a load disturbs nobody."""
        return not self._shared

    def engine_name(self, asked: str) -> str:
        """The engine that a request for `asked` gets."""
        return self._engine if asked == AUTO_ENGINE else asked

    def load(self, load: Load, report: Report) -> tuple[float, int, str, tuple[str, ...]]:
        """Loads every partition of `load` that is not loaded yet.

        Args:
            load: What to load.
            report: Told what is done and how far it is.

        Returns:
            Seconds that it took, bytes of memory that it took, the engine (several, joined by commas, where
            partitions were better off on different ones), and why others were not taken.

        Raises:
            StoreError: A file is missing.
            EngineError: A partition cannot be loaded; nothing of `load` is held then.
        """
        began, before = time.monotonic(), resident_bytes()
        name = self.engine_name(load.engine)
        hops = [hop for hop in load.hops if hop.graph is not None]
        for ref in files_of(hops):
            self._store.require(ref)
        self._store.pin(files_of(hops))
        keys: dict[int, Key] = {}
        self._epochs[load.epoch] = (load, keys)
        try:
            for done, hop in enumerate(hops):
                report(f"loading partition of hop {hop.hop}", done / len(hops))
                keys[hop.hop] = self._acquire(load, hop, name, report)
            self._batching[load.epoch] = {
                hop.hop: self._prove(self._shared[keys[hop.hop]], hop) for hop in hops if hop.batch
            }
        except BaseException:
            self.release(load.epoch)
            raise
        sessions = [self._shared[key].session for key in keys.values()]
        engines = dict.fromkeys(getattr(session, "engine", name) for session in sessions)
        notes = dict.fromkeys(note for session in sessions for note in getattr(session, "notes", ()))
        notes |= dict.fromkeys(note for _, note in self.batching(load.epoch).values())
        for note in notes:
            log.warning("%s", note) if " failed: " in note else log.info("%s", note)
        took = time.monotonic() - began
        return took, max(0, resident_bytes() - before), ", ".join(engines), tuple(notes)

    def _acquire(self, load: Load, hop: HopSpec, name: str, report: Report) -> Key:
        assert hop.graph is not None
        key: Key = (
            name,
            hop.graph.sha256,
            tuple(sorted(load.options.items())),
            tuple(spec.name for spec in hop.outputs),
            blocks_of(hop),
        )
        shared = self._shared.get(key)
        if shared is None:
            partition = Partition(
                self._store.require(hop.graph),
                hop.inputs,
                hop.outputs,
                self.threads,
                options_of(name, load.options),
                {spec.name: spec.shape for spec in bound(hop.warm_up)},
                lambda what, fraction: report(f"hop {hop.hop}: {what}", fraction),
            )
            shared = _Shared(in_blocks.load(engine_named(name), name, partition))
            try:
                warm_up(shared.session, hop)
            except EngineError as error:
                shared.session.close()
                raise LoadFailedError(f"Hop {hop.hop} does not run: {error}", hint=error.hint) from None
            self._shared[key] = shared
            self.loads += 1
        shared.users += 1
        return key

    def _prove(self, shared: _Shared, hop: HopSpec) -> tuple[Batching | None, str]:
        """How a hop batches. A session with runs in flight in another thread must not be tried: it would mix them up."""
        if overlapping(shared.session) is None:
            return prove(shared.session, hop)
        asked = (hop.warm_up, hop.batch)
        if asked in shared.proofs:
            batching, note = shared.proofs[asked]
            same = batching and replace(batching, delay_ns=round(hop.batch_delay_s * 1e9))
            return same, note
        if shared.users > 1:
            return None, f"hop {hop.hop} does not batch: its partition is at work for another plan"
        proof = shared.proofs[asked] = prove(shared.session, hop)
        return proof

    def sessions(self, epoch: int) -> dict[int, Session]:
        """The sessions of a loaded epoch by hop."""
        return {hop: self._shared[key].session for hop, key in self._epochs[epoch][1].items()}

    def batching(self, epoch: int) -> dict[int, tuple[Batching | None, str]]:
        """How the requests of a loaded epoch's hops run as batches, and what was found about it, where it was wanted."""
        return self._batching.get(epoch, {})

    def release(self, epoch: int) -> None:
        """Gives an epoch's partitions back; those that no other epoch uses are freed."""
        self._batching.pop(epoch, None)
        load, keys = self._epochs.pop(epoch)
        self._store.unpin(files_of(load.hops))
        for key in keys.values():
            shared = self._shared[key]
            shared.users -= 1
            if shared.users == 0:
                del self._shared[key]
                shared.session.close()


def warm_up(session: Session, hop: HopSpec) -> None:
    """Runs a partition once, so that the first request does not pay for what an engine does only once.

    Without shapes for it, a partition with free dimensions is not warmed up: a size that its ops cannot take
    would fail here and prove nothing.
    """
    specs: tuple[TensorSpec, ...] = hop.warm_up or hop.inputs
    if len(bound(specs)) == len(specs):
        session.run(samples(specs))


def bound(specs: Sequence[TensorSpec]) -> list[BoundSpec]:
    """Those of `specs` that have no free dimension."""
    found = []
    for spec in specs:
        shape = tuple(size for size in spec.shape if isinstance(size, int))
        if len(shape) == len(spec.shape):
            found.append(BoundSpec(spec.name, shape))
    return found
