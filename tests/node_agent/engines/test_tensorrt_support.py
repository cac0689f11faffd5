"""What TensorRT's parser says of ops, asked of the stand-in: by block, in a child process, in a measured profile."""

from __future__ import annotations

import pytest

from node_agent.engines import unsupported
from node_agent.engines.tensorrt_native import TensorRt
from node_agent.engines.tensorrt_support import Support, ask, ask_aside
from node_agent.loader import Loader
from node_agent.measure import BlockTimer
from node_agent.messages import Measure, TensorSpec
from node_agent.store import FileStore
from tests.node_agent.harness import ref


@pytest.fixture
def driver(fake_tensorrt, fake_cuda):
    return fake_cuda()


@pytest.fixture
def engine(driver):
    return TensorRt()


def test_ops_that_tensorrt_lacks_are_reported_by_block(partition, fake_tensorrt, monkeypatch):
    monkeypatch.setenv("FAKE_TENSORRT_LACKS", "Relu")
    import tensorrt

    support = ask(tensorrt, partition.graph)
    assert (support.supported, support.refused) == (False, (2,))
    assert support.reason == "TensorRT 11.4.0.106 lacks Relu 'node2': no importer registered for op: Relu"
    assert support.blocks([0, 1, 2, 3, 4]) == (True, True, False, True)
    assert support.blocks([0, 2, 4]) == (True, False)


def test_all_supported(partition, fake_tensorrt):
    import tensorrt

    assert ask(tensorrt, partition.graph) == Support(supported=True)


def test_the_parser_is_asked_in_a_process_of_its_own(partition, engine, monkeypatch):
    assert engine.unsupported(partition) == ""
    monkeypatch.setenv("FAKE_TENSORRT_LACKS", "Relu")
    assert "lacks Relu" in engine.unsupported(partition)
    assert ask_aside(partition.graph).refused == (2,)


def test_a_parser_that_crashes_or_hangs_takes_nothing(partition, fake_tensorrt):
    fake_tensorrt("crash")
    assert ask_aside(partition.graph) == Support(False, reason="TensorRT's parser ended by signal 11")
    fake_tensorrt("hang")
    assert ask_aside(partition.graph, deadline_s=0.2).reason.endswith("took longer than 0.2 s")


def test_only_what_does_not_run_on_tensorrt_is_asked_about(partition, driver, monkeypatch):
    monkeypatch.setenv("FAKE_TENSORRT_LACKS", "Relu")
    assert "lacks Relu" in unsupported("tensorrt", "onnxruntime-cpu", partition)
    assert "lacks Relu" in unsupported("auto", "onnxruntime-cuda", partition)
    assert unsupported("tensorrt", "tensorrt", partition) == ""
    assert unsupported("onnxruntime-cuda", "onnxruntime-cpu", partition) == ""


def test_without_tensorrt_nothing_is_said(partition, fake_cuda):
    fake_cuda(devices=0)
    assert TensorRt().unsupported(partition) == ""


def test_a_measured_block_says_what_tensorrt_lacks(partition, driver, monkeypatch, tmp_path):
    store = FileStore.open(tmp_path / "store")
    data = partition.graph.read_bytes()
    graph = ref(data)
    store.write(graph, 0, data)
    timer = BlockTimer(store, Loader(store, "tensorrt", 1), 1)
    inputs = (TensorSpec("x", "float32", (2, 6)),)
    monkeypatch.setenv("FAKE_TENSORRT_LACKS", "Relu")
    monkeypatch.setenv("FAKE_TENSORRT", "parse-error")
    got = timer.measure(Measure(1, "s", graph, (), inputs, (), repeats=1))
    assert got.engine == "onnxruntime-cpu"
    assert got.unsupported == "TensorRT 11.4.0.106 lacks Relu 'node2': no importer registered for op: Relu"
    assert got.apart
    whole = timer.measure(Measure(2, "s", graph, (), inputs, (), repeats=1, options={"parts": "no"}))
    assert (whole.engine, whole.apart) == ("onnxruntime-cpu", False)
