import contextlib

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitioner import wire
from partitioner.errors import InvalidModel


@given(st.integers(0, 2**63))
def test_varint_round_trip(value):
    encoded = wire.varint(value)
    assert wire._read_varint(encoded, 0, len(encoded)) == (value, len(encoded))


def make(sizes):
    model = onnx.ModelProto(ir_version=8, producer_name="p")
    model.opset_import.add(version=17)
    for i, size in enumerate(sizes):
        model.graph.initializer.add(
            name=f"w{i}", data_type=onnx.TensorProto.UINT8, dims=[size], raw_data=bytes([i]) * size
        )
    node = model.graph.node.add(op_type="Constant", output=["c"])
    attribute = node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
    attribute.t.CopyFrom(model.graph.initializer[0])
    return model


def test_large_tensors_become_references():
    model = make([wire.THRESHOLD * 2, 5, wire.THRESHOLD])
    data = model.SerializeToString()
    stripped = onnx.ModelProto.FromString(wire.strip_weights(data))
    assert len(wire.strip_weights(data)) < 1000
    assert stripped.producer_name == "p"
    first, second, third = stripped.graph.initializer
    assert second == model.graph.initializer[1]
    inside = stripped.graph.node[0].attribute[0].t
    for tensor, original in ((first, 0), (third, 2), (inside, 0)):
        facts = {entry.key: entry.value for entry in tensor.external_data}
        offset, length = int(facts["offset"]), int(facts["length"])
        assert facts["location"] == wire.SELF
        assert data[offset : offset + length] == model.graph.initializer[original].raw_data
        assert not tensor.raw_data


def test_small_models_pass_unchanged():
    data = make([10, 20]).SerializeToString()
    assert wire.strip_weights(data) == data


def test_field_framing_is_protobufs():
    data = make([10, 20])
    graph = data.graph.SerializeToString()
    assert onnx.ModelProto.FromString(wire.field(wire.MODEL_GRAPH, graph)).graph == data.graph


@given(st.binary(max_size=200))
def test_never_fails_otherwise(data):
    with contextlib.suppress(InvalidModel):
        wire.strip_weights(data)


def test_truncation_is_named():
    with pytest.raises(InvalidModel, match="truncated"):
        wire.strip_weights(make([wire.THRESHOLD * 2]).SerializeToString()[:-100])
