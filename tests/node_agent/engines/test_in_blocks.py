"""Partitions that are handed tensors in blocks of channels: the same results, and nothing turned round for nothing."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from node_agent.content import SCRATCH
from node_agent.engines import engine_named
from node_agent.engines.base import NotInBlocks, Partition
from node_agent.engines.in_blocks import Turned, load
from node_agent.engines.onnx_file import OnnxFile
from node_agent.engines.onnxruntime_blocks import optimised
from node_agent.engines.onnxruntime_cpu import NAME, import_runtime
from node_agent.errors import LoadFailedError
from node_agent.layouts import to_blocks, to_plain
from node_agent.messages import TensorSpec
from tests.node_agent.engines.conftest import save

BLOCK = engine_named(NAME).channel_block()
native = pytest.mark.skipif(not BLOCK, reason="ONNX Runtime computes on plain tensors here")

SHAPE = ("batch", 32, 10, 10)
value = helper.make_tensor_value_info


def convolution(read: str, name: str, outputs: int = 32, inputs: int = 32, **more):
    """The node and its weight; `name` is what it makes."""
    random = np.random.default_rng(len(name) + outputs)
    weight = random.standard_normal((outputs, inputs, 3, 3)).astype(np.float32) / 10
    node = helper.make_node("Conv", [read, f"{name}.w"], [name], pads=[1, 1, 1, 1], **more)
    return node, numpy_helper.from_array(weight, f"{name}.w")


def partition(folder: Path, nodes, outputs=("y",), inputs=("x",), blocks=()) -> Partition:
    """A part of a network on tensors of `SHAPE`; weights stand among the nodes."""
    weights = [each for each in nodes if isinstance(each, onnx.TensorProto)]
    path = save(
        folder,
        [each for each in nodes if isinstance(each, onnx.NodeProto)],
        [value(name, TensorProto.FLOAT, SHAPE) for name in inputs],
        [value(name, TensorProto.FLOAT, SHAPE) for name in outputs],
        weights,
    )
    specs = [
        tuple(TensorSpec(name, "float32", SHAPE, blocks.get(name, 0)) for name in names)
        for names in (inputs, outputs)
    ]
    return Partition(path, *specs)


def residual(folder: Path, blocks) -> Partition:
    """A residual block behind a cut: what ONNX Runtime fuses only if the skipped tensor comes in blocks."""
    nodes = [
        *convolution("x", "a"),
        helper.make_node("Relu", ["a"], ["r"]),
        *convolution("r", "b"),
        helper.make_node("Add", ["b", "x"], ["s"]),
        helper.make_node("Relu", ["s"], ["y"]),
    ]
    return partition(folder, nodes, blocks=blocks)


def check(part: Partition) -> Turned | object:
    """The session, after a run that gives what the same partition gives in plain."""
    plain = replace(
        part,
        inputs=[TensorSpec(s.name, s.dtype, s.shape) for s in part.inputs],
        outputs=[TensorSpec(s.name, s.dtype, s.shape) for s in part.outputs],
    )
    random = np.random.default_rng(5)
    feeds = {spec.name: random.standard_normal((3, 32, 10, 10)).astype(np.float32) for spec in part.inputs}
    right = load(engine_named(NAME), NAME, plain)
    session = load(engine_named(NAME), NAME, part)
    given = {
        spec.name: to_blocks(feeds[spec.name], spec.channel_block) if spec.channel_block else feeds[spec.name]
        for spec in part.inputs
    }
    wanted, found = right.run(feeds), session.run(given)
    assert list(found) == [spec.name for spec in part.outputs]
    for spec in part.outputs:
        array = to_plain(found[spec.name], spec.channel_block) if spec.channel_block else found[spec.name]
        np.testing.assert_allclose(array, wanted[spec.name], rtol=1e-5, atol=1e-5)
    assert tuple(session.outputs) == tuple(part.outputs)
    assert not list(part.graph.parent.glob(f"{SCRATCH}*"))
    inner = session._inner
    right.close()
    session.close()
    return inner


def ops(part: Partition, outputs=("y",)) -> list[str]:
    """What ONNX Runtime runs of a partition that takes `x` in blocks."""
    runtime = import_runtime()
    options = runtime.SessionOptions
    with optimised(runtime, part.graph, options, {"x": 32}, dict.fromkeys(outputs, 32)) as graph:
        return [node.op_type for node in onnx.load(graph, load_external_data=False).graph.node]


@native
def test_nothing_is_turned_round_and_all_is_fused(tmp_path: Path) -> None:
    part = residual(tmp_path, {"x": BLOCK, "y": BLOCK})
    assert ops(part) == ["Conv", "Conv"]
    assert not isinstance(check(part), Turned)


@native
@pytest.mark.parametrize("blocks", [{"x"}, {"y"}])
def test_one_side_alone(tmp_path: Path, blocks) -> None:
    assert not isinstance(check(residual(tmp_path, dict.fromkeys(blocks, BLOCK))), Turned)


@pytest.mark.parametrize("block", [2, 4, 8, 16, 32])
def test_blocks_of_another_size_are_turned(tmp_path: Path, block: int) -> None:
    inner = check(residual(tmp_path, {"x": block, "y": block}))
    assert isinstance(inner, Turned) is (block != BLOCK)


def test_a_partition_that_is_turned_says_why(tmp_path: Path) -> None:
    part = residual(tmp_path, {"x": 2})
    (note,) = load(engine_named(NAME), NAME, part).notes
    assert f"blocks of {BLOCK}, not of 2" in note
    if BLOCK:
        part = replace(residual(tmp_path, {"x": BLOCK}), options={"layout": "plain"})
        (note,) = load(engine_named(NAME), NAME, part).notes
        assert "layout=plain" in note


@pytest.mark.parametrize(("shape", "block"), [(("n", "c"), 16), ((), 16), (SHAPE, 3), (SHAPE, -16)])
def test_a_tensor_that_cannot_be_in_blocks(tmp_path: Path, shape, block: int) -> None:
    part = residual(tmp_path, {})
    with pytest.raises(LoadFailedError, match="cannot lie in blocks"):
        load(engine_named(NAME), NAME, replace(part, inputs=(TensorSpec("x", "float32", shape, block),)))


@native
def test_a_graph_that_is_too_large_to_rewire(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("node_agent.engines.onnxruntime_blocks.MOST_GRAPH_BYTES", 100)
    assert isinstance(check(residual(tmp_path, {"x": BLOCK})), Turned)


def test_weights_that_lie_beside_the_graph_are_counted(tmp_path: Path) -> None:
    """Where they are large, a session that is made only to be freed again would hold the agent up."""
    weights = {name: np.zeros(size, np.float32) for name, size in (("a", 3000), ("b", 70000), ("c", 5))}
    nodes = [helper.make_node("Add", ["x", name], [f"y{name}"]) for name in weights]
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ["n"])],
        [value("ya", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    path = tmp_path / "g.onnx"
    onnx.save(
        helper.make_model(graph), path, save_as_external_data=True, size_threshold=1024, location="g.data"
    )
    assert sum(OnnxFile.read(path).weights_beside().values()) == 4 * 73000
    onnx.save(helper.make_model(graph), path)
    assert sum(OnnxFile.read(path).weights_beside().values()) == 0


@native
def test_large_weights_have_tensors_turned(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(OnnxFile, "weights_beside", lambda _: {"w": 200 << 20})
    with (
        pytest.raises(NotInBlocks, match="128 MiB of weights"),
        optimised(
            import_runtime(),
            residual(tmp_path, {"x": BLOCK}).graph,
            import_runtime().SessionOptions,
            {"x": 32},
            {},
        ),
    ):
        pass


@native
def test_a_pool_of_the_networks_own_at_an_input(tmp_path: Path) -> None:
    pool = helper.make_node("AveragePool", ["x"], ["p"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    part = partition(tmp_path, [pool, *convolution("p", "y")], blocks={"x": BLOCK, "y": BLOCK})
    assert ops(part) == ["AveragePool", "Conv"]
    check(part)


def test_a_file_system_that_lets_nothing_go(tmp_path: Path, monkeypatch, caplog) -> None:
    def busy(*_: object, **__: object) -> None:
        raise OSError("directory not empty")

    with monkeypatch.context() as patched:
        patched.setattr("os.rmdir", busy)
        session = load(engine_named(NAME), NAME, residual(tmp_path, {"x": BLOCK or 16}))
    assert bool(session.notes) is not bool(BLOCK)
    for left in tmp_path.glob(f"{SCRATCH}*"):
        left.rmdir()


def test_an_engine_that_knows_plain_tensors_only(tmp_path: Path) -> None:
    class Plain:
        def load(self, part: Partition):
            assert not any(spec.channel_block for spec in (*part.inputs, *part.outputs))
            return engine_named(NAME).load(part)

    part = residual(tmp_path, {"x": 16, "y": 8})
    x = np.random.default_rng(1).standard_normal((2, 32, 10, 10)).astype(np.float32)
    session = load(Plain(), "plain", part)
    (right,) = engine_named(NAME).load(residual(tmp_path, {})).run({"x": x}).values()
    np.testing.assert_allclose(to_plain(session.run({"x": to_blocks(x, 16)})["y"], 8), right, atol=1e-5)
    assert (session.engine, [spec.channel_block for spec in session.outputs]) == ("plain", [8])


@native
def test_an_output_that_is_also_read_plain(tmp_path: Path) -> None:
    shape = numpy_helper.from_array(np.array([0, 10, 32, 10]), "shape")
    nodes = [
        *convolution("x", "a"),
        helper.make_node("Reshape", ["a", "shape"], ["t"]),
        shape,
        helper.make_node("Transpose", ["t"], ["y"], perm=[0, 2, 1, 3]),
    ]
    part = partition(tmp_path, nodes, ("a", "y"), blocks={"x": BLOCK, "a": BLOCK, "y": BLOCK})
    assert ops(part, ("a", "y")) == ["Conv", "ReorderOutput", "Reshape", "Transpose", "ReorderInput"]
    assert not isinstance(check(part), Turned)


@native
def test_an_input_that_is_also_read_plain(tmp_path: Path) -> None:
    shape = numpy_helper.from_array(np.array([0, 32, 10, 10]), "shape")
    nodes = [
        *convolution("x", "a"),
        helper.make_node("Reshape", ["x", "shape"], ["t"]),
        shape,
        helper.make_node("Neg", ["t"], ["y"]),
    ]
    check(partition(tmp_path, nodes, ("a", "y"), blocks={"x": BLOCK, "a": BLOCK}))


@native
def test_an_output_that_is_an_input_in_blocks(tmp_path: Path) -> None:
    """What only passes is no partition's output, but a partition may make the like of it."""
    nodes = [helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[1, 1]), *convolution("x", "a")]
    check(partition(tmp_path, nodes, ("a", "y"), blocks={"x": BLOCK, "a": BLOCK, "y": BLOCK}))


def test_two_inputs_of_which_one_is_in_blocks(tmp_path: Path) -> None:
    nodes = [*convolution("x", "a"), helper.make_node("Add", ["a", "z"], ["y"])]
    check(partition(tmp_path, nodes, inputs=("x", "z"), blocks={"x": 16, "y": 16}))


@pytest.mark.parametrize("kind", ["Neg", "Softmax", "Relu", "Identity", "GlobalAveragePool"])
def test_a_partition_without_convolutions(tmp_path: Path, kind: str) -> None:
    nodes = [helper.make_node(kind, ["x"], ["y"])]
    check(partition(tmp_path, nodes, blocks={"x": BLOCK or 16, "y": BLOCK or 16}))


def test_a_branch_may_read_any_value(tmp_path: Path) -> None:
    made = value("out", TensorProto.FLOAT, SHAPE)
    bodies = [
        helper.make_graph([helper.make_node(kind, ["x"], ["out"])], kind, [], [made])
        for kind in ("Neg", "Abs")
    ]
    nodes = [
        *convolution("x", "a"),
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Greater", ["most", "zero"], ["so"]),
        numpy_helper.from_array(np.array(0, np.float32), "zero"),
        helper.make_node("If", ["so"], ["c"], then_branch=bodies[0], else_branch=bodies[1]),
        helper.make_node("Add", ["a", "c"], ["y"]),
    ]
    part = partition(tmp_path, nodes, blocks={"x": 16, "y": 16})
    with pytest.raises(NotInBlocks, match="branch"):
        ops(part)
    assert isinstance(check(part), Turned)


@pytest.mark.parametrize("where", ["onnxruntime_blocks.write_optimised", "onnx_file.OnnxFile.write"])
def test_what_cannot_be_prepared_is_run_in_plain(tmp_path: Path, monkeypatch, caplog, where: str) -> None:
    def full(_: object, path: Path, *__: object) -> None:
        path.touch()
        raise OSError("no space left on device")

    part = residual(tmp_path, {"x": BLOCK or 16, "y": BLOCK or 16})
    monkeypatch.setattr(f"node_agent.engines.{where}", full)
    assert isinstance(check(part), Turned)
    assert not BLOCK or "cannot be prepared" in caplog.text


KINDS = ["Conv", "Conv", "Conv", "Relu", "Sigmoid", "Neg", "Add", "Mul", "Sub", "MaxPool", "Concat"]


@st.composite
def networks(draw) -> tuple[list[object], list[str], dict[str, int]]:
    """Nodes and weights on `x` and `z`, the outputs, and what is in blocks."""
    nodes, made = [], []
    for number in range(draw(st.integers(1, 7))):
        kind, name = draw(st.sampled_from(KINDS)), f"v{number}"
        first, second = (draw(st.sampled_from(["x", "z", *made])) for _ in range(2))
        if kind == "Conv":
            nodes += convolution(first, name)
        elif kind == "Concat":
            nodes.append(helper.make_node("Concat", [first, second], [f"{name}.both"], axis=1))
            nodes += convolution(f"{name}.both", name, 32, 64)
        elif kind == "MaxPool":
            nodes.append(helper.make_node(kind, [first], [name], kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
        elif kind in ("Add", "Mul", "Sub"):
            nodes.append(helper.make_node(kind, [first, second], [name]))
        else:
            nodes.append(helper.make_node(kind, [first], [name]))
        made.append(name)
    outputs = [made[-1], *draw(st.sets(st.sampled_from(made), max_size=2)).difference(made[-1:])]
    size = draw(st.sampled_from([BLOCK or 16, BLOCK or 16, 8]))
    blocks = {name: size for name in ("x", "z", *outputs) if draw(st.booleans())}
    return nodes, outputs, blocks


@settings(max_examples=60)
@given(networks())
def test_any_network_gives_what_it_gives_in_plain(drawn) -> None:
    nodes, outputs, blocks = drawn
    with tempfile.TemporaryDirectory() as folder:
        check(partition(Path(folder), nodes, outputs, ("x", "z"), blocks))
