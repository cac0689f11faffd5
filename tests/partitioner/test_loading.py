"""Bad files, each with one clear error; weights that stay where they are."""

import os

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

import partitioner
from partitioner.errors import InvalidModel, MissingWeights, ModelNotFound, UnsafePath, UnsupportedOp
from partitioner.loading import load


@pytest.fixture
def model(build):
    build.input("x", ["N", 128])
    build.op("MatMul", "x", build.weight("w", (128, 128)), out="a")
    build.op("Relu", "a", out="y")
    build.output("y", ["N", 128])
    return build.model()


def save_external(model, path, location="weights.bin"):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    onnx.save(copy, path, save_as_external_data=True, location=location, size_threshold=0)


def test_weights_stay_in_the_file(model, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    loaded, name = load(path)
    tensor = loaded.graph.initializers["w"].const_value
    assert name == "net"
    assert isinstance(tensor, ir.ExternalTensor)
    assert np.array_equal(tensor.numpy(), numpy_helper.to_array(model.graph.initializer[0]))


def test_the_three_ways_in_agree(model, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    other = tmp_path / "external.onnx"
    save_external(model, other)
    chains = [partitioner.analyze(m) for m in (model, path, str(other), ir.from_proto(model))]
    assert len({chain.digest for chain in chains}) == 1
    assert len({chain.positions for chain in chains}) == 1
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    weight = numpy_helper.to_array(changed.graph.initializer[0]).copy()
    weight[0, 0] += 1
    changed.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    assert partitioner.analyze(changed).digest != chains[0].digest


def test_no_file(tmp_path):
    with pytest.raises(ModelNotFound, match="cannot be read: No such file"):
        partitioner.analyze(tmp_path / "none.onnx")
    with pytest.raises(ModelNotFound):
        partitioner.analyze(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"hello world, this is text", b"\x00" * 100, os.urandom(0) + b"PK\x03\x04zip"]
)
def test_not_onnx(tmp_path, content):
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    with pytest.raises(InvalidModel, match=r"ONNX"):
        partitioner.analyze(path)


def test_truncated_anywhere(model, tmp_path):
    content = model.SerializeToString()
    path = tmp_path / "x.onnx"
    for keep in (10, 60, 200, len(content) // 2, len(content) - 40, len(content) - 1):
        path.write_bytes(content[:keep])
        with pytest.raises(InvalidModel, match=r"x\.onnx: .*(truncated|not an ONNX)"):
            partitioner.analyze(path)


def test_external_data_missing_short_or_outside(model, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / "x.onnx"
    save_external(model, path)
    data = folder / "weights.bin"
    content = data.read_bytes()
    data.write_bytes(content[:-1])
    with pytest.raises(MissingWeights, match=r"has 65535 bytes, but tensor 'w' ends at byte 65536"):
        partitioner.analyze(path)
    data.unlink()
    with pytest.raises(MissingWeights, match=r"'weights.bin' of tensor 'w' cannot be read"):
        partitioner.analyze(path)
    (tmp_path / "weights.bin").write_bytes(content)
    data.symlink_to(tmp_path / "weights.bin")
    with pytest.raises(UnsafePath, match="outside the model's folder"):
        partitioner.analyze(path)
    for location in ("../weights.bin", str(tmp_path / "weights.bin")):
        proto = onnx.load(path, load_external_data=False)
        for entry in proto.graph.initializer[0].external_data:
            if entry.key == "location":
                entry.value = location
        path.write_bytes(proto.SerializeToString())
        with pytest.raises(UnsafePath, match="outside the model's folder"):
            partitioner.analyze(path)


def test_a_cache_of_links_is_fine(model, tmp_path):
    blobs, view = tmp_path / "blobs", tmp_path / "view"
    blobs.mkdir()
    view.mkdir()
    save_external(model, blobs / "m.onnx")
    (blobs / "m.onnx").rename(blobs / "aa")
    (blobs / "weights.bin").rename(blobs / "bb")
    (view / "net.onnx").symlink_to(blobs / "aa")
    (view / "weights.bin").symlink_to(blobs / "bb")
    assert partitioner.analyze(view / "net.onnx").model == "net"


def test_wrong_length_of_external_data(model, tmp_path):
    path = tmp_path / "x.onnx"
    save_external(model, path)
    proto = onnx.load(path, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == "length":
            entry.value = "100"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(InvalidModel, match="needs 65536 bytes, but the model stores 100"):
        partitioner.analyze(path)


def test_external_data_of_a_model_in_memory(model, tmp_path):
    save_external(model, tmp_path / "x.onnx")
    with pytest.raises(MissingWeights, match="a model in memory"):
        partitioner.analyze(onnx.load(tmp_path / "x.onnx", load_external_data=False))


def test_inconsistent_models(build):
    build.input("x", [1])
    build.op("Add", "x", "nowhere", out="y")
    build.output("y")
    with pytest.raises(InvalidModel, match="reads 'nowhere', which nothing in the model makes"):
        partitioner.analyze(build.model())
    build.nodes[0].input[1] = "x"
    build.output("ghost")
    with pytest.raises(InvalidModel, match="output 'ghost' is made by nothing"):
        partitioner.analyze(build.model())


def test_circle(build):
    build.input("x", [1])
    build.op("Add", "x", "b", out="a")
    build.op("Relu", "a", out="b")
    build.output("b")
    with pytest.raises(InvalidModel, match="in a circle"):
        partitioner.analyze(build.model())


def test_no_ops(build):
    build.input("x", [1])
    build.output("x", [1])
    with pytest.raises(InvalidModel, match="no ops"):
        partitioner.analyze(build.model())


def test_sparse_initializer(build):
    build.input("x", [1, 4])
    build.op("MatMul", "x", "w", out="y")
    build.output("y")
    model = build.model()
    values = numpy_helper.from_array(np.ones(1, np.float32), "w")
    indices = numpy_helper.from_array(np.array([3]), "i")
    model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [4, 4]))
    with pytest.raises(UnsupportedOp, match="'w' as a sparse initializer"):
        partitioner.analyze(model)


def test_every_error_has_a_code_and_says_one_thing(tmp_path):
    from partitioner import errors

    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    codes = [cls.code for cls in classes if issubclass(cls, errors.PartitionerError)]
    assert len(codes) == len(set(codes))
    assert {"invalid-model", "unsupported-op", "wrong-input", "invalid-cut"} <= set(codes)
