"""Which tensors lie between convolutions, against networks whose answer is known."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import models
import partitioner

value = helper.make_tensor_value_info


def network(*steps: tuple[str, dict[str, object]]) -> onnx.ModelProto:
    """A chain of ops on pictures of 32 channels, `x` to the last one's name."""
    nodes, weights, read = [], [], "x"
    for number, (kind, more) in enumerate(steps):
        name, reads = f"{kind}{number}", [read]
        if kind == "Conv":
            groups = int(more.get("group", 1))
            weights.append(
                numpy_helper.from_array(np.ones((32, 32 // groups, 1, 1), np.float32), f"{name}.w")
            )
            reads.append(f"{name}.w")
        if kind == "Reshape":
            weights.append(numpy_helper.from_array(np.array([0, 32, 9]), f"{name}.s"))
            reads.append(f"{name}.s")
        nodes.append(helper.make_node(kind, reads, [name], **more))
        read = name
    shape = [1, 32, 9] if any(kind == "Reshape" for kind, _ in steps) else [1, 32, 3, 3]
    graph = helper.make_graph(
        nodes,
        "net",
        [value("x", TensorProto.FLOAT, [1, 32, 3, 3])],
        [value(read, TensorProto.FLOAT, shape)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model


CONV, RELU, NEG = ("Conv", {}), ("Relu", {}), ("Neg", {})
DEPTHWISE, GROUPED = ("Conv", {"group": 32}), ("Conv", {"group": 4})
POOL = ("MaxPool", {"kernel_shape": [1, 1]})


@pytest.mark.parametrize(
    ("steps", "cut", "made", "read"),
    [
        ([CONV, CONV], 1, True, True),
        ([CONV, RELU, POOL, CONV], 1, True, True),
        ([CONV, RELU, POOL, CONV], 3, True, True),
        ([DEPTHWISE, CONV], 1, True, True),
        ([CONV, GROUPED], 1, True, False),
        ([GROUPED, CONV], 1, False, True),
        ([CONV, NEG, CONV], 1, True, False),
        ([CONV, NEG, CONV], 2, False, True),
        ([RELU, CONV], 1, False, True),
        ([CONV, RELU], 1, True, False),
        ([CONV, ("Reshape", {})], 1, True, False),
    ],
)
def test_from_a_convolution_and_to_one(steps, cut: int, made: bool, read: bool) -> None:
    first, second = partitioner.split(network(*steps), (cut,))
    (crossing,) = (spec.name for spec in first.outputs)
    assert crossing in partitioner.convolved(first) if made else crossing not in partitioner.convolved(first)
    assert (
        crossing in partitioner.convolved(second) if read else crossing not in partitioner.convolved(second)
    )


def parts(name: str, folder: Path, count: int = 6) -> tuple[partitioner.Partition, ...]:
    path = models.save(name, folder / "m.onnx")
    positions = partitioner.analyze(path).positions
    return partitioner.split(path, [positions[len(positions) * i // count] for i in range(1, count)])


@pytest.mark.parametrize("name", ["resnet50", "densenet121", "inception_v3", "mobilenet_v2"])
def test_what_crosses_inside_a_convolutional_network(name: str, tmp_path: Path) -> None:
    for left, right in pairwise(parts(name, tmp_path)[:-1]):
        crossing = {spec.name for spec in left.outputs}
        assert crossing <= set(partitioner.convolved(left))
        assert crossing & {spec.name for spec in right.inputs} <= set(partitioner.convolved(right))


@pytest.mark.parametrize("name", ["tiny_quantized", "tiny_loop", "tiny_if"])
def test_nothing_in_other_networks(name: str, tmp_path: Path) -> None:
    assert not any(partitioner.convolved(part) for part in parts(name, tmp_path, 2))


def test_a_weight_that_is_computed_is_no_picture() -> None:
    """A tensor that only serves as a convolution's weight never reaches one as its input."""
    nodes = [
        helper.make_node("Relu", ["w"], ["v"]),
        helper.make_node("Conv", ["x", "v"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [value("x", TensorProto.FLOAT, [1, 16, 3, 3]), value("w", TensorProto.FLOAT, [16, 16, 1, 1])],
        [value("y", TensorProto.FLOAT, [1, 16, 3, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    _, second = partitioner.split(model, (1,))
    assert partitioner.convolved(second) == ("x", "y")


def test_a_body_may_read_any_value() -> None:
    """Of a partition with a branch nothing is told, though its convolutions are plain to see."""
    made = value("out", TensorProto.FLOAT, [1, 32, 3, 3])
    bodies = [
        helper.make_graph([helper.make_node(kind, ["Conv0"], ["out"])], kind, [], [made])
        for kind in ("Neg", "Abs")
    ]
    model = network(CONV, CONV)
    graph = model.graph
    graph.input.append(value("so", TensorProto.BOOL, []))
    graph.node.append(helper.make_node("If", ["so"], ["c"], then_branch=bodies[0], else_branch=bodies[1]))
    graph.node.append(helper.make_node("Add", ["Conv1", "c"], ["sum"]))
    graph.output[0].name = "sum"
    (whole,) = partitioner.split(model, ())
    assert partitioner.convolved(whole) == ()
    assert partitioner.convolved(*partitioner.split(network(CONV, CONV), ())) == ("x", "Conv1")
