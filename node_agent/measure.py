"""Times blocks of a model on this device, on the activations that the blocks before really produced."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

from node_agent.codecs import CODECS, Array, Codec, byte_view
from node_agent.dtypes import STRING, wire_name
from node_agent.engines import cuts, engine_named, options_of, unsupported
from node_agent.engines.base import Arrays, Partition
from node_agent.errors import CodecError
from node_agent.frames import WORTH_ENCODING
from node_agent.loader import Loader
from node_agent.machine import cores, quota_clock, resident_bytes, trim, work_clock
from node_agent.messages import Measure, Measured, TensorStats
from node_agent.moving import measure_moving
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
        available: Cores that this process may use, a fraction under a quota; as many as threads by default.
    """

    def __init__(
        self, store: FileStore, loader: Loader, threads: int, available: float | None = None
    ) -> None:
        self._store = store
        self._loader = loader
        self._threads = threads
        self._cores = threads if available is None else available
        self._moving: tuple[float, float] | None = None
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
        # A quota may be another by now, and runs are judged by what it is (`AgentStatus.cores`).
        share = cores() if quota_clock(self._cores, self._threads) is not None else self._cores
        clock = work_clock(share, self._threads)
        before, began = resident_bytes(), time.perf_counter()
        name = self._loader.engine_name(request.engine)
        graph = self._store.require(request.graph)
        options = options_of(name, request.options)
        partition = Partition(graph, request.inputs, (), self._threads, options)
        session = engine_named(name).load(partition)
        load_seconds = time.perf_counter() - began
        try:
            results = session.run(inputs)
            resident = max(0, resident_bytes() - before)
            seconds, walls = [], []
            deadline = time.perf_counter() + request.budget_s
            for _ in range(request.repeats):
                begun, start = time.perf_counter(), clock()
                results = session.run(inputs)
                seconds.append(clock() - start)
                walls.append(time.perf_counter() - begun)
                if time.perf_counter() >= deadline:
                    break
        finally:
            session.close()
        # Inputs that the session did not hold are the model's own: they travel too, from the client.
        fresh = {name: array for name, array in inputs.items() if name not in self._held}
        dtypes = {spec.name: spec.dtype for spec in (*request.inputs, *session.outputs)}
        stats = tuple(
            tensor_stats(name, array, dtypes.get(name), clock=work_clock(share, 1))
            for name, array in ({**fresh, **results} if request.codecs else {}).items()
        )
        self._keep({**self._held, **inputs, **results}, request.keep)
        # Work that an accelerator does takes no processor time.
        lasted = tuple(max(each, min(walls)) for each in seconds)
        if self._moving is None:
            self._moving = measure_moving()
        item_s, byte_s = (each / share for each in self._moving)
        ran_on = getattr(session, "engine", "")
        refused = unsupported(name, ran_on, partition)
        apart = bool(refused) and cuts(name, options)
        return Measured(
            request.id, lasted, load_seconds, resident, stats, item_s, byte_s, ran_on, refused, apart
        )

    def _keep(self, known: Arrays, names: tuple[str, ...]) -> None:
        self._held = {name: known[name] for name in names if name in known}


def tensor_stats(
    name: str,
    array: Array,
    dtype: str | None = None,
    budget_s: float = CODEC_BUDGET_S,
    clock: Callable[[], float] = time.perf_counter,
) -> TensorStats:
    """What each codec makes of one tensor: encoded bytes, encode seconds, decode seconds.

    Args:
        name: The tensor's name.
        array: Its value.
        dtype: Wire type of an array that holds raw bits; its own type by default.
        budget_s: Seconds of that clock after which no further codec is tried.
        clock: What the seconds are taken from.
    """
    kind = dtype or wire_name(array)
    found: dict[str, tuple[int, float, float]] = {}
    if kind == STRING:
        nbytes = len(byte_view(array))
        return TensorStats(name, kind, array.shape, nbytes, dict.fromkeys(CODECS, (nbytes, 0.0, 0.0)))
    if array.nbytes < WORTH_ENCODING:
        # It travels raw whatever the codec.
        found = dict.fromkeys(CODECS, (array.nbytes, 0.0, 0.0))
        return TensorStats(name, kind, array.shape, array.nbytes, found)
    end = clock() + budget_s
    for codec in CODECS.values():
        if clock() >= end:
            break
        try:
            found[codec.name] = _time_codec(codec, array, kind, budget_s / len(CODECS), clock)
        except CodecError:
            # A codec that cannot take this tensor is simply not on offer for it.
            continue
    return TensorStats(name, kind, array.shape, array.nbytes, found)


def _time_codec(
    codec: Codec, array: Array, kind: str, budget_s: float, clock: Callable[[], float]
) -> tuple[int, float, float]:
    """Bytes, and median seconds to encode and to decode."""
    encode: list[float] = []
    decode: list[float] = []
    while True:
        start = clock()
        frame = codec.encode(array)
        encoded = clock()
        codec.decode(frame, kind, array.shape)
        encode.append(encoded - start)
        decode.append(clock() - encoded)
        if len(encode) == CODEC_REPEATS or sum(encode) + sum(decode) >= budget_s:
            return len(frame), median(encode), median(decode)
