"""Precision in a deployment: per device from the cluster file, partitions by content, ranges measured once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import models
import partitioner
from defer import precision
from defer.documents.cluster import loads_cluster
from defer.errors import InvalidCluster, UnsupportedOp
from defer.parts import bound_inputs, write_parts
from defer.translating import translate
from node_agent.engines import engine_named
from node_agent.engines.base import Partition
from node_agent.samples import samples

CLUSTER = """
[[device]]
name = "jetson"
address = "127.0.0.1:7700"
precision = "{jetson}"

[[device]]
name = "pi"
address = "127.0.0.1:7710"
"""


def cluster(jetson: str = "fp16"):
    return loads_cluster(CLUSTER.format(jetson=jetson))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return models.save("tiny_residual", tmp_path / "m.onnx")


@pytest.fixture
def chain(model: Path) -> partitioner.BlockChain:
    shapes = {key: array.shape for key, array in models.example_inputs("tiny_residual").items()}
    return partitioner.analyze(model, shapes)


def run(parts, feeds):
    values = dict(feeds)
    for written in parts:
        part = written.part
        session = engine_named("onnxruntime-cpu").load(
            Partition(written.files[part.graph], part.inputs, part.outputs)
        )
        values |= session.run({spec.name: values[spec.name] for spec in part.inputs})
        session.close()
    return values


def test_each_device_has_its_own_and_the_model_is_the_default():
    assert precision.precisions_of(cluster(), ["pi", "jetson", "pi"]) == ("fp32", "fp16", "fp32")


def test_an_unknown_precision_is_refused_where_it_stands():
    with pytest.raises(InvalidCluster, match="fp12") as caught:
        cluster("fp12")
    assert "precision" in str(caught.value) + caught.value.where


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_one_partition_narrow_and_one_wide(kind, model, chain, tmp_path):
    (cut,) = partitioner.balance(chain, 2)
    ranges = precision.ranges_for([kind], model, chain, tmp_path / "work")
    assert (ranges is None) == (kind == "fp16")
    wide = write_parts(model, chain, (cut,), tmp_path / "a")
    mixed = write_parts(model, chain, (cut,), tmp_path / "a", (kind, "fp32"), ranges)
    assert mixed[0].part.graph != wide[0].part.graph
    assert mixed[1].part == wide[1].part  # the other partition is the same file
    assert mixed[0].part.inputs == wide[0].part.inputs
    assert mixed[0].part.outputs == wide[0].part.outputs
    assert mixed[0].part.warm_up == wide[0].part.warm_up
    feeds = samples(bound_inputs(chain), 3)
    got, expected = run(mixed, feeds), run(wide, feeds)
    for spec in chain.outputs:
        size = np.linalg.norm(expected[spec.name])
        error = np.linalg.norm(got[spec.name] - expected[spec.name]) / size
        assert 0 < error < (4e-3 if kind == "fp16" else 0.1)


def test_two_narrow_partitions_are_warmed_up_with_what_crosses(model, chain, tmp_path):
    (cut,) = partitioner.balance(chain, 2)
    wide = write_parts(model, chain, (cut,), tmp_path / "a")
    narrow = write_parts(model, chain, (cut,), tmp_path / "a", ("fp16", "fp16"))
    for specs in (narrow[1].part.inputs, narrow[1].part.warm_up):
        assert {spec.dtype for spec in specs} == {"float16"}
    assert [spec.shape for spec in narrow[1].part.warm_up] == [spec.shape for spec in wide[1].part.warm_up]
    assert narrow[0].part.warm_up == wide[0].part.warm_up
    assert narrow[1].part.outputs == wide[1].part.outputs
    feeds = samples(bound_inputs(chain), 3)
    got, expected = run(narrow, feeds), run(wide, feeds)
    for spec in chain.outputs:
        size = np.linalg.norm(expected[spec.name])
        assert 0 < np.linalg.norm(got[spec.name] - expected[spec.name]) / size < 4e-3


def test_the_same_precision_gives_the_same_files(model, chain, tmp_path):
    first = write_parts(model, chain, (), tmp_path / "a", ("fp16",))
    second = write_parts(model, chain, (), tmp_path / "b", ("fp16",))
    assert [part.part for part in first] == [part.part for part in second]


def test_ranges_are_measured_once(model, chain, tmp_path, monkeypatch):
    first = precision.ranges_for(["int8"], model, chain, tmp_path)
    monkeypatch.setattr(precision, "observe", lambda *_: pytest.fail("measured again"))
    assert precision.ranges_for(["int8"], model, chain, tmp_path) == first
    assert all(low <= high for low, high in first.values())
    assert "input" in first


def test_ranges_come_from_the_users_own_requests(model, chain, tmp_path):
    (spec,) = bound_inputs(chain)
    small = tmp_path / "small.npz"
    np.savez(small, **{spec.name: np.full((2, *spec.shape), 0.25, np.float32)})
    ranges = precision.ranges_for(["int8"], model, chain, tmp_path / "w", small)
    assert ranges[spec.name] == (0.25, 0.25)


def test_a_precision_that_the_model_cannot_have_is_one_clear_error(model, chain, tmp_path):
    with pytest.raises(partitioner.PartitionerError) as caught:
        write_parts(model, chain, (), tmp_path, ("fp8",), {"input": (0.0, 1.0)})
    error = translate(caught.value)
    assert isinstance(error, UnsupportedOp)
    assert error.exit_code == 65
    assert "opset 19" in error.message


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_the_verb_writes_partitions_that_chain(kind, model, tmp_path):
    import json

    import onnxruntime
    from click.testing import CliRunner

    from defer.cli import group

    folder = tmp_path / "parts"
    arguments = ["partition", str(model), "--parts", "2", "--precision", kind, "-o", str(folder), "--json"]
    done = CliRunner().invoke(group, arguments)
    assert done.exit_code == 0, done.output
    manifest = json.loads((folder / "manifest.json").read_text())
    feeds = models.example_inputs("tiny_residual", seed=2)
    values = dict(feeds)
    for part in manifest["partitions"]:
        session = onnxruntime.InferenceSession(str(folder / part["file"]), providers=["CPUExecutionProvider"])
        names = [output["name"] for output in part["outputs"]]
        given = {each["name"]: values[each["name"]] for each in part["inputs"]}
        values |= dict(zip(names, session.run(names, given), strict=True))
    whole = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    for output in whole.get_outputs():
        (expected,) = whole.run([output.name], feeds)
        error = np.linalg.norm(values[output.name] - expected) / np.linalg.norm(expected)
        assert 0 < error < (4e-3 if kind == "fp16" else 0.15)
