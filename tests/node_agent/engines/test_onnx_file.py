"""ONNX files as an agent reads them, against the `onnx` package."""

from __future__ import annotations

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

import models
from node_agent.engines.onnx_file import (
    FIXED32,
    FIXED64,
    LENGTH,
    VARINT,
    Node,
    OnnxFile,
    UnreadableGraphError,
    attribute,
    fields,
    message,
    varint,
)

MODELS = ("tiny_residual", "tiny_if", "tiny_loop", "tiny_function", "tiny_float16", "tiny_constants")


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_read_as_onnx_reads_it_and_comes_back_the_same(name: str) -> None:
    model = models.build(name)
    file = OnnxFile(model.SerializeToString())
    assert [(node.op, node.reads, node.makes, node.domain) for node in file.nodes] == [
        (node.op_type, list(node.input), list(node.output), node.domain) for node in model.graph.node
    ]
    for node, right in zip(file.nodes, model.graph.node, strict=True):
        for each in right.attribute:
            wanted = list(each.ints) if each.type == onnx.AttributeProto.INTS and min(each.ints) >= 0 else []
            assert wanted in ([], node.integers(each.name))
        assert node.integers("nothing") == []
    assert file.inputs == [value.name for value in model.graph.input]
    assert file.outputs == [value.name for value in model.graph.output]
    bodies = [any(a.HasField("g") or a.graphs for a in node.attribute) for node in model.graph.node]
    assert [node.has_body for node in file.nodes] == bodies
    assert onnx.load_from_string(file.encode()) == model


def test_nodes_that_are_put_in_and_rewired() -> None:
    value = helper.make_tensor_value_info
    relu = helper.make_node("Relu", ["x"], ["y"], name="last")
    io = [value("x", TensorProto.FLOAT, [1, 1, 2, 2])], [value("y", TensorProto.FLOAT, [1, 1, 2, 2])]
    model = helper.make_model(helper.make_graph([relu], "g", *io), producer_name="somebody")
    file = OnnxFile(model.SerializeToString())
    file.nodes[0].reads = ["z"]
    pool = Node("AveragePool", ["x"], ["z"], rest=[attribute("kernel_shape", [1, 300])])
    file.nodes.insert(0, pool)
    made = onnx.load_from_string(file.encode())
    onnx.checker.check_model(made)
    assert made.producer_name == "somebody"
    assert [(n.op_type, *n.input, *n.output, n.name) for n in made.graph.node] == [
        ("AveragePool", "x", "z", ""),
        ("Relu", "z", "y", "last"),
    ]
    assert helper.get_attribute_value(made.graph.node[0].attribute[0]) == [1, 300]


FIELDS = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 1 << 20), st.just(VARINT), st.integers(0, (1 << 64) - 1).map(varint)),
        st.tuples(st.integers(1, 40), st.just(LENGTH), st.binary(max_size=300)),
        st.tuples(st.integers(1, 40), st.just(FIXED32), st.binary(min_size=4, max_size=4)),
        st.tuples(st.integers(1, 40), st.just(FIXED64), st.binary(min_size=8, max_size=8)),
    )
)


@given(FIELDS)
def test_fields_there_and_back(parts) -> None:
    assert fields(message(parts)) == parts


@given(st.binary(max_size=200))
def test_other_bytes_are_one_error(data: bytes) -> None:
    try:
        OnnxFile(data)
    except UnreadableGraphError:
        return


@pytest.mark.parametrize("data", [b"", b"\x0a", b"\x3a\x05abc", b"\x0b", b"\xff" * 12, b"\x3a\x00\x3a\x00"])
def test_what_is_no_model(data: bytes) -> None:
    with pytest.raises(UnreadableGraphError):
        OnnxFile(data)


def test_a_model_that_is_cut_off_anywhere() -> None:
    data = models.build("tiny_residual").SerializeToString()
    whole = OnnxFile(data).encode()
    for end in range(0, len(data), max(1, len(data) // 200)):
        try:
            assert OnnxFile(data[:end]).encode() != whole
        except UnreadableGraphError:
            continue
