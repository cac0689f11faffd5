import hashlib

import numpy as np
import onnx
import pytest

import partitioner
from partitioner import writing
from partitioner.errors import WriteFailed


@pytest.fixture
def model(build):
    build.input("x", ["N", 200])
    build.weight("w", (200, 200))
    build.op("MatMul", "x", "w", out="a")
    build.op("Relu", "a", out="b")
    build.op("MatMul", "b", "w", out="c")
    build.op("Add", "c", build.weight("bias", (200,)), out="y")
    build.output("y", ["N", 200])
    return build.model()


def test_loads_by_path_and_equals_the_whole(model, chained, noise, tmp_path):
    chained(model, {"x": noise(3, 200)}, folder=tmp_path / "store")


def test_files_are_named_by_content_and_written_once(model, tmp_path):
    parts = partitioner.split(model, [2])
    first, second = (partitioner.write_store(part, tmp_path) for part in parts)
    assert first.weights == second.weights  # the shared one; the bias is small and stays in the graph
    assert first.weights[0].nbytes == 160000
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3
    for file in files:
        assert hashlib.sha256(file.read_bytes()).hexdigest() == file.stem
    raw = (tmp_path / f"{first.weights[0].sha256}.bin").read_bytes()
    assert raw == model.graph.initializer[0].raw_data
    stamps = [file.stat().st_mtime_ns for file in files]
    again = [partitioner.write_store(part, tmp_path) for part in partitioner.split(model, [2])]
    assert again == [first, second]
    assert stamps == [file.stat().st_mtime_ns for file in files]


def test_same_partition_of_another_plan_is_the_same_file(model, tmp_path):
    middle = partitioner.split(model, [1, 3])[1]
    same = partitioner.split(model, [1, 3])[1]
    last = partitioner.split(model, [2, 3])[2]
    other = partitioner.split(model, [1, 3])[2]
    assert partitioner.write_store(middle, tmp_path) == partitioner.write_store(same, tmp_path)
    assert partitioner.write_store(last, tmp_path) == partitioner.write_store(other, tmp_path)


def test_bytes_do_not_depend_on_how_the_model_came(model, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    from_path = [partitioner.write_store(part, tmp_path / "a") for part in partitioner.split(path, [2])]
    in_memory = [partitioner.write_store(part, tmp_path / "b") for part in partitioner.split(model, [2])]
    assert from_path == in_memory


def test_four_bit_weights(build, tmp_path, harness):
    build.input("x", ["N", 512])
    codes = np.random.default_rng(0).integers(-8, 8, (512, 512))
    build.weights.append(
        onnx.helper.make_tensor("w", onnx.TensorProto.INT4, [512, 512], codes.ravel().tolist())
    )
    build.weight("s", np.float32(0.1))
    build.op("DequantizeLinear", "w", "s", out="wd")
    build.op("MatMul", "x", "wd", out="a")
    build.op("Relu", "a", out="y")
    build.output("y", ["N", 512])
    model = build.model(opset=21, ir_version=10)
    x = np.random.default_rng(1).normal(size=(2, 512)).astype(np.float32)
    harness.check_chained(model, {"x": x}, folder=tmp_path)
    parts = partitioner.split(model, [1])
    stored = partitioner.write_store(parts[0], tmp_path)
    assert stored.weights[0].nbytes == 512 * 512 // 2
    assert partitioner.write_store(parts[1], tmp_path).weights == ()


def test_full_disk_leaves_nothing(model, tmp_path, no_large_files):
    part = partitioner.split(model, [])[0]
    with no_large_files(), pytest.raises(WriteFailed, match="File too large"):
        partitioner.write_store(part, tmp_path / "s")
    assert list((tmp_path / "s").iterdir()) == []


def test_directory_that_is_a_file(model, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(WriteFailed):
        partitioner.write_store(partitioner.split(model, [])[0], tmp_path / "file")


def test_writing_does_not_change_the_partition(model, tmp_path):
    part = partitioner.split(model, [2])[0]
    before = writing.graph_bytes(part.model, {})
    partitioner.write_store(part, tmp_path)
    assert writing.graph_bytes(part.model, {}) == before
