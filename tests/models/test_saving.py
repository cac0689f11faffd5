"""Files: equal to the model in memory, whole or not there, with one clear error where they cannot be written."""

import errno
import os

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import models
from models import saving


@pytest.mark.parametrize(
    "name", [name for name in models.NAMES if name.startswith("tiny_")] + ["mobilenet_v2"]
)
def test_the_file_written_in_pieces_is_the_model_serialised(name, tmp_path):
    path = models.save(name, tmp_path / "model.onnx", seed=5)
    assert path == tmp_path / "model.onnx"
    assert path.read_bytes() == models.build(name, seed=5).SerializeToString(deterministic=True)
    assert names_in(tmp_path) == ["model.onnx"]


@pytest.mark.parametrize(
    "name", ["tiny_residual", "tiny_float16", "tiny_if", "tiny_quantized", "mobilenet_v2"]
)
def test_external_data_holds_the_same_weights(name, tmp_path):
    path = models.save(name, tmp_path / "model.onnx", external=True)
    assert names_in(tmp_path) == ["model.onnx", "model.onnx.data"]
    onnx.checker.check_model(path)
    inside = {tensor.name: numpy_helper.to_array(tensor) for tensor in models.build(name).graph.initializer}
    outside = onnx.load(path)
    assert [tensor.name for tensor in outside.graph.initializer] == list(inside)
    for tensor in outside.graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), inside[tensor.name])
    bare = onnx.load(path, load_external_data=False)
    moved = [tensor for tensor in bare.graph.initializer if tensor.external_data]
    assert moved
    for tensor in moved:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        assert entries["location"] == "model.onnx.data"
        assert int(entries["offset"]) % 4096 == 0


@pytest.mark.parametrize(("limit", "files"), [(0, 2), (1 << 30, 1)])
def test_large_weights_go_outside_by_themselves(limit, files, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "EXTERNAL_ABOVE", limit)
    models.save("tiny_chain", tmp_path / "model.onnx")
    assert len(names_in(tmp_path)) == files


def test_an_old_file_is_replaced(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    models.save("tiny_chain", str(path))
    onnx.checker.check_model(path)


@pytest.mark.parametrize("external", [False, True])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(external, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(models.UnwritablePathError, match="No space left") as caught:
        models.save("tiny_chain", path, external=external)
    assert "free some space" in caught.value.hint
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["model.onnx"]


@pytest.mark.parametrize("external", [False, True])
def test_a_missing_folder_is_named(external, tmp_path):
    with pytest.raises(models.UnwritablePathError, match="no-such-folder") as caught:
        models.save("tiny_chain", tmp_path / "no-such-folder" / "model.onnx", external=external)
    assert "make the folder" in caught.value.hint
    assert caught.value.code == "unwritable-path"


@pytest.mark.parametrize("external", [False, True])
def test_a_folder_is_not_a_file(external, tmp_path):
    with pytest.raises(models.UnwritablePathError, match="folder") as caught:
        models.save("tiny_chain", tmp_path, external=external)
    assert "name a file" in caught.value.hint
    assert names_in(tmp_path) == []


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(models.UnwritablePathError):
        models.save("tiny_chain", tmp_path / "file" / "model.onnx")


def test_an_unknown_name_writes_nothing(tmp_path):
    with pytest.raises(models.UnknownModelError):
        models.save("tiny_chian", tmp_path / "model.onnx")
    assert names_in(tmp_path) == []


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())
