"""The TensorRT engine in the agent's run thread: copies of one item beside the computation of another."""

from __future__ import annotations

import time
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest

from node_agent.engines.choice import ChosenSession
from node_agent.engines.onnxruntime_cpu import OnnxRuntimeCpu
from node_agent.engines.tensorrt_build import build
from node_agent.engines.tensorrt_native import TensorRt
from node_agent.messages import NO_DEADLINE, FileRef, HopSpec, Item, PeerRef
from node_agent.routing import Route
from node_agent.work import LoadedRoute, Work
from node_agent.worker import Worker

DEADLINE_S = 20.0


@pytest.fixture
def driver(fake_tensorrt, fake_cuda):
    return fake_cuda()


def build_here(job, *, deadline_s: float, progress) -> None:
    import tensorrt

    build(job, tensorrt, lambda line: None)


def run(loaded: LoadedRoute, feeds: list[np.ndarray]) -> list[Work]:
    """Puts every item before the thread starts, so that what waits when is known."""
    done: SimpleQueue[Work] = SimpleQueue()
    worker = Worker("box", done=done.put, drop=done.put)
    origin: Any = None
    for number, x in enumerate(feeds):
        work = Work(loaded, Item(1, number, 0, NO_DEADLINE, ()), [], origin, 0, time.monotonic_ns())
        work.inputs = {"x": x}
        worker.put(work)
    worker.start()
    try:
        return [done.get(timeout=DEADLINE_S) for _ in feeds]
    finally:
        worker.stop()
        assert worker.join(DEADLINE_S)


def route(session, partition) -> LoadedRoute:
    graph = FileRef("ab" * 32, 1, Path(partition.graph).suffix)
    hop = HopSpec(
        0, PeerRef("a"), PeerRef("b"), graph=graph, inputs=partition.inputs, outputs=partition.outputs
    )
    return LoadedRoute(Route(1, "m", hop), session)


def test_the_next_item_is_on_its_way_to_the_device_before_anybody_waits_for_the_first(driver, partition):
    session = ChosenSession(TensorRt(build=build_here).load(partition), "tensorrt")
    feeds = [np.random.default_rng(seed).standard_normal((2, 6)).astype(np.float32) for seed in range(6)]
    driver.log.clear()
    try:
        done = run(route(session, partition), feeds)
    finally:
        session.close()
    order = [entry[0] for entry in driver.log if entry[0] in ("to device", "synchronize")]
    # Two are handed over, then one for each that is taken back, and the rest is taken back.
    assert order == ["to device"] * 2 + ["synchronize", "to device"] * 4 + ["synchronize"] * 2
    reference = OnnxRuntimeCpu().load(partition)
    for number, (work, x) in enumerate(zip(done, feeds, strict=True)):
        assert work.item.request == number
        assert work.outputs is not None
        np.testing.assert_allclose(work.outputs["y"], reference.run({"x": x})["y"], rtol=1e-6)
    reference.close()
    assert driver.left == (0, 0, 0)


def test_a_request_outside_the_profile_fails_alone_and_in_its_place(driver, partition):
    session = ChosenSession(TensorRt(build=build_here).load(partition), "tensorrt")
    try:
        rows = (2, 99, 3)
        done = run(route(session, partition), [np.ones((count, 6), np.float32) for count in rows])
    finally:
        session.close()
    assert [work.item.request for work in done] == [0, 1, 2]
    assert [work.failure is None for work in done] == [True, False, True]
    assert "99" in done[1].failure.message
    assert [len(work.outputs["y"]) for work in (done[0], done[2])] == [2, 3]


@pytest.mark.integration
def test_the_benchmark_measures_what_overlapping_brings(driver, partition):
    """On a stand-in the figure means nothing; that it comes, and that nothing is left, is what counts."""
    from benchmarks.engines import _overlap

    x = np.ones((2, 6), np.float32)
    assert (_overlap("tensorrt", partition.graph, {"x": x}, 5) or 0) > 0
    assert _overlap("onnxruntime-cpu", partition.graph, {"x": x}, 5) is None
    assert driver.left == (0, 0, 0)
