"""Times blocks of a model on this device, on the activations that the blocks before really produced."""

from __future__ import annotations

import time
from statistics import median

from node_agent.codecs import CODECS, Array, Codec
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

CODEC_BUDGET_S = 0.5
"""Seconds in which codecs are tried on one tensor; a slow device leaves out the last, which are the slowest."""

CODEC_REPEATS = 3
"""Times that a codec is tried where the time allows it: the first run also pays for fresh memory."""


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
        # Inputs that the session did not hold are the model's own: they travel too, from the client.
        fresh = {name: array for name, array in inputs.items() if name not in self._held}
        dtypes = {spec.name: spec.dtype for spec in (*request.inputs, *session.outputs)}
        stats = tuple(
            tensor_stats(name, array, dtypes.get(name)) for name, array in {**fresh, **results}.items()
        )
        self._keep({**self._held, **inputs, **results}, request.keep)
        return Measured(request.id, tuple(seconds), load_seconds, resident, stats)

    def _keep(self, known: Arrays, names: tuple[str, ...]) -> None:
        self._held = {name: known[name] for name in names if name in known}


def tensor_stats(
    name: str, array: Array, dtype: str | None = None, budget_s: float = CODEC_BUDGET_S
) -> TensorStats:
    """What each codec makes of one tensor: encoded bytes, encode seconds, decode seconds.

    Args:
        name: The tensor's name.
        array: Its value.
        dtype: Wire type of an array that holds raw bits; its own type by default.
        budget_s: Seconds after which no further codec is tried.
    """
    kind = dtype or array.dtype.name
    found: dict[str, tuple[int, float, float]] = {}
    end = time.perf_counter() + budget_s
    for codec in CODECS.values():
        if time.perf_counter() >= end:
            break
        try:
            found[codec.name] = _time_codec(codec, array, kind, budget_s / len(CODECS))
        except CodecError:
            # A codec that cannot take this tensor is simply not on offer for it.
            continue
    return TensorStats(name, kind, array.shape, array.nbytes, found)


def _time_codec(codec: Codec, array: Array, kind: str, budget_s: float) -> tuple[int, float, float]:
    """Bytes, and median seconds to encode and to decode."""
    encode: list[float] = []
    decode: list[float] = []
    while True:
        start = time.perf_counter()
        frame = codec.encode(array)
        encoded = time.perf_counter()
        codec.decode(frame, kind, array.shape)
        encode.append(encoded - start)
        decode.append(time.perf_counter() - encoded)
        if len(encode) == CODEC_REPEATS or sum(encode) + sum(decode) >= budget_s:
            return len(frame), median(encode), median(decode)
