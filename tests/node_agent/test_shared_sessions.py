"""A partition that two plans share and that is at work for one of them is not tried for the other."""

from __future__ import annotations

import sys
from collections import deque
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from node_agent import engines, loader
from node_agent import messages as m
from node_agent.batching import Batching
from node_agent.engines.onnxruntime_cpu import OnnxRuntimeCpu
from node_agent.store import FileStore
from tests.node_agent.harness import identity, ref, spec

PROOF = Batching(((1, 100), (2, 110)))


class Overlapping:
    """The reference, with the two halves of a run."""

    slots = 2

    def __init__(self, inner) -> None:
        self._inner, self.outputs, self._held = inner, inner.outputs, deque()

    def run(self, inputs):
        return self._inner.run(inputs)

    def submit(self, inputs) -> None:
        self._held.append(self._inner.run(inputs))

    def collect(self):
        return self._held.popleft()

    def close(self) -> None:
        self._inner.close()


class Engine(OnnxRuntimeCpu):
    def load(self, partition):
        return Overlapping(super().load(partition))


@pytest.fixture
def load(tmp_path: Path, monkeypatch):
    """Loads an epoch of one hop on an engine; what was proved when."""
    module = ModuleType("overlapping_engine")
    module.Engine = Engine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "overlapping_engine", module)
    known = {"overlapping": "overlapping_engine:Engine", **engines._KNOWN}
    monkeypatch.setattr(engines, "_KNOWN", known)
    proved: list[tuple[int, ...]] = []

    def prove(session, hop):
        proved.append(hop.batch)
        return PROOF, "it pays"

    monkeypatch.setattr(loader, "prove", prove)
    store = FileStore.open(tmp_path / "store")
    data = identity()
    graph = ref(data)
    store.write(graph, 0, data)
    held: dict[str, loader.Loader] = {}

    def start(engine: str, epoch: int, batch: tuple[int, ...], delay_s: float = 0.0):
        used = held.setdefault(engine, loader.Loader(store, engine, 1))
        hop = m.HopSpec(
            0,
            m.PeerRef("p"),
            m.PeerRef("n"),
            graph=graph,
            inputs=(spec("x", 4),),
            outputs=(spec("y", 4),),
            warm_up=(spec("x", 4),),
            batch=batch,
            batch_delay_s=delay_s,
        )
        used.load(m.Load(1, epoch, "model", (hop,)), lambda *_: None)
        return used

    yield start, proved
    for used in held.values():
        for epoch in list(used._epochs):
            used.release(epoch)


def test_what_is_known_is_used_and_what_is_not_is_left_alone(load):
    start, proved = load
    used = start("overlapping", 1, (2,))
    start("overlapping", 2, (2,), delay_s=0.5)
    start("overlapping", 3, (4,))
    assert proved == [(2,)]
    assert used.batching(1)[0] == (PROOF, "it pays")
    batching, _ = used.batching(2)[0]
    assert batching == Batching(PROOF.took, 500_000_000)
    batching, note = used.batching(3)[0]
    assert batching is None
    assert "at work for another plan" in note
    np.testing.assert_array_equal(used.sessions(3)[0].run({"x": np.ones(4, np.float32)})["y"], np.ones(4))


def test_a_partition_that_is_free_again_is_tried(load):
    start, proved = load
    used = start("overlapping", 1, (2,))
    used.release(1)
    start("overlapping", 2, (4,))
    assert proved == [(2,), (4,)]


def test_runs_that_end_before_the_next_may_be_tried_any_time(load):
    start, proved = load
    start("onnxruntime-cpu", 1, (2,))
    start("onnxruntime-cpu", 2, (2,))
    assert proved == [(2,), (2,)]
