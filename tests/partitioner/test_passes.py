"""Each pass by itself."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import partitioner
from partitioner.errors import InvalidModel, UnsupportedOp
from partitioner.passes.fold_shapes import fixed_values, fold_shapes
from partitioner.passes.gather_weights import gather_weights
from partitioner.passes.inline_functions import inline_functions
from partitioner.passes.remove_unused import remove_unused
from partitioner.proto import ShapeInference, ValueType


def kinds(model):
    return [node.op_type for node in model.graph]


def infer(model, **inputs):
    types = {name: ValueType("tensor", ir.DataType.FLOAT, tuple(dims)) for name, dims in inputs.items()}
    return {**ShapeInference(model, model.graph, model.graph.inputs).run(types), **types}


def test_gather_weights(build):
    build.input("x", ["N", 4])
    build.input("w", [4, 4])
    build.weight("w", (4, 4))
    build.op("Constant", out="ints", value_ints=[1, 2])
    build.op("Constant", out="one", value_float=1.0)
    build.op("Constant", out="word", value_string="hello")
    build.op("MatMul", "x", "w", out="y")
    build.output("y")
    build.output("ints", [2], TensorProto.INT64)
    model = ir.from_proto(build.model(ir_version=3))
    gather_weights(model)
    assert kinds(model) == ["Constant", "MatMul"]  # strings stay an op
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert set(model.graph.initializers) == {"w", "ints", "one"}
    assert model.graph.outputs[1] is model.graph.initializers["ints"]
    assert model.graph.initializers["one"].const_value.numpy() == np.float32(1)
    assert model.ir_version == 4


def test_large_constants_leave_bodies_and_keep_apart(build, chained, noise):
    """Both branches call their weight w; outside, each gets a name of its own."""
    build.input("x", ["N", 20])
    build.input("flag", [], TensorProto.BOOL)
    rng = np.random.default_rng(0)
    branches = []
    for index in range(2):
        weight = numpy_helper.from_array(rng.normal(size=(20, 20)).astype(np.float32), "w")
        small = numpy_helper.from_array(rng.normal(size=20).astype(np.float32), "small")
        nodes = [
            helper.make_node(
                "Constant", [], ["k"], value=numpy_helper.from_array(np.full((20, 20), 0.5, np.float32))
            ),
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("MatMul", ["a", "k"], ["b"]),
            helper.make_node("Add", ["b", "small"], [f"o{index}"]),
        ]
        out = [helper.make_tensor_value_info(f"o{index}", 1, None)]
        branches.append(helper.make_graph(nodes, f"g{index}", [], out, [weight, small]))
    build.op("If", "flag", out="y", then_branch=branches[0], else_branch=branches[1])
    build.op("Relu", "y", out="z")
    build.output("z", ["N", 20])
    proto = build.model()
    model = ir.from_proto(proto)
    gather_weights(model)
    assert len(model.graph.initializers) == 4
    before = build.model().SerializeToString()
    for flag in (True, False):
        chain = chained(proto, {"x": noise(2, 20), "flag": np.array(flag)})
    assert proto.SerializeToString() == before
    assert chain.weight_bytes == 4 * 1600


def test_constant_op_without_value(build):
    build.op("Constant", out="c")
    build.input("x", [1])
    build.op("Add", "x", "c", out="y")
    build.output("y")
    with pytest.raises(InvalidModel, match=r"Constant op 'n_c' holds no value"):
        gather_weights(ir.from_proto(build.model()))


def test_remove_unused_counts_captures(build):
    build.input("x", [2])
    build.input("flag", [], TensorProto.BOOL)
    build.op("Relu", "x", out="captured")
    build.op("Relu", "x", out="dead")
    build.op("Tanh", "dead", out="dead2")
    build.weight("unused", (2, 2))
    branches = [
        helper.make_graph(
            [helper.make_node("Neg", ["captured"], [n])], n, [], [helper.make_tensor_value_info(n, 1, None)]
        )
        for n in ("t", "e")
    ]
    build.op("If", "flag", out="y", then_branch=branches[0], else_branch=branches[1])
    build.output("y")
    model = ir.from_proto(build.model())
    remove_unused(model)
    assert kinds(model) == ["Relu", "If"]
    assert not model.graph.initializers


def test_fold_shapes_follows_single_elements(build):
    build.input("x", ["N", 6, "T"])
    build.op("Shape", "x", out="s")
    build.weight("one", np.array(1))
    build.weight("ones", np.array([1]))
    build.weight("zero", np.array([0]))
    build.weight("two", np.array([2]))
    build.op("Gather", "s", "one", out="six")
    build.op("Gather", "s", "two", out="t")
    build.op("Unsqueeze", "six", "zero", out="sixv")
    build.op("Mul", "sixv", "two", out="twelve")
    build.op("Div", "twelve", build.weight("five", np.array([5])), out="quotient")
    build.op("Slice", "s", "ones", "two", out="middle")
    build.op("Concat", "middle", "twelve", "t", out="mixed", axis=0)
    build.op("Cast", "six", out="float", to=TensorProto.FLOAT)
    build.op("Size", "x", out="size")
    for name in ("twelve", "quotient", "mixed", "float", "size"):
        build.op("Identity", name, out=f"{name}_out")
        build.output(f"{name}_out")
    model = ir.from_proto(build.model())
    types = infer(model, x=("N", 6, "T"))
    fixed = {
        value.name: tensor.numpy().tolist() for value, tensor in fixed_values(model.graph, types).items()
    }
    assert {k: v for k, v in fixed.items() if not k.endswith("_out")} == {
        "six": 6, "sixv": [6], "twelve": [12], "quotient": [2], "middle": [6],
    }  # fmt: skip
    fold_shapes(model, types)
    remove_unused(model)
    assert "Mul" not in kinds(model)
    assert "Cast" in kinds(model)  # floats are the engine's business


def test_fold_shapes_leaves_arithmetic_that_could_overflow(build):
    build.input("x", [70000, 2])
    build.op("Shape", "x", out="s")
    build.op("Mul", "s", "s", out="square")
    build.op("Identity", "square", out="y")
    build.output("y", None, TensorProto.INT64)
    model = ir.from_proto(build.model())
    assert "square" not in {v.name for v in fixed_values(model.graph, infer(model, x=(70000, 2)))}


def test_functions_calling_each_other_in_a_circle(build):
    opset = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    for name, other in (("A", "B"), ("B", "A")):
        node = helper.make_node(other, ["p"], ["r"], domain="local")
        build.functions.append(helper.make_function("local", name, ["p"], ["r"], [node], opset))
    build.input("x", [1])
    build.op("A", "x", out="y", domain="local")
    build.output("y")
    with pytest.raises(InvalidModel, match="in a circle"):
        inline_functions(ir.from_proto(build.model(local=1)))


def test_nested_functions_and_unused_ones(build, chained, noise):
    opset = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    inner = [helper.make_node("Relu", ["p"], ["t"]), helper.make_node("Tanh", ["t"], ["r"])]
    outer = [
        helper.make_node("In", ["p"], ["t"], domain="local"),
        helper.make_node("In", ["t"], ["r"], domain="local"),
    ]
    build.functions.append(helper.make_function("local", "In", ["p"], ["r"], inner, opset))
    build.functions.append(helper.make_function("local", "Out", ["p"], ["r"], outer, opset))
    build.functions.append(helper.make_function("local", "Never", ["p"], ["r"], inner, opset))
    build.input("x", ["N", 4])
    build.op("Out", "x", out="a", domain="local")
    build.op("Out", "a", out="y", domain="local")
    build.output("y", ["N", 4])
    chain = chained(build.model(local=1), {"x": noise(2, 4)})
    assert [block.op_types[0] for block in chain.blocks] == ["Relu", "Tanh"] * 4
    assert not partitioner.split(build.model(local=1), [])[0].model.functions


def test_external_constants_inside_bodies_are_read(build, tmp_path, harness, noise):
    """A data file may hold even the smallest attribute; a partition must not point there."""
    build.input("x", ["N", 4])
    build.input("flag", [], TensorProto.BOOL)
    value = numpy_helper.from_array(np.arange(4, dtype=np.float32), "v")
    branches = []
    for name in ("t", "e"):
        nodes = [
            helper.make_node("Constant", [], [f"k{name}"], value=value),
            helper.make_node("Add", ["x", f"k{name}"], [name]),
        ]
        branches.append(helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, 1, None)]))
    build.op("If", "flag", out="y", then_branch=branches[0], else_branch=branches[1])
    build.op("Relu", "y", out="z")
    build.output("z", ["N", 4])
    model = build.model()
    path = tmp_path / "m.onnx"
    tensor = model.graph.node[0].attribute[0].g.node[0].attribute[0].t
    (tmp_path / "d.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="d.bin")
    path.write_bytes(model.SerializeToString())
    x = noise(2, 4)
    values = {"x": x, "flag": np.array(True)}
    for part in partitioner.split(path, [1]):
        stored = partitioner.write_store(part, tmp_path / "store")
        values |= harness.run(
            harness.open_session(tmp_path / "store" / f"{stored.graph.sha256}.onnx"), values
        )
    branch = {a.name for a in model.graph.node[0].attribute if a.g.node[0].attribute[0].t.data_location}
    expected = np.maximum(x + np.arange(4, dtype=np.float32), 0)
    assert branch
    assert values["z"].tobytes() == expected.tobytes()


def test_ends_that_are_no_tensors(build):
    build.input("x", [4])
    build.op("SequenceConstruct", "x", out="y")
    build.outputs.append(helper.make_tensor_sequence_value_info("y", 1, [4]))
    with pytest.raises(UnsupportedOp, match="output 'y', made by op 'SequenceConstruct' is a sequence"):
        partitioner.analyze(build.model())
    build.outputs.clear()
    with pytest.raises(InvalidModel, match="no outputs"):
        partitioner.analyze(build.model())


def test_made_twice(build):
    build.input("x", [4])
    build.op("Relu", "x", out="y")
    build.op("Tanh", "x", out="y")
    build.output("y")
    with pytest.raises(InvalidModel, match=r"'y' is redeclared .* by operator 'Tanh'"):
        partitioner.analyze(build.model())


def test_long_name_of_the_domain(build, chained, noise):
    build.input("x", ["N", 4])
    build.op("Relu", "x", out="a")
    build.op("Relu", "a", out="y", domain="ai.onnx")
    build.output("y", ["N", 4])
    model = build.model()
    chained(model, {"x": noise(2, 4)})
    model.opset_import[0].domain = "ai.onnx"
    assert len(partitioner.analyze(onnx.ModelProto.FromString(model.SerializeToString())).blocks) == 2
