"""int8 where it wins and float16 elsewhere: which op runs in what, and how far the results are from float32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import models
import partitioner
from partitioner import precision
from tests.partitioner.test_precision import error, run, whole

FLOAT, HALF, INT8 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT8
KIND = "int8-fp16"


@pytest.fixture
def network(build, noise):
    """A deep convolution, a depthwise one, a product of two variables, a norm, a linear layer and a softmax."""
    build.input("x", ["batch", 16, 8, 8])
    build.op("Conv", "x", build.weight("deep", noise(16, 16, 3, 3) / 12), out="c", pads=[1] * 4)
    build.op("Relu", "c", out="r")
    depthwise = build.weight("thin", noise(16, 1, 3, 3) / 3)
    build.op("Conv", "r", depthwise, out="d", group=16, pads=[1] * 4)
    build.op("MatMul", "d", "d", out="p")
    build.op("Flatten", "p", out="f")
    build.op("LayerNormalization", "f", build.weight("s", np.ones(1024, np.float32)), out="n")
    build.op("Gemm", "n", build.weight("w", noise(1024, 10) / 32), build.weight("bias", noise(10)), out="l")
    build.op("Softmax", "l", out="y")
    build.output("y", ["batch", 10])
    build.output("l", ["batch", 10])
    return build.model()


def ranges_of(harness, part, feeds):
    observer = precision.Observer()
    for each in feeds:
        observer.add(each)
        observer.add(run(harness, precision.instrument(part), each))
    return observer.ranges


def feeds_of(noise, count: int = 4):
    return [{"x": noise(2, 16, 8, 8, seed=seed)} for seed in range(count)]


def test_each_op_runs_in_what_suits_it(network, harness, noise):
    part = whole(network)
    made = precision.rewrite(part, KIND, ranges=ranges_of(harness, part, feeds_of(noise))).partition
    by_name = {node.name: node for node in made.model.graph}
    deep, thin, both = by_name["n_c"], by_name["n_d"], by_name["n_p"]
    for node in (deep, next(n for n in made.model.graph if n.op_type == "Gemm")):
        assert [value.producer().op_type for value in node.inputs[:2]] == ["DequantizeLinear"] * 2
        assert node.inputs[1].producer().inputs[0].dtype == INT8
    assert {value.dtype for value in (*thin.inputs, *thin.outputs)} == {HALF}
    assert {value.dtype for value in (*both.inputs, *both.outputs)} == {HALF}
    for kind in ("LayerNormalization", "Softmax"):
        node = next(n for n in made.model.graph if n.op_type == kind)
        assert (node.inputs[0].dtype, node.outputs[0].dtype) == (FLOAT, FLOAT)
    assert [spec.dtype for spec in made.outputs] == ["float32", "float32"]
    assert made.weight_bytes < 0.33 * part.weight_bytes


def test_results_lie_between_those_of_half_and_what_int8_allows(network, harness, noise):
    part, feeds = whole(network), feeds_of(noise)
    ranges = ranges_of(harness, part, feeds)
    exact = run(harness, part, feeds[0])["l"]
    off = {
        kind: error(
            run(harness, precision.rewrite(part, kind, ranges=ranges).partition, feeds[0])["l"], exact
        )
        for kind in ("fp16", KIND)
    }
    assert off["fp16"] < 5e-3
    assert off["fp16"] < off[KIND] < 0.03


def test_an_op_without_a_range_is_half_and_says_so(network, noise, harness):
    part = whole(network)
    ranges = {name: found for name, found in ranges_of(harness, part, feeds_of(noise)).items() if name != "x"}
    made = precision.rewrite(part, KIND, ranges=ranges)
    deep = next(node for node in made.partition.model.graph if node.name == "n_c")
    assert {value.dtype for value in deep.inputs} == {HALF}
    assert made.notes[0] == "Conv 'n_c' stays fp16: there is no range for its input 'x'"


def test_a_weight_beyond_half_does_not_overflow(build, noise, harness):
    build.input("x", ["batch", 64])
    build.op("MatMul", "x", build.weight("w", noise(64, 8) * 1e6), out="m")
    build.op("Relu", "m", out="y")
    build.output("y", ["batch", 8])
    part = whole(build.model())
    feeds = {"x": noise(4, 64)}
    made = precision.rewrite(part, KIND, ranges={"x": (-4.0, 4.0)}).partition
    got, exact = run(harness, made, feeds)["y"], run(harness, part, feeds)["y"]
    assert np.isfinite(got).all()
    assert error(got, exact) < 0.03


@pytest.mark.parametrize("name", [name for name in models.NAMES if models.describe(name).kind == "tiny"])
def test_every_tiny_network_in_parts(name, harness):
    model, feeds = models.build(name), models.example_inputs(name)
    chain = partitioner.analyze(model, {key: array.shape for key, array in feeds.items()})
    count = min(3, len(chain.blocks))
    parts = partitioner.split(model, partitioner.balance(chain, count))
    values, wide = dict(feeds), dict(feeds)
    observer = precision.Observer()
    observer.add(feeds)
    for part in parts:
        observer.add(run(harness, precision.instrument(part), {s.name: wide[s.name] for s in part.inputs}))
        wide |= run(harness, part, {s.name: wide[s.name] for s in part.inputs})
    for part in parts:
        if not observer.ranges:
            return
        made = precision.rewrite(part, KIND, ranges=observer.ranges).partition
        values |= run(harness, made, {s.name: values[s.name] for s in part.inputs})
    for spec in chain.outputs:
        got, exact = values[spec.name], wide[spec.name]
        assert (got.dtype, got.shape) == (exact.dtype, exact.shape)
        if exact.dtype.kind == "f":
            assert error(got, exact) < 0.1, spec.name
