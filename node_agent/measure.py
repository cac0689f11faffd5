"""Times blocks of a model on this device, on the activations that the blocks before really produced."""

from __future__ import annotations

import time

from node_agent.codecs import CODECS, Array
from node_agent.engines import engine_named
from node_agent.engines.base import Arrays, Partition
from node_agent.errors import CodecError
from node_agent.loader import Loader
from node_agent.machine import resident_bytes, trim
from node_agent.messages import Measure, Measured, TensorStats
from node_agent.samples import sample
from node_agent.store import FileStore

SEED = 0
"""Of the inputs that are made up: every device measures the same values."""


class BlockTimer:
    """Measures blocks one after the other and keeps the activations that later ones need.

    Args:
        store: Where the blocks' files are.
        loader: Knows the default engine.
        threads: Threads that one run may use.
    """

    def __init__(self, store: FileStore, loader: Loader, threads: int) -> None:
        self._store = store
        self._loader = loader
        self._threads = threads
        self._session = ""
        self._held: Arrays = {}

    def forget(self) -> None:
        """Drops the kept activations."""
        self._session = ""
        self._held = {}
        trim()

    def measure(self, request: Measure) -> Measured:
        """Loads the block, runs it once to warm up and up to `repeats` times against the clock.

        Raises:
            StoreError: A file is missing.
            EngineError: The block cannot be loaded or run.
        """
        if request.session != self._session:
            self.forget()
            self._session = request.session
        for ref in (request.graph, *request.weights):
            self._store.require(ref)
        inputs = {
            spec.name: self._held[spec.name] if spec.name in self._held else sample(spec, SEED)
            for spec in request.inputs
        }
        before, began = resident_bytes(), time.perf_counter()
        engine = engine_named(self._loader.engine_name(request.engine))
        graph = self._store.require(request.graph)
        session = engine.load(Partition(graph, request.inputs, (), self._threads))
        load_seconds = time.perf_counter() - began
        try:
            results = session.run(inputs)
            resident = max(0, resident_bytes() - before)
            seconds = []
            deadline = time.perf_counter() + request.budget_s
            for _ in range(request.repeats):
                start = time.perf_counter()
                results = session.run(inputs)
                end = time.perf_counter()
                seconds.append(end - start)
                if end >= deadline:
                    break
        finally:
            session.close()
        dtypes = {spec.name: spec.dtype for spec in session.outputs}
        stats = tuple(tensor_stats(name, array, dtypes.get(name)) for name, array in results.items())
        self._keep({**self._held, **inputs, **results}, request.keep)
        return Measured(request.id, tuple(seconds), load_seconds, resident, stats)

    def _keep(self, known: Arrays, names: tuple[str, ...]) -> None:
        self._held = {name: known[name] for name in names if name in known}


def tensor_stats(name: str, array: Array, dtype: str | None) -> TensorStats:
    """What each codec makes of one tensor: encoded bytes, encode seconds, decode seconds."""
    kind = dtype or array.dtype.name
    found: dict[str, tuple[int, float, float]] = {}
    for codec in CODECS.values():
        try:
            start = time.perf_counter()
            frame = codec.encode(array)
            encoded = time.perf_counter()
            codec.decode(frame, kind, array.shape)
            found[codec.name] = (len(frame), encoded - start, time.perf_counter() - encoded)
        except CodecError:
            # A codec that cannot take this tensor is simply not on offer for it.
            continue
    return TensorStats(name, kind, array.shape, array.nbytes, found)
