"""Narrow partitions exchange narrow tensors: which, that nothing changes by it, and what keeps them wide."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

import models
import partitioner
from partitioner import precision

HALF = "float16"


def parts_of(name: str, tmp_path, cuts=None):
    path = models.save(name, tmp_path / f"{name}.onnx")
    feeds = models.example_inputs(name)
    chain = partitioner.analyze(path, {key: array.shape for key, array in feeds.items()})
    cuts = cuts or partitioner.balance(chain, 3)
    return partitioner.split(path, cuts), [spec.name for spec in chain.outputs], feeds


def outcome(harness, rewritten, feeds):
    """By ONNX's own evaluator, which computes what is written; runtimes leave casts out where they can."""
    values = dict(feeds)
    for each in rewritten:
        session = ReferenceEvaluator(onnx.load_from_string(harness.onnx_bytes(each.partition)))
        made = session.run(None, {spec.name: values[spec.name] for spec in each.partition.inputs})
        values |= dict(zip(session.output_names, made, strict=True))
    return values


def types(rewritten):
    return {
        spec.name: spec.dtype
        for each in rewritten
        for spec in (*each.partition.inputs, *each.partition.outputs)
    }


@pytest.mark.parametrize(
    "name", ["tiny_chain", "tiny_residual", "tiny_diamond", "tiny_early_output", "tiny_shared_weight"]
)
def test_results_are_bit_for_bit_those_with_casts(name, tmp_path, harness):
    parts, outputs, feeds = parts_of(name, tmp_path)
    kinds = ["fp16"] * len(parts)
    narrow = precision.rewrite_chain(parts, kinds, keep=outputs)
    wide = [precision.rewrite(part, "fp16") for part in parts]
    got, expected = outcome(harness, narrow, feeds), outcome(harness, wide, feeds)
    for output in outputs:
        assert got[output].dtype == expected[output].dtype == np.float32
        np.testing.assert_array_equal(got[output], expected[output])
    crossed = {spec.name for part in parts[1:] for spec in part.inputs} - set(feeds) - set(outputs)
    assert {types(narrow)[key] for key in crossed & precision.crossing(parts, wide, kinds)} <= {HALF}
    for key in crossed - precision.crossing(parts, wide, kinds):
        assert types(narrow)[key] == "float32"


def test_half_the_bytes_cross_and_the_casts_are_gone(tmp_path):
    parts, outputs, _ = parts_of("tiny_residual", tmp_path)
    wide = [precision.rewrite(part, "fp16") for part in parts]
    narrow = precision.rewrite_chain(parts, ["fp16"] * len(parts), keep=outputs)
    assert precision.crossing(parts, wide, ["fp16"] * len(parts))

    def casts(each):
        return sum(node.op_type == "Cast" for part in each for node in part.partition.model.graph)

    assert casts(narrow) < casts(wide)


@pytest.mark.parametrize(
    "kinds",
    [
        ("fp16", "fp32"),
        ("fp32", "fp16"),
        ("fp16", "bf16"),
        ("fp32", "fp32"),
        ("fp16", "int8"),
        ("int8-fp16", "int8-fp16"),
    ],
)
def test_a_boundary_is_narrow_only_between_two_of_one_narrow_kind(kinds, tmp_path):
    parts, outputs, _ = parts_of("tiny_chain", tmp_path)
    parts = parts[:2]
    ranges = {name: (-10.0, 10.0) for part in parts for name in precision.observed_tensors(part)}
    rewritten = precision.rewrite_chain(parts, kinds, ranges=ranges, keep=outputs)
    assert set(types(rewritten).values()) == {"float32"}


def test_one_wide_reader_keeps_it_wide_for_all(tmp_path):
    parts, outputs, _ = parts_of("tiny_residual", tmp_path)
    count: dict[str, int] = {}
    for part in parts:
        for spec in part.inputs:
            count[spec.name] = count.get(spec.name, 0) + 1
    kinds = ["fp16"] * (len(parts) - 1) + ["fp32"]
    rewritten = precision.rewrite_chain(parts, kinds, keep=outputs)
    for spec in parts[-1].inputs:
        assert types(rewritten)[spec.name] == spec.dtype


def test_the_models_own_outputs_keep_their_type_also_where_they_are_read_again(tmp_path):
    parts, outputs, _ = parts_of("tiny_early_output", tmp_path)
    rewritten = precision.rewrite_chain(parts, ["fp16"] * len(parts), keep=outputs)
    assert {types(rewritten)[name] for name in outputs} == {"float32"}


def test_what_is_wide_inside_its_maker_stays_wide(build, noise):
    build.input("x", ["batch", 8])
    build.op("MatMul", "x", build.weight("w", noise(8, 8)), out="a")
    build.op("Softmax", "a", out="s")
    build.op("MatMul", "s", build.weight("v", noise(8, 8)), out="y")
    build.output("y", ["batch", 8])
    parts = partitioner.split(build.model(), (2,))
    rewritten = precision.rewrite_chain(parts, ["fp16", "fp16"], keep=["y"])
    assert types(rewritten)["s"] == "float32"
    parts = partitioner.split(build.model(), (1,))
    rewritten = precision.rewrite_chain(parts, ["fp16", "fp16"], keep=["y"])
    assert types(rewritten)["a"] == HALF


def test_the_manifest_says_the_type_that_crosses(tmp_path):
    parts, outputs, feeds = parts_of("tiny_chain", tmp_path)
    chain = partitioner.analyze(
        tmp_path / "tiny_chain.onnx", {key: array.shape for key, array in feeds.items()}
    )
    rewritten = precision.rewrite_chain(parts, ["fp16"] * len(parts), keep=outputs)
    manifest = partitioner.write_directory([each.partition for each in rewritten], chain, tmp_path / "out")
    told = {
        each["name"]: each["dtype"]
        for part in manifest["partitions"]
        for each in (*part["inputs"], *part["outputs"])
    }
    assert told == types(rewritten)
    assert HALF in told.values()
    for each in manifest["partitions"]:
        onnx.checker.check_model(str(tmp_path / "out" / each["file"]))


def test_a_body_that_wants_it_wide_keeps_all_of_them(build, noise, monkeypatch):
    from partitioner.errors import UnsupportedOp
    from partitioner.precision import boundaries

    build.input("x", ["batch", 8])
    build.op("MatMul", "x", build.weight("w", noise(8, 8)), out="a")
    build.op("MatMul", "a", build.weight("v", noise(8, 8)), out="y")
    build.output("y", ["batch", 8])
    parts = partitioner.split(build.model(), (1,))
    real = boundaries.rewrite

    def refuses(part, name, *, ranges=None, narrow=()):
        if narrow:
            raise UnsupportedOp("a body hands it out")
        return real(part, name, ranges=ranges)

    monkeypatch.setattr(boundaries, "rewrite", refuses)
    rewritten = precision.rewrite_chain(parts, ["fp16", "fp16"], keep=["y"])
    assert types(rewritten)["a"] == "float32"
    assert rewritten[0].partition.model.graph.outputs[0].dtype == ir.DataType.FLOAT
