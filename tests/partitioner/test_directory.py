import errno
import hashlib
import json
import subprocess
import sys

import numpy as np
import onnx
import pytest

import partitioner
from partitioner.errors import OutputExists, WriteFailed

RUNNER = """
import json, sys
import numpy as np
import onnxruntime

folder, inputs, outputs = sys.argv[1:]
manifest = json.load(open(f"{folder}/manifest.json"))
values = dict(np.load(inputs))
options = onnxruntime.SessionOptions()
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
options.intra_op_num_threads = 1
for part in manifest["partitions"]:
    session = onnxruntime.InferenceSession(f"{folder}/{part['file']}", options)
    names = [tensor["name"] for tensor in part["outputs"]]
    feeds = {tensor["name"]: values[tensor["name"]] for tensor in part["inputs"]}
    values.update(zip(names, session.run(names, feeds)))
np.savez(outputs, **{tensor["name"]: values[tensor["name"]] for tensor in manifest["outputs"]})
"""


@pytest.fixture
def model(build):
    build.input("x", ["N", 200])
    build.input("late", ["N", 1])
    build.weight("w", (200, 200))
    build.op("MatMul", "x", "w", out="a")
    build.op("Relu", "a", out="b")
    build.op("MatMul", "b", "w", out="c")
    build.op("Add", "c", "late", out="y")
    build.output("y", ["N", 200])
    build.output("a", ["N", 200])
    build.output("late", ["N", 1])
    return build.model()


def write(model, folder, positions=(2,), **options):
    chain = partitioner.analyze(model)
    return partitioner.write_directory(partitioner.split(model, positions), chain, folder, **options)


def test_manifest(model, tmp_path):
    manifest = write(model, tmp_path / "out")
    assert manifest == json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["model"] == "tiny"
    assert manifest["inputs"] == [
        {"name": "x", "dtype": "float32", "shape": ["N", 200]},
        {"name": "late", "dtype": "float32", "shape": ["N", 1]},
    ]
    assert [tensor["name"] for tensor in manifest["outputs"]] == ["y", "a", "late"]
    first, second = manifest["partitions"]
    assert [first["file"], second["file"]] == ["partition_00.onnx", "partition_01.onnx"]
    assert [t["name"] for t in first["inputs"]] == ["x"]
    assert [t["name"] for t in first["outputs"]] == ["a", "b"]
    assert {t["name"] for t in second["inputs"]} == {"b", "late"}
    assert [t["name"] for t in second["outputs"]] == ["y"]
    assert [part["precision"] for part in manifest["partitions"]] == ["fp32", "fp32"]
    for part in manifest["partitions"]:
        content = (tmp_path / "out" / part["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == part["sha256"]
        onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "manifest.json",
        "partition_00.onnx",
        "partition_01.onnx",
    ]


def test_the_manifest_says_what_partitions_compute_in(model, tmp_path):
    manifest = write(model, tmp_path / "out", precision="fp16")
    assert {part["precision"] for part in manifest["partitions"]} == {"fp16"}


@pytest.mark.parametrize("embed_up_to", [1 << 30, 1000])
def test_chained_by_a_script_that_knows_only_onnxruntime(model, tmp_path, harness, embed_up_to):
    manifest = write(model, tmp_path / "out", (1, 3), embed_up_to=embed_up_to)
    assert ("data" in manifest["partitions"][0]) == (embed_up_to == 1000)
    rng = np.random.default_rng(0)
    feeds = {
        "x": rng.normal(size=(3, 200)).astype(np.float32),
        "late": rng.normal(size=(3, 1)).astype(np.float32),
    }
    np.savez(tmp_path / "in.npz", **feeds)
    script = tmp_path / "runner.py"
    script.write_text(RUNNER)
    assert len(RUNNER.strip().splitlines()) <= 20
    subprocess.run(
        [sys.executable, script, tmp_path / "out", tmp_path / "in.npz", tmp_path / "out.npz"],
        check=True,
        timeout=60,
    )
    whole = harness.run(harness.open_session(model), feeds)
    with np.load(tmp_path / "out.npz") as values:
        assert {name: values[name].tobytes() for name in values} == {n: whole[n].tobytes() for n in whole}


def test_replaces_its_own_and_refuses_others(model, tmp_path):
    out = tmp_path / "out"
    write(model, out, (1, 2, 3))
    write(model, out, (2,))
    assert not (out / "partition_03.onnx").exists()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputExists, match=r"'notes\.txt'"):
        write(model, out)
    assert (out / "notes.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    write(model, tmp_path / "empty")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputExists, match="is a file"):
        write(model, tmp_path / "file")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "model.onnx").write_text("mine")
    with pytest.raises(OutputExists, match=r"model\.onnx"):
        write(model, tmp_path / "plain")


def test_full_disk_leaves_what_was_there(model, tmp_path, no_large_files):
    out = tmp_path / "out"
    write(model, out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    with no_large_files(), pytest.raises(WriteFailed, match="File too large"):
        write(model, out, (1, 2))
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_no_permission(model, tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("partitioner.directory.tempfile.mkdtemp", refuse)
    with pytest.raises(WriteFailed, match="Permission denied"):
        write(model, tmp_path / "out")


def test_frozen_shapes_reach_the_manifest(model, tmp_path):
    shapes = {"x": (2, 200), "late": (2, 1)}
    parts = partitioner.split(model, [2], input_shapes=shapes)
    manifest = partitioner.write_directory(parts, partitioner.analyze(model), tmp_path / "out")
    assert [tensor["shape"] for tensor in manifest["inputs"]] == [[2, 200], [2, 1]]
    assert all(
        isinstance(d, int)
        for p in manifest["partitions"]
        for t in p["inputs"] + p["outputs"]
        for d in t["shape"]
    )
