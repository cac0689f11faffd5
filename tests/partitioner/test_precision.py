"""Casts and quantisation written into partitions: types, what stays wide, names, overflow, sharing, refusals."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

import models
import partitioner
from partitioner import precision
from partitioner.errors import UnsupportedPrecision

FLOAT = ir.DataType.FLOAT
HALF = ir.DataType.FLOAT16


def whole(model, **options) -> partitioner.Partition:
    return partitioner.split(model, (), **options)[0]


def rewrite(model, kind: str, **options) -> precision.Rewritten:
    return precision.rewrite(whole(model), kind, **options)


def ops(part: partitioner.Partition) -> list[str]:
    return [node.op_type for node in part.model.graph]


def producer(part: partitioner.Partition, op: str) -> ir.Node:
    return next(node for node in part.model.graph if node.op_type == op)


def error(got: np.ndarray, expected: np.ndarray) -> float:
    scale = np.linalg.norm(expected.astype(np.float64))
    return float(np.linalg.norm(got.astype(np.float64) - expected.astype(np.float64)) / scale)


def run(harness, part: partitioner.Partition, feeds):
    return harness.run(harness.open_session(harness.onnx_bytes(part)), feeds)


@pytest.fixture
def network(build, noise):
    """Conv, norm, Relu, reduction, linear, softmax: one of each kind."""
    build.input("x", ["batch", 3, 8, 8])
    build.op("Conv", "x", build.weight("k", noise(8, 3, 3, 3) / 5), out="c", pads=[1, 1, 1, 1])
    stats = [build.weight(n, np.abs(noise(8, seed=s)) + 0.5) for s, n in enumerate(("g", "b", "m", "v"))]
    build.op("BatchNormalization", "c", *stats, out="n")
    build.op("Relu", "n", out="r")
    build.op("GlobalAveragePool", "r", out="p")
    build.op("Flatten", "p", out="f")
    build.op("Gemm", "f", build.weight("w", noise(8, 10)), build.weight("bias", noise(10)), out="l")
    build.op("Softmax", "l", out="y")
    build.output("y", ["batch", 10])
    build.output("l", ["batch", 10])
    return build.model()


# ------------------------------------------------------------------------------------------------------ casts


def test_fp32_changes_nothing(network):
    part = whole(network)
    assert precision.rewrite(part, "fp32").partition is part


def test_computing_is_narrow_and_norms_and_reductions_are_wide(network):
    part = rewrite(network, "fp16").partition
    types = {
        node.op_type: (node.inputs[0].dtype, node.outputs[0].dtype)
        for node in part.model.graph
        if node.op_type != "Cast"
    }
    assert types["Conv"] == types["Gemm"] == types["Relu"] == (HALF, HALF)
    assert types["Softmax"] == types["GlobalAveragePool"] == (FLOAT, FLOAT)
    assert "BatchNormalization" not in types  # it went into the convolution
    weights = {name: value.dtype for name, value in part.model.graph.initializers.items()}
    assert set(weights.values()) == {HALF}


def test_names_and_types_at_the_boundary_stay(network, harness, noise):
    before, after = whole(network), rewrite(network, "fp16").partition
    assert before.inputs == after.inputs
    assert before.outputs == after.outputs
    made = run(harness, after, {"x": noise(2, 3, 8, 8)})
    assert {name: array.dtype for name, array in made.items()} == {"y": np.float32, "l": np.float32}


def test_results_are_within_half_precision(network, harness, noise):
    x = noise(4, 3, 8, 8)
    expected = run(harness, whole(network), {"x": x})
    got = run(harness, rewrite(network, "fp16").partition, {"x": x})
    for name in expected:
        assert 0 < error(got[name], expected[name]) < 2e-3


def test_the_partition_it_came_from_is_unchanged(network):
    part = whole(network)
    before = ops(part), sorted(part.model.graph.initializers)
    precision.rewrite(part, "fp16")
    precision.rewrite(part, "int8", ranges={"x": (-1, 1)})
    assert (ops(part), sorted(part.model.graph.initializers)) == before


def test_the_result_is_a_valid_model_and_the_same_every_time(network, tmp_path):
    hashes = set()
    for turn in range(2):
        stored = partitioner.write_store(rewrite(network, "fp16").partition, tmp_path / str(turn))
        hashes.add(stored.graph.sha256)
        onnx.checker.check_model(tmp_path / str(turn) / f"{stored.graph.sha256}.onnx", full_check=True)
    assert len(hashes) == 1
    assert partitioner.write_store(whole(network), tmp_path / "wide").graph.sha256 not in hashes


def test_weights_take_half_the_bytes(network):
    part = rewrite(network, "fp16").partition
    numbers = 8 * 3 * 9 + 8 + 8 * 10 + 10  # kernel, folded bias, matrix, bias
    assert part.weight_bytes == 2 * numbers


def test_a_shared_weight_is_converted_once(build, noise):
    build.input("x", ["batch", 6])
    weight = build.weight("w", noise(6, 6))
    build.op("MatMul", "x", weight, out="a")
    build.op("MatMul", "a", weight, out="y")
    build.output("y", ["batch", 6])
    part = rewrite(build.model(), "fp16").partition
    assert list(part.model.graph.initializers) == ["w.float16"]
    assert ops(part).count("Cast") == 2  # the input, the output


def test_a_value_that_both_kinds_read_is_cast_once(build):
    build.input("x", ["batch", 6])
    build.op("MatMul", "x", build.weight("w", (6, 6)), out="a")
    build.op("Softmax", "a", out="s")
    build.op("ReduceMean", "a", out="m", keepdims=1)
    build.op("Mul", "s", "m", out="y")
    build.output("y", ["batch", 6])
    part = rewrite(build.model(), "fp16").partition
    casts = [node for node in part.model.graph if node.op_type == "Cast" and node.inputs[0].name == "a"]
    assert len(casts) == 1


def test_what_only_moves_a_wide_value_stays_wide(build):
    build.input("x", ["batch", 6])
    build.op("Softmax", "x", out="s")
    build.op("Reshape", "s", build.weight("shape", np.array([-1, 3])), out="r")
    build.op("MatMul", "r", build.weight("w", (3, 3)), out="y")
    build.output("y", ["n", 3])
    part = rewrite(build.model(), "fp16").partition
    assert producer(part, "Reshape").outputs[0].dtype == FLOAT
    assert producer(part, "MatMul").outputs[0].dtype == HALF


def test_scales_of_a_resize_and_indices_keep_their_types(build, harness, noise):
    build.input("x", [1, 2, 4, 4])
    build.op("Conv", "x", build.weight("k", noise(2, 2, 1, 1)), out="c")
    scales = build.weight("scales", np.array([1, 1, 2, 2], np.float32))
    build.op("Resize", "c", "", scales, out="r", mode="nearest")
    build.op("Gather", "r", build.weight("i", np.array([1])), out="y", axis=1)
    build.output("y", [1, 1, 8, 8])
    model = build.model()
    part = rewrite(model, "fp16").partition
    assert producer(part, "Resize").inputs[2].dtype == FLOAT
    x = noise(1, 2, 4, 4)
    got, expected = run(harness, part, {"x": x}), run(harness, whole(model), {"x": x})
    assert error(got["y"], expected["y"]) < 2e-3


# --------------------------------------------------------------------------------------------------- overflow


def test_a_weight_that_overflows_stays_wide_with_a_note(build, harness, noise):
    build.input("x", ["batch", 4])
    big = noise(4, 4)
    big[0, 0] = 1e6
    build.op("MatMul", "x", build.weight("big", big), out="a")
    build.op("Relu", "a", out="r")
    build.op("Softmax", "r", out="s")
    build.op("MatMul", "s", build.weight("w", noise(4, 4)), out="y")
    build.output("y", ["batch", 4])
    model = build.model()
    rewritten = rewrite(model, "fp16")
    part = rewritten.partition
    assert any("'big'" in note and "65504" in note for note in rewritten.notes)
    assert part.model.graph.initializers["big"].dtype == FLOAT
    assert producer(part, "Relu").outputs[0].dtype == FLOAT  # what may be large is not narrowed further down
    narrow = [node for node in part.model.graph if node.op_type == "MatMul" and node.outputs[0].dtype == HALF]
    assert len(narrow) == 1  # softmax made it small again
    x = noise(3, 4)
    got = run(harness, part, {"x": x})["y"]
    assert np.isfinite(got).all()
    assert error(got, run(harness, whole(model), {"x": x})["y"]) < 2e-3


def test_a_mask_of_the_least_float_stays_finite(build, harness, noise):
    """Attention masks add float32's least number; in float16 that is minus infinity."""
    build.input("x", ["batch", 4])
    build.input("mask", ["batch", 4])
    build.op("Mul", "mask", build.weight("least", np.float32(np.finfo(np.float32).min)), out="m")
    build.op("MatMul", "x", build.weight("w", noise(4, 4)), out="a")
    build.op("Add", "a", "m", out="b")
    build.op("Softmax", "b", out="y")
    build.output("y", ["batch", 4])
    part = rewrite(build.model(), "fp16").partition
    made = run(harness, part, {"x": noise(2, 4), "mask": np.ones((2, 4), np.float32)})
    assert np.isfinite(made["y"]).all()


def test_ranges_keep_wide_what_was_seen_to_overflow(build):
    build.input("x", ["batch", 4])
    build.op("MatMul", "x", build.weight("w", (4, 4)), out="a")
    build.op("MatMul", "a", build.weight("u", (4, 4)), out="y")
    build.output("y", ["batch", 4])
    rewritten = rewrite(build.model(), "fp16", ranges={"a": (-1e5, 3.0)})
    assert any("'a' was seen beyond" in note for note in rewritten.notes)
    first, second = (node for node in rewritten.partition.model.graph if node.op_type == "MatMul")
    assert first.outputs[0].dtype == FLOAT
    assert second.outputs[0].dtype == FLOAT  # it reads what may be beyond the range


def test_bfloat16_holds_what_float16_does_not(build):
    build.input("x", ["batch", 4])
    build.op("MatMul", "x", build.weight("big", np.full((4, 4), 1e6, np.float32)), out="y")
    build.output("y", ["batch", 4])
    model = build.model()
    assert rewrite(model, "fp16").notes
    assert not rewrite(model, "bf16").notes


def test_bfloat16_by_the_reference_evaluator(build, noise, harness):
    """ONNX Runtime's CPU has no bfloat16 MatMul, so ONNX's own evaluator judges."""
    build.input("x", ["batch", 8])
    build.op("MatMul", "x", build.weight("w", noise(8, 8)), out="a")
    build.op("Tanh", "a", out="y")
    build.output("y", ["batch", 8])
    model = build.model()
    part = rewrite(model, "bf16").partition
    assert producer(part, "MatMul").outputs[0].dtype == ir.DataType.BFLOAT16
    x = noise(3, 8)
    proto = onnx.load_from_string(harness.onnx_bytes(part))
    (got,) = ReferenceEvaluator(proto).run(None, {"x": x})
    assert got.dtype == np.float32
    assert 0 < error(got, run(harness, whole(model), {"x": x})["y"]) < 2e-2


def test_an_opset_without_the_type_leaves_the_op_wide_and_says_so(build, noise):
    build.input("x", [1, 3, 4, 4])
    build.op("Conv", "x", build.weight("k", noise(2, 3, 1, 1)), out="y")
    build.output("y", [1, 2, 4, 4])
    rewritten = rewrite(build.model(opset=17), "bf16")
    assert any("opset 17 has no bf16 Conv" in note for note in rewritten.notes)
    assert ops(rewritten.partition) == ["Conv"]


# ---------------------------------------------------------------------------------------------------- bodies


@pytest.mark.parametrize("name", ["tiny_if", "tiny_loop", "tiny_function"])
def test_bodies_and_functions_are_handled(name, harness):
    model = models.build(name)
    feeds = models.example_inputs(name, seed=1)
    expected = run(harness, whole(model), feeds)
    got = run(harness, rewrite(model, "fp16").partition, feeds)
    for key in expected:
        assert error(got[key], expected[key]) < 2e-3


def test_a_captured_value_is_given_to_the_body_as_it_was(build, harness, noise):
    from onnx import helper

    build.input("x", [2, 4])
    build.op("MatMul", "x", build.weight("w", noise(4, 4)), out="a")
    build.op("ReduceMean", "a", out="mean", keepdims=0)
    build.op("Greater", "mean", build.weight("zero", np.float32(0)), out="yes")
    value = helper.make_tensor_value_info("t", TensorProto.FLOAT, [2, 4])
    other = helper.make_tensor_value_info("e", TensorProto.FLOAT, [2, 4])
    then = helper.make_graph([helper.make_node("Relu", ["a"], ["t"])], "then", [], [value])
    orelse = helper.make_graph([helper.make_node("Neg", ["a"], ["e"])], "else", [], [other])
    build.op("If", "yes", out="y", then_branch=then, else_branch=orelse)
    build.output("y", [2, 4])
    model = build.model()
    part = rewrite(model, "fp16").partition
    assert producer(part, "MatMul").outputs[0].dtype == HALF
    for seed in range(4):
        x = noise(2, 4, seed=seed)
        got, expected = run(harness, part, {"x": x}), run(harness, whole(model), {"x": x})
        assert error(got["y"], expected["y"]) < 3e-3


# -------------------------------------------------------------------------------------------- narrow boundary


def test_a_boundary_can_be_narrow_on_both_sides(network, harness, noise):
    chain = partitioner.analyze(network, {"x": (1, 3, 8, 8)})
    (cut,) = partitioner.balance(chain, 2)
    first, second = partitioner.split(network, (cut,))
    crossing = {spec.name for spec in first.outputs} & {spec.name for spec in second.inputs}
    x = noise(2, 3, 8, 8)
    expected = run(harness, whole(network), {"x": x})
    parts = [precision.rewrite(part, "fp16", narrow=crossing).partition for part in (first, second)]
    values = {"x": x}
    for part in parts:
        values |= run(harness, part, values)
    for name in crossing:
        assert values[name].dtype == np.float16
        assert {spec.dtype for spec in parts[0].outputs if spec.name == name} == {"float16"}
    for name in expected:
        assert values[name].dtype == np.float32
        assert error(values[name], expected[name]) < 3e-3


# ----------------------------------------------------------------------------------------------- quantisation


def calibrated(harness, part: partitioner.Partition, batches) -> dict[str, tuple[float, float]]:
    observer = precision.Observer()
    instrumented = precision.instrument(part)
    for feeds in batches:
        observer.add(feeds)
        observer.add(run(harness, instrumented, feeds))
    return observer.ranges


def test_instrumenting_hands_out_what_has_to_be_seen(network, harness, noise):
    part = whole(network)
    assert precision.observed_tensors(part) == ("x", "f")
    made = run(harness, precision.instrument(part), {"x": noise(1, 3, 8, 8)})
    assert set(made) == {"y", "l", "f"}


def test_int8_is_close_and_symmetric_and_per_channel(network, harness, noise):
    part = whole(network)
    ranges = calibrated(harness, part, [{"x": noise(8, 3, 8, 8, seed=seed)} for seed in range(4)])
    rewritten = precision.rewrite(part, "int8", ranges=ranges)
    graph = rewritten.partition.model.graph
    assert not rewritten.notes
    for name, value in graph.initializers.items():
        if ".zero" in name:
            assert value.dtype == ir.DataType.INT8
            assert not value.const_value.numpy().any()  # symmetric: TensorRT takes nothing else
    assert graph.initializers["n.weight.int8"].const_value.numpy().dtype == np.int8
    assert graph.initializers["n.weight.scale"].const_value.numpy().shape == (8,)
    assert graph.initializers["w.scale"].const_value.numpy().shape == (10,)
    x = noise(4, 3, 8, 8, seed=9)
    got, expected = run(harness, rewritten.partition, {"x": x}), run(harness, part, {"x": x})
    assert 0 < error(got["l"], expected["l"]) < 0.03
    assert (got["l"].argmax(1) == expected["l"].argmax(1)).all()
    for op in ("Softmax", "GlobalAveragePool"):
        assert producer(rewritten.partition, op).inputs[0].dtype == FLOAT


def test_every_weight_is_within_half_a_step(network):
    part = whole(network)
    original = part.model.graph.initializers["w"].const_value.numpy()
    graph = precision.rewrite(part, "int8", ranges={"x": (-3, 3), "f": (0, 3)}).partition.model.graph
    steps = graph.initializers["w.scale"].const_value.numpy()
    held = graph.initializers["w.int8"].const_value.numpy()
    assert np.abs(held * steps - original).max() <= steps.max() / 2 * 1.0001
    assert np.abs(held).max(0).tolist() == [127] * 10


def test_a_tensor_without_a_range_stays_wide_and_is_named(network):
    rewritten = rewrite(network, "int8", ranges={"x": (-3.0, 3.0)})
    assert rewritten.notes == ("Gemm 'n_l' stays wide: there is no range for its input 'f'",)
    assert ops(rewritten.partition).count("QuantizeLinear") == 1


@pytest.mark.parametrize("range_", [(np.nan, 1.0), (-np.inf, 1.0), (2.0, 1.0)])
def test_a_range_that_makes_no_sense_leaves_the_op_wide(network, range_):
    rewritten = rewrite(network, "int8", ranges={"x": range_, "f": (0.0, 1.0)})
    assert len(rewritten.notes) == 1
    assert "the range of 'x' is" in rewritten.notes[0]


def test_channels_and_tensors_of_zeros(build, harness, noise):
    weight = noise(4, 3)
    weight[:, 1] = 0
    build.input("x", ["batch", 4])
    build.op("MatMul", "x", build.weight("w", weight), out="y")
    build.output("y", ["batch", 3])
    part = rewrite(build.model(), "int8", ranges={"x": (0.0, 0.0)}).partition
    made = run(harness, part, {"x": np.zeros((2, 4), np.float32)})
    assert not made["y"].any()


def test_a_value_read_twice_is_quantised_once_and_a_weight_stored_once(build, noise):
    build.input("x", ["batch", 4])
    weight = build.weight("w", noise(4, 4))
    build.op("MatMul", "x", weight, out="a")
    build.op("MatMul", "x", weight, out="b")
    build.op("Add", "a", "b", out="y")
    build.output("y", ["batch", 4])
    part = rewrite(build.model(), "int8", ranges={"x": (-1.0, 1.0)}).partition
    assert ops(part).count("QuantizeLinear") == 1
    assert sum(name.startswith("w") and name.endswith("int8") for name in part.model.graph.initializers) == 1


def test_fp8_where_the_opset_has_it(build, harness, noise):
    build.input("x", ["batch", 8])
    build.op("MatMul", "x", build.weight("w", noise(8, 8)), out="y")
    build.output("y", ["batch", 8])
    model = build.model(opset=19)
    part = rewrite(model, "fp8", ranges={"x": (-4.0, 4.0)}).partition
    assert ir.DataType.FLOAT8E4M3FN in {value.dtype for value in part.model.graph.initializers.values()}
    x = noise(16, 8)
    got, expected = run(harness, part, {"x": x}), run(harness, whole(model), {"x": x})
    assert 0 < error(got["y"], expected["y"]) < 0.06


# -------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("fp12", {}, "'fp12' is unknown"),
        ("int8", {}, "none was given"),
        ("fp8", {"ranges": {"x": (0.0, 1.0)}}, "needs ONNX opset 19"),
        ("int8", {"ranges": {"x": (0.0, 1.0)}, "narrow": {"y"}}, "cannot narrow what crosses"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(network, kind, options, words):
    with pytest.raises(UnsupportedPrecision, match=words) as caught:
        rewrite(network, kind, **options)
    assert caught.value.hint


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_a_model_that_is_float16_already_runs_on(kind, harness):
    model = models.build("tiny_float16")
    feeds = models.example_inputs("tiny_float16", seed=1)
    expected = run(harness, whole(model), feeds)
    got = run(harness, rewrite(model, kind).partition, feeds)
    for name in expected:
        np.testing.assert_array_equal(got[name], expected[name])


@pytest.mark.parametrize("name", [name for name in models.NAMES if name.startswith("tiny_")])
def test_every_tiny_network_in_parts(name, harness):
    """Cut in two, each part rewritten by itself, chained: what a deployment does."""
    model = models.build(name)
    feeds = models.example_inputs(name, seed=1)
    chain = partitioner.analyze(model, {key: array.shape for key, array in feeds.items() if array.size})
    cuts = partitioner.balance(chain, 2) if len(chain.blocks) > 1 else ()
    expected = run(harness, whole(model), feeds)
    values = dict(feeds)
    for part in partitioner.split(model, cuts):
        after = precision.rewrite(part, "fp16").partition
        assert (after.inputs, after.outputs) == (part.inputs, part.outputs)
        values |= run(harness, after, values)
    for key, array in expected.items():
        if array.dtype.kind == "f":
            assert error(values[key], array) < 4e-3
        else:
            np.testing.assert_array_equal(values[key], array)


# ---------------------------------------------------------------------------------------------------- folding


def norm_after_conv(build, noise, *, bias: bool, kernel: str | None = None, source: str = "x", tag: str = ""):
    inputs = [source, kernel or build.weight(f"k{tag}", noise(4, 3, 1, 1))]
    if bias:
        inputs.append(build.weight(f"kb{tag}", noise(4)))
    build.op("Conv", *inputs, out=f"c{tag}")
    stats = [build.weight(f"{n}{tag}", np.abs(noise(4, seed=s)) + 0.5) for s, n in enumerate("gbmv")]
    return build.op("BatchNormalization", f"c{tag}", *stats, out=f"n{tag}", epsilon=1e-2)


@pytest.mark.parametrize("bias", [False, True])
def test_a_norm_goes_into_the_convolution_before_it(bias, build, noise, harness):
    build.input("x", [2, 3, 4, 4])
    norm_after_conv(build, noise, bias=bias)
    build.output("n", [2, 4, 4, 4])
    model = build.model()
    part = rewrite(model, "fp16").partition
    assert [op for op in ops(part) if op != "Cast"] == ["Conv"]
    x = noise(2, 3, 4, 4)
    assert error(run(harness, part, {"x": x})["n"], run(harness, whole(model), {"x": x})["n"]) < 2e-3


def test_a_convolution_that_somebody_else_reads_keeps_its_norm(build, noise, harness):
    build.input("x", [2, 3, 4, 4])
    norm_after_conv(build, noise, bias=False)
    build.op("Add", "n", "c", out="y")
    build.output("y", [2, 4, 4, 4])
    model = build.model()
    part = rewrite(model, "fp16").partition
    assert "BatchNormalization" in ops(part)
    x = noise(2, 3, 4, 4)
    assert error(run(harness, part, {"x": x})["y"], run(harness, whole(model), {"x": x})["y"]) < 2e-3


def test_a_convolution_that_is_an_output_keeps_its_norm(build, noise, harness):
    build.input("x", [2, 3, 4, 4])
    norm_after_conv(build, noise, bias=False)
    build.output("n", [2, 4, 4, 4])
    build.output("c", [2, 4, 4, 4])
    model = build.model()
    x = noise(2, 3, 4, 4)
    got, expected = (
        run(harness, rewrite(model, "fp16").partition, {"x": x}),
        run(harness, whole(model), {"x": x}),
    )
    for name in ("n", "c"):
        assert error(got[name], expected[name]) < 2e-3


def test_convolutions_that_share_a_kernel_get_their_own(build, noise, harness):
    build.input("x", [2, 3, 4, 4])
    kernel = build.weight("shared", noise(4, 3, 1, 1))
    norm_after_conv(build, noise, bias=False, kernel=kernel, tag="1")
    build.op("Conv", "x", kernel, out="plain")
    build.op("Add", "n1", "plain", out="y")
    build.output("y", [2, 4, 4, 4])
    model = build.model()
    x = noise(2, 3, 4, 4)
    for kind, options, bound in (("fp16", {}, 2e-3), ("int8", {"ranges": {"x": (-4.0, 4.0)}}, 0.05)):
        part = rewrite(model, kind, **options).partition
        got, expected = run(harness, part, {"x": x}), run(harness, whole(model), {"x": x})
        assert error(got["y"], expected["y"]) < bound
