"""One difficulty per test; each proves that the chained partitions equal the whole model."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import partitioner
from partitioner.errors import InvalidCut, UnsupportedOp


def names(specs):
    return [spec.name for spec in specs]


def test_chain_of_layers(build, chained, noise):
    build.input("x", ["N", 8])
    build.op("MatMul", "x", build.weight("w0", (8, 8)), out="a")
    build.op("Relu", "a", out="b")
    build.op("MatMul", "b", build.weight("w1", (8, 8)), out="y")
    build.output("y", ["N", 8])
    chain = chained(build.model(), {"x": noise(3, 8)})
    assert [b.tensors for b in chain.boundaries] == [("x",), ("a",), ("b",), ("y",)]
    assert chain.tensors["b"].shape == ("N", 8)
    assert [b.nbytes for b in chain.boundaries] == [96] * 4


def test_residual_crosses_as_two_tensors(build, chained, noise):
    build.input("x", ["N", 8])
    build.op("Relu", "x", out="a")
    build.op("Sigmoid", "a", out="b")
    build.op("Tanh", "b", out="c")
    build.op("Add", "a", "c", out="y")
    build.output("y", ["N", 8])
    chain = chained(build.model(), {"x": noise(2, 8)})
    assert [set(b.tensors) for b in chain.boundaries] == [{"x"}, {"a"}, {"a", "b"}, {"a", "c"}, {"y"}]
    parts = partitioner.split(build.model(), [2, 3])
    assert names(parts[0].outputs) == ["a", "b"]
    assert names(parts[1].inputs) == ["b"]  # a is only passing by
    assert names(parts[2].inputs) == ["a", "c"]


def test_input_first_used_late_and_output_made_early(build, chained, noise):
    build.input("x", ["N", 4])
    build.input("late", ["N", 4])
    build.op("Relu", "x", out="early")
    build.op("Tanh", "early", out="a")
    build.op("Sigmoid", "a", out="b")
    build.op("Mul", "b", "late", out="y")
    build.output("y", ["N", 4])
    build.output("early", ["N", 4])
    chain = chained(build.model(), {"x": noise(2, 4), "late": noise(2, 4, seed=1)})
    assert all("late" in boundary.tensors for boundary in chain.boundaries[:-1])
    assert all("early" in boundary.tensors for boundary in chain.boundaries[1:])
    assert chain.boundaries[-1].tensors == ("y", "early")
    parts = partitioner.split(build.model(), [2])
    assert names(parts[0].inputs) == ["x"]
    assert names(parts[1].inputs) == ["late", "a"] or set(names(parts[1].inputs)) == {"late", "a"}
    assert names(parts[1].outputs) == ["y"]


def test_shared_weight_is_on_both_sides_and_counted_once(build, chained, noise):
    build.input("x", ["N", 16])
    build.weight("w", (16, 16))
    build.op("MatMul", "x", "w", out="a")
    build.op("Relu", "a", out="b")
    build.op("MatMul", "b", "w", out="y")
    build.output("y", ["N", 16])
    model = build.model()
    chain = chained(model, {"x": noise(2, 16)})
    assert chain.weight_bytes == 1024
    assert chain.weight_bytes_of(0, 3) == 1024
    parts = partitioner.split(model, [2])
    assert [part.weight_bytes for part in parts] == [1024, 1024]
    assert all("w" in part.model.graph.initializers for part in parts)


def test_initializers_listed_as_inputs_are_constants(build, chained, noise):
    build.input("x", [1, 4])
    build.input("w", [4, 4])
    build.weight("w", (4, 4))
    build.op("MatMul", "x", "w", out="a")
    build.op("Relu", "a", out="y")
    build.output("y", [1, 4])
    model = build.model(opset=9, ir_version=3)
    chain = chained(model, {"x": noise(1, 4)})
    assert names(chain.inputs) == ["x"]
    parts = partitioner.split(model, [1])
    assert names(parts[0].inputs) == ["x"]
    assert all(part.model.ir_version == 4 for part in parts)


def test_constant_ops_are_repeated_never_sent(build, chained, noise):
    build.input("x", ["N", 4])
    build.op("Constant", out="shape", value=numpy_helper.from_array(np.array([4, 4], np.int64)))
    build.op(
        "ConstantOfShape", "shape", out="w", value=helper.make_tensor("v", TensorProto.FLOAT, [1], [0.25])
    )
    build.op("Exp", "w", out="we")
    build.op("MatMul", "x", "we", out="a")
    build.op("Relu", "a", out="b")
    build.op("MatMul", "b", "we", out="c")
    build.op("Constant", out="two", value_float=2.0)
    build.op("Mul", "c", "two", out="y")
    build.output("y", ["N", 4])
    chain = chained(build.model(), {"x": noise(2, 4)})
    assert [block.op_types for block in chain.blocks] == [("MatMul",), ("Relu",), ("MatMul",), ("Mul",)]
    assert all(len(boundary.tensors) == 1 for boundary in chain.boundaries)
    assert chain.weight_sizes == {"we": 64, "two": 4}


def test_shape_arithmetic_is_repeated_beside_its_tensor(build, chained, noise):
    build.input("x", ["N", 6])
    build.op("Relu", "x", out="a")
    build.op("Shape", "a", out="s")
    build.op("Gather", "s", build.weight("zero", np.array([0])), out="n")
    build.op("Concat", "n", build.weight("dims", np.array([2, 3])), out="target", axis=0)
    build.op("Sigmoid", "a", out="b")
    build.op("Reshape", "b", "target", out="c")
    build.op("Shape", "c", out="s2")
    build.op("Tanh", "c", out="d")
    build.op("Reshape", "d", build.weight("back", np.array([-1, 6])), out="e")
    build.op("Add", "a", "e", out="y")
    build.output("y", ["N", 6])
    chain = chained(build.model(), {"x": noise(5, 6)})
    assert [block.op_types[0] for block in chain.blocks] == [
        "Relu",
        "Sigmoid",
        "Reshape",
        "Tanh",
        "Reshape",
        "Add",
    ]
    assert not {"s", "n", "target"} & {name for b in chain.boundaries for name in b.tensors}
    assert chain.tensors["c"].shape == ("N", 2, 3)


def test_shape_value_crosses_only_when_its_tensor_is_gone(build, chained, noise):
    build.input("x", ["N", "M"])
    build.op("Shape", "x", out="s")
    build.op("ReduceSum", "x", build.weight("axis", np.array([1])), out="a", keepdims=1)
    build.op("Relu", "a", out="b")
    build.op("Expand", "b", "s", out="y")
    build.output("y")
    chain = chained(build.model(), {"x": noise(3, 5)})
    assert [b.tensors for b in chain.boundaries] == [("x",), ("a", "s"), ("b", "s"), ("y",)]
    assert chain.boundaries[1].nbytes == 12 + 16


def test_shape_value_that_needs_one_gone_and_one_future_tensor(build, chained, noise):
    build.input("x", ["N", "M"])
    build.op("Shape", "x", out="sx")
    build.op("ReduceSum", "x", build.weight("axis", np.array([1])), out="a", keepdims=1)
    build.op("Relu", "a", out="b")
    build.op("Concat", "b", "b", out="c", axis=1)
    build.op("Shape", "c", out="sc")
    build.op("Concat", "sc", "sx", out="both", axis=0)
    build.op("ReduceSum", "c", build.weight("axes", np.array([0, 1])), out="d", keepdims=1)
    build.op("Sigmoid", "d", out="e")
    build.op("Expand", "e", "both", out="y")
    build.output("y")
    chain = chained(build.model(), {"x": noise(3, 5)})
    assert "sx" in chain.boundaries[2].tensors
    assert "both" not in chain.boundaries[2].tensors
    assert "both" in chain.boundaries[-2].tensors


def test_static_shapes_are_folded(build, chained, noise):
    build.input("x", [2, 6])
    build.op("Relu", "x", out="a")
    build.op("Shape", "x", out="s")
    build.op("ReduceSum", "a", build.weight("axis", np.array([1])), out="b", keepdims=1)
    build.op("Relu", "b", out="c")
    build.op("Expand", "c", "s", out="y")
    build.output("y", [2, 6])
    chain = chained(build.model(), {"x": noise(2, 6)})
    assert all(len(boundary.tensors) == 1 for boundary in chain.boundaries)


def test_values_captured_by_if(build, chained, noise):
    build.input("x", ["N", 4])
    build.input("flag", [], TensorProto.BOOL)
    build.op("Relu", "x", out="a")
    build.op("Tanh", "a", out="b")
    build.weight("w", (4, 4))
    inner = helper.make_node("MatMul", ["a", "w"], ["t0"])
    then = helper.make_graph(
        [inner, helper.make_node("Add", ["t0", "b"], ["t"])],
        "then",
        [],
        [helper.make_tensor_value_info("t", 1, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["b"], ["e"])], "else", [], [helper.make_tensor_value_info("e", 1, None)]
    )
    build.op("If", "flag", out="c", then_branch=then, else_branch=other)
    build.op("Sigmoid", "c", out="y")
    build.output("y", ["N", 4])
    for flag in (True, False):
        chain = chained(build.model(), {"x": noise(2, 4), "flag": np.array(flag)})
    assert chain.blocks[2].op_types == ("If",)
    assert chain.blocks[2].weights == ("w",)
    assert chain.blocks[2].flops == 2 * 4 * 8 + 8
    assert set(chain.boundaries[2].tensors) == {"a", "b", "flag"}


def test_loop_with_captures(build, chained, noise):
    build.input("x", ["N", 4])
    build.op("Relu", "x", out="a")
    build.op("Tanh", "a", out="start")
    body = helper.make_graph(
        [
            helper.make_node("Add", ["state", "a"], ["next"]),
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Identity", ["next"], ["scan"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, ["N", 4]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, ["N", 4]),
            helper.make_tensor_value_info("scan", TensorProto.FLOAT, ["N", 4]),
        ],
    )
    build.weight("turns", np.array(3, np.int64))
    build.weight("yes", np.array(True))
    build.op("Loop", "turns", "yes", "start", out=["final", "all"], body=body)
    build.op("ReduceSum", "all", build.weight("axis", np.array([0])), out="sum", keepdims=0)
    build.op("Add", "sum", "final", out="y")
    build.output("y", ["N", 4])
    chain = chained(build.model(), {"x": noise(2, 4)})
    loop = next(block for block in chain.blocks if block.op_types == ("Loop",))
    assert loop.flops == 3 * 8


def test_scan(build, chained, noise):
    build.input("x", [5, 4])
    build.op("Relu", "x", out="a")
    build.op("ReduceSum", "a", build.weight("axis", np.array([0])), out="s", keepdims=0)
    body = helper.make_graph(
        [helper.make_node("Add", ["acc", "row"], ["acc2"]), helper.make_node("Mul", ["acc2", "s"], ["o"])],
        "body",
        [helper.make_tensor_value_info("acc", 1, [4]), helper.make_tensor_value_info("row", 1, [4])],
        [helper.make_tensor_value_info("acc2", 1, [4]), helper.make_tensor_value_info("o", 1, [4])],
    )
    build.weight("zero", np.zeros(4, np.float32))
    build.op("Scan", "zero", "a", out=["last", "ys"], body=body, num_scan_inputs=1)
    build.op("Relu", "ys", out="y")
    build.output("y", [5, 4])
    chain = chained(build.model(), {"x": noise(5, 4)})
    assert next(block for block in chain.blocks if block.op_types == ("Scan",)).flops == 5 * 8


def test_output_that_is_an_input_or_a_constant(build, chained, noise):
    build.input("x", ["N", 4])
    build.weight("c", np.arange(3, dtype=np.float32))
    build.op("Exp", "c", out="ce")
    build.op("Relu", "x", out="a")
    build.op("Tanh", "a", out="y")
    build.output("y", ["N", 4])
    build.output("x", ["N", 4])
    build.output("c", [3])
    build.output("ce", [3])
    model = build.model()
    chain = chained(model, {"x": noise(2, 4)})
    assert set(chain.boundaries[-1].tensors) == {"y", "x", "c", "ce"}
    parts = partitioner.split(model, [1])
    assert names(parts[0].outputs) == ["a"]
    assert names(parts[1].outputs) == ["y", "c", "ce"]


def test_shape_as_output(build, chained, noise):
    build.input("x", ["N", 4])
    build.op("Shape", "x", out="s")
    build.op("Relu", "x", out="a")
    build.op("Reshape", "a", "s", out="y")
    build.output("y", ["N", 4])
    build.output("s", [2], TensorProto.INT64)
    chained(build.model(), {"x": noise(2, 4)})


def test_nothing_depends_on_an_input(build, chained):
    build.op("Exp", build.weight("c", (3, 3)), out="a")
    build.op("Neg", "a", out="y")
    build.output("y", [3, 3])
    chain = chained(build.model(), {})
    assert len(chain.blocks) == 2


def test_op_with_several_outputs_and_unused_ones(build, chained, noise):
    build.input("x", ["N", 6])
    build.op("Split", "x", out=["a", "b", "c"], axis=1, num_outputs=3)
    build.op("Add", "a", "c", out="d")
    build.op("TopK", "d", build.weight("k", np.array([1])), out=["v", "i"], axis=1)
    build.op("Cast", "i", out="f", to=TensorProto.FLOAT)
    build.op("Mul", "f", "v", out="y")
    build.output("y", ["N", 1])
    chain = chained(build.model(opset=18), {"x": noise(2, 6)})
    assert "b" not in chain.tensors
    assert chain.tensors["i"].dtype == "int64"


def test_dead_ops_go(build, chained, noise):
    build.input("x", ["N", 4])
    build.input("unused", ["N", 4])
    build.op("Relu", "x", out="y")
    build.op("Tanh", "x", out="dead")
    build.output("y", ["N", 4])
    model = build.model()
    chain = chained(model, {"x": noise(2, 4), "unused": noise(2, 4)})
    assert len(chain.blocks) == 1
    assert names(chain.inputs) == ["x", "unused"]
    assert chain.boundaries[0].tensors == ("x",)


def test_unsorted_graph(build, chained, noise):
    build.input("x", ["N", 4])
    build.op("Relu", "x", out="a")
    build.op("Tanh", "a", out="y")
    build.output("y", ["N", 4])
    model = build.model()
    mixed = onnx.ModelProto()
    mixed.CopyFrom(model)
    mixed.graph.node.reverse()
    assert partitioner.analyze(mixed).positions == partitioner.analyze(model).positions


def test_random_ops_are_not_repeated(build, noise):
    build.input("x", [1, 4])
    build.op("RandomNormal", out="r", shape=[1, 4], seed=1.0)
    build.op("Relu", "x", out="a")
    build.op("Add", "a", "r", out="b")
    build.op("Add", "b", "r", out="y")
    build.output("y", [1, 4])
    chain = partitioner.analyze(build.model())
    assert sum(block.op_types == ("RandomNormal",) for block in chain.blocks) == 1
    parts = partitioner.split(build.model(), chain.positions)
    assert sum(node.op_type == "RandomNormal" for part in parts for node in part.model.graph) == 1


def test_float16(build, chained):
    rng = np.random.default_rng(0)
    build.input("x", ["N", 8], TensorProto.FLOAT16)
    for i, name in enumerate("abcd"):
        build.weight(f"w{i}", (rng.normal(size=(8, 8)) / 3).astype(np.float16))
        build.op("MatMul", "abcd"[i - 1] if i else "x", f"w{i}", out=name)
    build.output("d", ["N", 8], TensorProto.FLOAT16)
    chain = chained(build.model(), {"x": rng.normal(size=(2, 8)).astype(np.float16)})
    assert chain.tensors["b"].dtype == "float16"
    assert chain.boundaries[1].nbytes == 32


def quantised(build):
    """Two QDQ layers with a residual, weights int8."""
    build.input("x", ["N", 8])
    build.weight("s", np.float32(0.05))
    build.weight("z", np.int8(3))
    build.weight("sw", np.float32(0.01))
    build.weight("zw", np.int8(0))
    rng = np.random.default_rng(0)
    build.op("QuantizeLinear", "x", "s", "z", out="xq")
    build.op("DequantizeLinear", "xq", "s", "z", out="xd")
    for i, source in enumerate(("xd", "d0")):
        build.weight(f"w{i}", rng.integers(-100, 100, (8, 8)).astype(np.int8))
        build.op("DequantizeLinear", f"w{i}", "sw", "zw", out=f"wd{i}")
        build.op("MatMul", source, f"wd{i}", out=f"m{i}")
        build.op("Relu", f"m{i}", out=f"r{i}")
        build.op("QuantizeLinear", f"r{i}", "s", "z", out=f"q{i}")
        build.op("DequantizeLinear", f"q{i}", "s", "z", out=f"d{i}")
    build.op("Add", "d1", "xd", out="y")
    build.output("y", ["N", 8])
    return build.model()


def test_quantised_model_sends_int8(build, chained, noise):
    chain = chained(quantised(build), {"x": noise(3, 8)})
    crossing = {name for boundary in chain.boundaries[1:-1] for name in boundary.tensors}
    assert crossing == {"xq", "m0", "r0", "q0", "m1", "r1", "q1"}
    assert chain.tensors["q0"].dtype == "int8"
    coarse = partitioner.coarsen(chain, 3)
    assert all(set(boundary.tensors) <= {"xq", "q0", "q1"} for boundary in coarse.boundaries[1:-1])
    parts = partitioner.split(quantised(type(build)()), coarse.positions)
    assert all(any(node.op_type == "DequantizeLinear" for node in part.model.graph) for part in parts[1:])


def test_model_local_function(build, chained, noise):
    build.functions.append(
        helper.make_function(
            "local",
            "Block",
            ["p", "q"],
            ["r"],
            [
                helper.make_node("MatMul", ["p", "q"], ["m"]),
                helper.make_node("LeakyRelu", ["m"], ["r"]),
            ],
            [helper.make_opsetid("", 17)],
        )
    )
    build.functions[0].node[1].attribute.append(_reference("alpha", "slope"))
    build.functions[0].attribute.append("slope")
    build.input("x", ["N", 4])
    build.weight("w", (4, 4))
    build.op("Block", "x", "w", out="a", domain="local", slope=0.2)
    build.op("Block", "a", "w", out="b", domain="local", slope=0.4)
    build.op("Relu", "b", out="y")
    build.output("y", ["N", 4])
    chain = chained(build.model(local=1), {"x": noise(2, 4)})
    assert [block.op_types[0] for block in chain.blocks] == [
        "MatMul",
        "LeakyRelu",
        "MatMul",
        "LeakyRelu",
        "Relu",
    ]
    assert {"a", "b"} <= set(chain.tensors)


def _reference(name, parameter):
    attribute = onnx.AttributeProto(name=name, type=onnx.AttributeProto.FLOAT)
    attribute.ref_attr_name = parameter
    return attribute


def test_function_for_another_opset_stays_whole(build, chained, noise):
    build.functions.append(
        helper.make_function(
            "local",
            "Old",
            ["p"],
            ["r"],
            [helper.make_node("Relu", ["p"], ["r"])],
            [helper.make_opsetid("", 13)],
        )
    )
    build.input("x", ["N", 4])
    build.op("Tanh", "x", out="a")
    build.op("Old", "a", out="b", domain="local")
    build.op("Tanh", "b", out="y")
    build.output("y", ["N", 4])
    model = build.model(local=1)
    chain = partitioner.analyze(model)
    assert [block.op_types[0] for block in chain.blocks] == ["Tanh", "Old", "Tanh"]
    parts = partitioner.split(model, chain.positions)
    assert [len(part.model.functions) for part in parts] == [0, 1, 0]


def test_function_that_returns_its_input(build, harness, noise):
    body = [helper.make_node("Relu", ["p"], ["r"])]
    build.functions.append(
        helper.make_function("local", "Both", ["p"], ["r", "p"], body, [helper.make_opsetid("", 17)])
    )
    build.input("x", ["N", 4])
    build.op("Both", "x", out=["a", "b"], domain="local")
    build.op("Add", "a", "b", out="y")
    build.output("y", ["N", 4])
    build.output("b", ["N", 4])
    model = build.model(local=1)  # ONNX Runtime itself cannot load such a function
    whole = {"y": np.maximum(x := noise(2, 4), 0) + x, "b": x}
    values = {"x": x}
    for part in partitioner.split(model, partitioner.analyze(model).positions):
        values |= harness.run(harness.open_session(harness.onnx_bytes(part)), values)
    assert all(np.array_equal(values[name], whole[name]) for name in whole)


def test_function_names_do_not_clash_with_bodies(build, chained, noise):
    body = [helper.make_node("Relu", ["p"], ["t"]), helper.make_node("Neg", ["t"], ["r"])]
    build.functions.append(
        helper.make_function("local", "F", ["p"], ["r"], body, [helper.make_opsetid("", 17)])
    )
    build.input("x", ["N", 4])
    build.input("flag", [], TensorProto.BOOL)
    build.op("F", "x", out="a", domain="local")
    branches = [
        helper.make_graph(
            [
                helper.make_node("Tanh", ["a"], [out]),
                helper.make_node("F", [out], [f"{out}o"], domain="local"),
            ],
            out,
            [],
            [helper.make_tensor_value_info(f"{out}o", 1, None)],
        )
        for out in ("t", "r")
    ]
    build.op("If", "flag", out="y", then_branch=branches[0], else_branch=branches[1])
    build.output("y", ["N", 4])
    chained(build.model(local=1), {"x": noise(2, 4), "flag": np.array(True)})


def test_optional_inputs_and_metadata_survive(build, chained, noise):
    build.input("x", ["N", 4])
    build.op("Clip", "x", "", build.weight("top", np.float32(0.5)), out="a")
    build.op("Relu", "a", out="y")
    build.output("y", ["N", 4])
    model = build.model()
    model.producer_name, model.domain, model.model_version = "maker", "org.example", 7
    helper.set_model_props(model, {"labels": "cat,dog"})
    chained(model, {"x": noise(2, 4)})
    for part in partitioner.split(model, [1]):
        assert part.model.producer_name == "maker"
        assert part.model.domain == "org.example"
        assert part.model.model_version == 7
        assert part.model.metadata_props == {"labels": "cat,dog"}
        assert part.model.opset_imports == {"": 17}


def test_sequences_do_not_cross(build, chained, noise):
    build.input("x", ["N", 6])
    build.op("Relu", "x", out="a")
    build.op("SplitToSequence", "a", build.weight("two", np.array(2)), out="seq", axis=1)
    build.op("ConcatFromSequence", "seq", out="b", axis=1)
    build.op("Relu", "b", out="y")
    build.output("y", ["N", 6])
    model = build.model()
    chain = chained(model, {"x": noise(2, 6)})
    assert ("SplitToSequence", "ConcatFromSequence") in [block.op_types for block in chain.blocks]
    with pytest.raises(InvalidCut, match="'seq', made by op 'SplitToSequence', is a sequence"):
        partitioner.split(model, [2])


def test_strings_do_not_cross(build):
    build.input("x", ["N"], TensorProto.STRING)
    build.op("StringNormalizer", "x", out="a", case_change_action="LOWER")
    build.op("Identity", "a", out="y")
    build.output("y", ["N"], TensorProto.STRING)
    chain = partitioner.analyze(build.model(), {"x": (3,)})
    assert [block.op_types for block in chain.blocks] == [("StringNormalizer", "Identity")]
    with pytest.raises(InvalidCut, match="holds strings"):
        partitioner.split(build.model(), [1])


def test_data_dependent_sizes_are_estimated_and_still_cut(build, chained):
    build.input("x", ["N", 4])
    build.op("Relu", "x", out="a")
    build.op("NonZero", "a", out="nz")
    build.op("Transpose", "nz", out="t", perm=[1, 0])
    build.op("GatherND", "a", "t", out="y")
    build.output("y")
    x = np.array([[1, -1, 2, 0], [-3, 4, 0, 0]], np.float32)
    chain = chained(build.model(), {"x": x})
    assert chain.tensors["nz"].shape[0] == 2
    assert isinstance(chain.tensors["nz"].shape[1], str)
    assert chain.tensor_bytes["nz"] == 2 * 8 * 8  # every element could be one


def test_foreign_domain_is_an_op_of_its_own(build):
    build.input("x", ["N", 4])
    build.op("Relu", "x", out="a")
    build.op("Mystery", "a", out="b", domain="com.acme")
    build.op("Relu", "b", out="c")
    build.op("Relu", "c", out="y")
    build.output("y", ["N", 4])
    model = build.model(com_acme=1)
    chain = partitioner.analyze(model)
    assert chain.positions == (1,)  # behind it nobody knows the rank
    model.graph.value_info.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, ["N", 4]))
    assert partitioner.analyze(model).positions == (1, 2, 3)


def test_microsoft_domain_runs(build, chained, noise):
    build.input("x", ["N", 4])
    build.op("Relu", "x", out="a")
    build.op("Gelu", "a", out="b", domain="com.microsoft")
    build.op("Relu", "b", out="y")
    build.output("y", ["N", 4])
    chained(build.model(com_microsoft=1), {"x": noise(2, 4)})


def test_unknown_op_is_named(build):
    build.input("x", ["N", 4])
    build.op("Relux", "x", out="y")
    build.output("y", ["N", 4])
    with pytest.raises(UnsupportedOp, match=r"'Relux' \(node 'n_y'\) is unknown"):
        partitioner.analyze(build.model())
    build.nodes[0].op_type, build.nodes[0].domain = "Thing", "nowhere"
    with pytest.raises(UnsupportedOp, match="domain 'nowhere'"):
        partitioner.analyze(build.model())


@pytest.mark.parametrize("positions", [[0], [3], [2, 1], [1, 1], [-1], [99]])
def test_positions_out_of_range(build, positions):
    build.input("x", ["N", 4])
    build.op("Relu", "x", out="a")
    build.op("Relu", "a", out="b")
    build.op("Relu", "b", out="y")
    build.output("y", ["N", 4])
    with pytest.raises(InvalidCut, match="from 1 to 2"):
        partitioner.split(build.model(), positions)


def test_freezing(build, noise):
    build.input("x", ["N", 4])
    build.op("Relu", "x", out="a")
    build.op("Tanh", "a", out="y")
    build.output("y", ["N", 4])
    model = build.model()
    free = partitioner.split(model, [1])
    frozen = partitioner.split(model, [1], input_shapes={"x": (3, 4)})
    assert free[0].inputs[0].shape == free[1].inputs[0].shape == ("N", 4)
    assert frozen[0].inputs[0].shape == frozen[1].inputs[0].shape == frozen[1].outputs[0].shape == (3, 4)


def test_the_model_in_memory_is_left_alone(build):
    import onnx_ir as ir

    model = quantised(build)
    before = model.SerializeToString()
    partitioner.split(model, partitioner.analyze(model).positions)
    assert model.SerializeToString() == before
    own = ir.from_proto(model)
    written = ir.to_proto(own).SerializeToString()
    partitioner.split(own, partitioner.analyze(own).positions)
    assert ir.to_proto(own).SerializeToString() == written
