"""The tiny networks run, depend on their inputs, and each has the difficulty that it is there for."""

import itertools

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

import models

TINY = [name for name in models.NAMES if models.describe(name).kind == "tiny"]


def run(model, feeds):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feeds), strict=True))


def nodes_of(name):
    return {node.name: node for node in models.build(name).graph.node}


def weights_of(name):
    return {tensor.name for tensor in models.build(name).graph.initializer}


@pytest.mark.parametrize("name", TINY)
def test_outputs_have_the_declared_shapes_and_change_with_the_input(name):
    description = models.describe(name)
    model = models.build(name)
    sizes = {"batch": 1, **description.sizes}
    made = [run(model, models.example_inputs(name, seed=seed)) for seed in range(4)]
    for key, shape in description.output_shapes.items():
        values = [outputs[key] for outputs in made]
        assert values[0].shape == tuple(sizes.get(size, size) for size in shape)
        if values[0].dtype == np.int64:
            assert len({value.tobytes() for value in values}) > 1
            continue
        spread = np.std(np.stack(values).astype(np.float64), axis=0).mean()
        assert 0.05 < spread < 10
        assert 0.1 < np.std(values) < 10


@pytest.mark.parametrize("name", TINY)
def test_every_input_matters(name):
    model = models.build(name)
    feeds, others = (models.example_inputs(name, seed=seed) for seed in (0, 1))
    before = run(model, feeds)
    for key in feeds:
        after = run(model, {**feeds, key: others[key]})
        assert any((before[output] != after[output]).any() for output in before)


# The reference has no DequantizeLinear before opset 19.
@pytest.mark.parametrize("name", [name for name in TINY if name != "tiny_quantized"])
def test_onnxruntime_and_the_reference_agree(name):
    model = models.build(name)
    feeds = models.example_inputs(name)
    expected = ReferenceEvaluator(model).run(None, feeds)
    tolerance = 2e-2 if name == "tiny_float16" else 1e-4
    for ours, theirs in zip(run(model, feeds).values(), expected, strict=True):
        # The reference puts a Loop's scan outputs end to end where the standard stacks them.
        np.testing.assert_allclose(ours, np.reshape(theirs, ours.shape), rtol=tolerance, atol=tolerance)


def test_chain_is_a_chain():
    nodes = list(models.build("tiny_chain").graph.node)
    for before, after in itertools.pairwise(nodes):
        assert after.input[0] == before.output[0]


@pytest.mark.parametrize(("name", "join"), [("tiny_residual", "block1.add"), ("tiny_diamond", "join")])
def test_joins_read_a_tensor_that_others_read_too(name, join):
    nodes = nodes_of(name)
    readers = [node for node in nodes.values() if nodes[join].input[-1] in node.input]
    assert len(readers) >= 2


def test_late_input_is_read_by_the_last_op_alone():
    nodes = list(models.build("tiny_late_input").graph.node)
    assert [("bias" in node.input) for node in nodes] == [False] * (len(nodes) - 1) + [True]


def test_early_output_is_made_early_and_read_again():
    nodes = list(models.build("tiny_early_output").graph.node)
    made = next(position for position, node in enumerate(nodes) if "early" in node.output)
    assert made < len(nodes) / 2
    assert "early" in nodes[-1].input


def test_shared_weight_is_read_at_both_ends():
    nodes = list(models.build("tiny_shared_weight").graph.node)
    assert "tied.weight" in nodes[0].input
    assert "tied.weight" in nodes[-1].input


def test_initializer_inputs_may_be_overridden():
    model = models.build("tiny_initializer_inputs")
    assert weights_of("tiny_initializer_inputs") <= {info.name for info in model.graph.input}
    feeds = models.example_inputs("tiny_initializer_inputs")
    zeros = np.zeros((16, 10), dtype=np.float32)
    assert (run(model, feeds)["output"] != run(model, {**feeds, "fc2.weight": zeros})["output"]).any()


def test_constants_are_nodes_and_some_must_be_computed():
    ops = [node.op_type for node in models.build("tiny_constants").graph.node]
    assert {"Constant", "Transpose", "ConstantOfShape"} <= set(ops)
    assert len(weights_of("tiny_constants")) == 1


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 5), (5, 30)])
def test_dynamic_batch_takes_any_batch_and_length_row_by_row(batch, length):
    model = models.build("tiny_dynamic_batch")
    feeds = models.example_inputs("tiny_dynamic_batch", batch=batch, sizes={"length": length})
    whole = run(model, feeds)["output"]
    assert whole.shape == (batch, length, 16)
    for row in range(batch):
        alone = run(model, {"input": feeds["input"][row : row + 1]})["output"]
        np.testing.assert_allclose(whole[row : row + 1], alone, rtol=1e-5, atol=1e-5)


def test_int64_label_is_the_argmax_of_the_logits():
    model = models.build("tiny_int64")
    for seed in range(5):
        outputs = run(model, models.example_inputs("tiny_int64", seed=seed))
        assert outputs["label"].dtype == np.int64
        assert outputs["label"] == outputs["logits"].argmax()


def captured(body):
    """Names that a body reads from the graph around it."""
    inside = {info.name for info in body.input} | {name for node in body.node for name in node.output}
    return {name for node in body.node for name in node.input} - inside


def test_if_bodies_capture_and_both_are_taken():
    node = nodes_of("tiny_if")["if"]
    bodies = {attribute.name: attribute.g for attribute in node.attribute}
    early, late, weight = "first.tanh.output", "second.tanh.output", "inside.weight"
    assert captured(bodies["then_branch"]) == {early, late, weight}
    assert captured(bodies["else_branch"]) == {early, late}
    assert len(node.input) == 1
    listed = {name for other in models.build("tiny_if").graph.node for name in other.input}
    assert weight not in listed, "only a body reads it"
    assert {taken("tiny_if", seed) for seed in range(8)} == {True, False}


def taken(name, seed):
    model = models.build(name)
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("condition.output", onnx.TensorProto.BOOL, [])
    )
    return bool(run(model, models.example_inputs(name, seed=seed))["condition.output"])


def test_loop_body_captures_and_its_state_moves():
    node = nodes_of("tiny_loop")["loop"]
    assert captured(node.attribute[0].g) == {"first.tanh.output", "inside.weight"}
    trajectory = run(models.build("tiny_loop"), models.example_inputs("tiny_loop"))["trajectory"]
    assert np.abs(np.diff(trajectory, axis=0)).mean(axis=(1, 2)).min() > 0.05


def test_function_is_called_twice():
    model = models.build("tiny_function")
    assert [function.name for function in model.functions] == ["Gated"]
    assert [node.op_type for node in model.graph.node].count("Gated") == 2


def test_float16_is_float16_from_end_to_end():
    model = models.build("tiny_float16")
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    kinds |= {info.type.tensor_type.elem_type for info in [*model.graph.input, *model.graph.output]}
    assert kinds == {onnx.TensorProto.FLOAT16}


def test_quantized_has_int8_weights_per_channel_and_uint8_activations():
    model = models.build("tiny_quantized")
    codes = {tensor.name: tensor for tensor in model.graph.initializer}
    assert codes["conv1.weight.int8"].data_type == onnx.TensorProto.INT8
    assert list(codes["conv1.weight.scale"].dims) == [8]
    infos = {info.name: info.type.tensor_type.elem_type for info in model.graph.value_info}
    assert infos["conv1.q.quantize.output"] == onnx.TensorProto.UINT8
