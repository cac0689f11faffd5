"""Graphs that are loaded where little memory is free: the same results, by way of a file, and only where it helps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks import loading
from node_agent import machine
from node_agent.engines import engine_named, onnxruntime_frugal
from node_agent.engines.base import Partition
from node_agent.engines.onnxruntime_cpu import NAME
from node_agent.errors import LoadFailedError
from node_agent.messages import TensorSpec

SHAPE = (1, 32, 6, 6)


def network(folder: Path, ops: Sequence[str] = ("Conv", "Conv"), channels: int = 32) -> Partition:
    """Convolutions, each with a normalisation behind it that is fused into it; `MatMul` has weights of the same size."""
    random, nodes, weights, last = np.random.default_rng(3), [], [], "x"
    for number, op in enumerate(ops):
        made = f"y{number}"
        if op == "Conv":
            shape = (channels, channels, 3, 3)
            nodes.append(helper.make_node(op, [last, f"w{number}"], [f"c{number}"], pads=[1, 1, 1, 1]))
            names = [f"{kind}{number}" for kind in ("scale", "bias", "mean", "variance")]
            nodes.append(helper.make_node("BatchNormalization", [f"c{number}", *names], [made]))
            weights += [
                numpy_helper.from_array(random.random(channels, np.float32) + 0.5, name) for name in names
            ]
        else:
            shape = (6, 6)
            nodes.append(helper.make_node(op, [last, f"w{number}"], [made]))
        weight = random.standard_normal(shape).astype(np.float32) / channels
        weights.append(numpy_helper.from_array(weight, f"w{number}"))
        last = made
    specs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, channels, 6, 6)) for name in ("x", last)
    ]
    graph = helper.make_graph(nodes, "g", specs[:1], specs[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = folder / "g.onnx"
    onnx.save(model, path, save_as_external_data=True, size_threshold=0, location="g.data")
    ends = [TensorSpec(name, "float32", (1, channels, 6, 6)) for name in ("x", last)]
    return Partition(path, (ends[0],), (ends[1],))


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that graphs were optimised into."""
    found: list[Path] = []
    real = onnxruntime_frugal.write_optimised

    def write(runtime: object, graph: Path, options: object, into: Path) -> None:
        found.append(into)
        real(runtime, graph, options, into)

    monkeypatch.setattr(onnxruntime_frugal, "write_optimised", write)
    return found


def outputs(partition: Partition) -> np.ndarray:
    session = engine_named(NAME).load(partition)
    try:
        inputs = {"x": np.random.default_rng(5).standard_normal(partition.inputs[0].shape).astype(np.float32)}
        (found,) = session.run(inputs).values()
        return np.array(found)
    finally:
        session.close()


def test_where_little_is_free_the_graph_is_fused_into_a_file_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: list[Path]
) -> None:
    partition = network(tmp_path)
    weights = 2 * 32 * 32 * 9 * 4
    monkeypatch.setattr(machine, "available_bytes", lambda: 4 * weights)
    expected = outputs(partition)
    monkeypatch.setattr(machine, "available_bytes", lambda: None)
    np.testing.assert_array_equal(outputs(partition), expected)
    assert not written
    monkeypatch.setattr(machine, "available_bytes", lambda: 2 * weights)
    np.testing.assert_allclose(outputs(partition), expected, rtol=1e-5, atol=1e-6)
    assert [path.name for path in written] == ["fused.onnx"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.data", "g.onnx"]


def test_only_convolutions_are_worth_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: list[Path]
) -> None:
    monkeypatch.setattr(machine, "available_bytes", lambda: 0)
    outputs(network(tmp_path, ["MatMul", "MatMul"]))
    basic = network(tmp_path)
    outputs(Partition(basic.graph, basic.inputs, basic.outputs, options={"optimization": "extended"}))
    monkeypatch.setattr(onnxruntime_frugal, "MOST_GRAPH_BYTES", 10)
    outputs(basic)
    assert not written


def test_where_there_is_no_room_for_the_file_it_is_loaded_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    partition = network(tmp_path)
    expected = outputs(partition)

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(onnxruntime_frugal, "write_optimised", full)
    monkeypatch.setattr(machine, "available_bytes", lambda: 0)
    np.testing.assert_array_equal(outputs(partition), expected)
    assert "no space left" in caplog.text
    caplog.clear()
    monkeypatch.setattr(onnxruntime_frugal.tempfile, "TemporaryDirectory", full)
    np.testing.assert_array_equal(outputs(partition), expected)
    assert "no space left" in caplog.text


def test_whoever_loads_a_graph_that_cannot_be_read_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partition = network(tmp_path)
    monkeypatch.setattr(machine, "available_bytes", lambda: 0)
    model = onnx.load(partition.graph, load_external_data=False)
    (entry,) = [each for each in model.graph.initializer[0].external_data if each.key == "length"]
    entry.value = "abc"
    for content in (model.SerializeToString(), b"no graph"):
        partition.graph.write_bytes(content)
        with pytest.raises(LoadFailedError):
            engine_named(NAME).load(partition)


def test_it_takes_less_memory(tmp_path: Path) -> None:
    partition = network(tmp_path, ["Conv"] * 12, channels=512)
    weights = 12 * 512 * 512 * 9 * 4

    at_once, frugal = (loading.taken(partition.graph, free)[0] / weights for free in (loading.PLENTY, 0))
    assert frugal < 1.5, "one copy, and what else there is"
    if engine_named(NAME).channel_block():  # type: ignore[attr-defined]
        assert frugal < 0.75 * at_once
