"""Cutting a partition where an engine lacks ops: the order of ops, the files, and what they compute together."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import models
from node_agent.engines import segments
from node_agent.engines.base import Partition
from node_agent.engines.onnxruntime_cpu import OnnxRuntimeCpu
from node_agent.engines.segments import MOST, Answer, Job, cut, cut_aside, order
from node_agent.errors import EngineMissingError, LoadFailedError
from node_agent.messages import TensorSpec


def fewest(reads, writes, refused) -> int:
    """Of all topological orders, by trying the sets of ops that can have run."""
    maker = {name: op for op, names in enumerate(writes) for name in names}
    needs = [{maker[name] for name in names if name in maker} for names in reads]
    count = len(reads)

    @cache
    def rest(done: frozenset[int], kind: bool | None) -> int:
        if len(done) == count:
            return 0
        return min(
            rest(done | {op}, op in refused) + (kind is not (op in refused))
            for op in range(count)
            if op not in done and needs[op] <= done
        )

    return rest(frozenset(), None)


@given(
    st.integers(1, 8).flatmap(
        lambda count: st.tuples(
            st.lists(st.sets(st.integers(0, 7), max_size=3), min_size=count, max_size=count),
            st.sets(st.integers(0, count - 1)),
        )
    )
)
def test_no_order_alternates_less(drawn) -> None:
    after, refused = drawn
    writes = [(f"t{op}",) for op in range(len(after))]
    reads = [{f"t{other}" for other in others if other < op} for op, others in enumerate(after)]
    runs = order(reads, writes, refused)
    ops = [op for _, each in runs for op in each]
    assert sorted(ops) == list(range(len(after)))
    place = {op: index for index, op in enumerate(ops)}
    assert all(place[int(name[1:])] < place[op] for op in range(len(after)) for name in reads[op])
    assert all((op not in refused) == supported for supported, each in runs for op in each)
    assert all(one[0] != other[0] for one, other in itertools.pairwise(runs))
    assert len(runs) == fewest(reads, writes, frozenset(refused))


def run_in_parts(answer: Answer, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    held = dict(feeds)
    for segment in answer.segments:
        session = OnnxRuntimeCpu().load(Partition(Path(segment.graph), segment.inputs, segment.outputs))
        made = session.run({spec.name: held[spec.name] for spec in segment.inputs})
        session.close()
        for spec in segment.outputs:
            assert made[spec.name].dtype == np.dtype(spec.dtype)
            assert len(made[spec.name].shape) == len(spec.shape)
        held |= made
    return {name: held[name] for name in answer.outputs}


@pytest.mark.parametrize("name", [name for name in models.NAMES if name.startswith("tiny_")])
@pytest.mark.parametrize("every", [2, 3])
def test_parts_compute_what_the_whole_does(name, every, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(segments, "MOST", 99)
    path = models.save(name, tmp_path / "model.onnx")
    graph = onnx.load(path).graph
    refused = tuple(range(1, len(graph.node), every)) or (0,)
    if len(graph.node) == 1:
        pytest.skip("one op")
    (tmp_path / "parts").mkdir()
    answer = cut(Job(str(path), refused, (), str(tmp_path / "parts")))
    assert len(answer.segments) > 1
    assert sorted(op for segment in answer.segments for op in segment.ops) == list(range(len(graph.node)))
    feeds = models.example_inputs(name)
    whole = OnnxRuntimeCpu().load(
        Partition(path, [TensorSpec(key, v.dtype.name, v.shape) for key, v in feeds.items()], ())
    )
    for key, value in whole.run(feeds).items():
        # Inside one session ONNX Runtime's CPU computes neighbouring float16 ops in float32.
        near = 4e-3 if value.dtype == np.float16 else 1e-5
        np.testing.assert_allclose(run_in_parts(answer, feeds)[key], value, rtol=near, atol=near)
    whole.close()


def test_weights_in_files_of_their_own_are_found(partition, tmp_path) -> None:
    model = onnx.load(partition.graph)
    folder = tmp_path / "store"
    folder.mkdir()
    onnx.save(
        model, folder / "graph.onnx", save_as_external_data=True, location="weights.bin", size_threshold=64
    )
    (tmp_path / "parts").mkdir()
    answer, outputs = cut_aside(replace(partition, graph=folder / "graph.onnx"), (2,), tmp_path / "parts")
    assert [(segment.supported, segment.types) for segment in answer] == [
        (True, ("MatMul", "Add")),
        (False, ("Relu",)),
        (True, ("ReduceSum",)),
    ]
    assert outputs == ("y", "s")
    assert [spec.shape for spec in answer[1].inputs] == [("batch", 4)]
    x = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
    whole = OnnxRuntimeCpu().load(partition)
    for name, value in whole.run({"x": x}).items():
        np.testing.assert_allclose(run_in_parts(Answer(answer, outputs), {"x": x})[name], value, rtol=1e-6)
    whole.close()


def test_what_bodies_read_comes_along(tmp_path) -> None:
    value = helper.make_tensor_value_info
    outer = "outer"
    body = helper.make_graph(
        [helper.make_node("Mul", [outer, "w"], ["b"])], "then", [], [value("b", TensorProto.FLOAT, [2])]
    )
    other = helper.make_graph(
        [helper.make_node("Neg", [outer], ["c"])], "else", [], [value("c", TensorProto.FLOAT, [2])]
    )
    nodes = [
        helper.make_node("Abs", ["x"], [outer]),
        helper.make_node("If", ["flag"], ["y"], then_branch=body, else_branch=other),
        helper.make_node("Exp", ["y"], ["z"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, [2]), value("flag", TensorProto.BOOL, [])],
        [value("z", TensorProto.FLOAT, [2])],
        [numpy_helper.from_array(np.array([2.0, 3.0], np.float32), "w")],
    )
    path = tmp_path / "if.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    (tmp_path / "parts").mkdir()
    answer = cut(Job(str(path), (1,), (), str(tmp_path / "parts")))
    assert [spec.name for spec in answer.segments[1].inputs] == ["flag", outer]
    x = np.array([-1.0, 2.0], np.float32)
    for flag, wanted in ((True, np.abs(x) * [2, 3]), (False, -np.abs(x))):
        made = run_in_parts(answer, {"x": x, "flag": np.array(flag)})
        np.testing.assert_allclose(made["z"], np.exp(wanted), rtol=1e-6)


def test_what_cannot_be_cut_is_one_clear_line(partition, tmp_path, monkeypatch) -> None:
    (tmp_path / "parts").mkdir()
    job = Job(str(partition.graph), (0, 1, 2, 3), (), str(tmp_path / "parts"))
    with pytest.raises(LoadFailedError, match="nothing to cut"):
        cut(job)
    with pytest.raises(LoadFailedError, match="nothing to cut"):
        cut_aside(partition, (0, 1, 2, 3), tmp_path / "parts")
    with pytest.raises(LoadFailedError, match="made by no op"):
        cut(replace(job, refused=(2,), outputs=("x",)))
    monkeypatch.setattr(segments, "MOST", 2)
    with pytest.raises(LoadFailedError, match="into 3 parts"):
        cut(replace(job, refused=(2,)))
    assert MOST > 2
    with pytest.raises(LoadFailedError, match="longer than"):
        cut_aside(partition, (2,), tmp_path / "parts", deadline_s=0.001)
    with pytest.raises(LoadFailedError, match="ended with status"):
        cut_aside(replace(partition, graph=tmp_path / "gone.onnx"), (2,), tmp_path / "parts")
    monkeypatch.setattr(segments, "find_spec", lambda name: None)
    with pytest.raises(EngineMissingError, match="onnx package") as caught:
        cut_aside(partition, (2,), tmp_path / "parts")
    assert "defer-edge[tensorrt]" in caught.value.hint
