"""Formulas against counts made by hand; a multiply-add is two operations."""

import numpy as np
import pytest
from onnx import TensorProto, helper

import partitioner


def flops_of(build, inputs, kind, weights=(), opset=17, outputs=1, **attributes):
    names = []
    for i, (shape, dtype) in enumerate(inputs):
        names.append(build.input(f"x{i}", shape, dtype))
    for i, array in enumerate(weights):
        names.append(build.weight(f"w{i}", array) if array is not None else "")
    made = [f"y{i}" for i in range(outputs)]
    build.op(kind, *names, out=made, **attributes)
    build.output(made[0])
    return partitioner.analyze(build.model(opset)).flops


F = TensorProto.FLOAT

CASES = [
    ("conv", [([1, 3, 8, 8], F)], "Conv", [(4, 3, 3, 3), (4,)], {}, 4 * 6 * 6 * (2 * 27 + 1)),
    ("grouped", [([1, 4, 8, 8], F)], "Conv", [(4, 1, 3, 3)], {"group": 4}, 4 * 36 * 18),
    ("transpose", [([1, 2, 4, 4], F)], "ConvTranspose", [(2, 3, 2, 2)], {"strides": [2, 2]}, 2 * 32 * 12),
    ("gemm", [([5, 6], F)], "Gemm", [(6, 7), (7,)], {}, 5 * 7 * 13),
    ("gemm transposed", [([6, 5], F)], "Gemm", [(6, 7)], {"transA": 1}, 5 * 7 * 12),
    ("matmul", [([2, 5, 6], F)], "MatMul", [(6, 7)], {}, 2 * 2 * 5 * 6 * 7),
    ("vector", [([6], F)], "MatMul", [(6, 7)], {}, 2 * 6 * 7),
    ("einsum", [([2, 5, 6], F), ([2, 6, 7], F)], "Einsum", [], {"equation": "bij,bjk->bik"}, 2 * 2 * 5 * 6 * 7),
    ("einsum dots", [([2, 5, 6], F)], "Einsum", [(6, 7)], {"equation": "...ij,jk->...ik"}, 2 * 2 * 5 * 6 * 7),
    ("pool", [([1, 3, 8, 8], F)], "MaxPool", [], {"kernel_shape": [2, 2], "strides": [2, 2]}, 3 * 16 * 4),
    ("global pool", [([1, 3, 8, 8], F)], "GlobalAveragePool", [], {}, 192),
    ("softmax", [([2, 10], F)], "Softmax", [], {}, 100),
    ("norm", [([2, 10], F)], "LayerNormalization", [(10,)], {}, 160),
    ("relu", [([2, 10], F)], "Relu", [], {}, 20),
    ("reshape", [([2, 10], F)], "Flatten", [], {}, 0),
    ("lstm", [([7, 2, 3], F)], "LSTM", [(1, 20, 3), (1, 20, 5)], {"hidden_size": 5}, 7 * 2 * (2 * 20 * 8 + 160)),
    ("gru", [([7, 2, 3], F)], "GRU", [(2, 15, 3), (2, 15, 5)],
     {"hidden_size": 5, "direction": "bidirectional"}, 7 * 2 * 2 * (2 * 15 * 8 + 120)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("inputs", "kind", "weights", "attributes", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_formula(build, inputs, kind, weights, attributes, expected):
    assert flops_of(build, inputs, kind, weights, **attributes) == expected


def test_quantised_convolution(build):
    build.input("x", [1, 3, 8, 8], TensorProto.UINT8)
    s, z = build.weight("s", np.float32(0.1)), build.weight("z", np.uint8(0))
    build.weight("w", np.ones((4, 3, 3, 3), np.uint8))
    build.op("QLinearConv", "x", s, z, "w", s, z, s, z, out="y")
    build.output("y", None, TensorProto.UINT8)
    assert partitioner.analyze(build.model()).flops == 4 * 36 * 54


def test_batch_scales(build):
    build.input("x", ["N", 6])
    build.op("MatMul", "x", build.weight("w", (6, 7)), out="y")
    build.output("y", ["N", 7])
    model = build.model()
    assert partitioner.analyze(model, {"x": (5, 6)}).flops == 5 * partitioner.analyze(model).flops


def test_larger_branch_counts(build):
    build.input("x", [4, 4])
    build.input("flag", [], TensorProto.BOOL)
    build.weight("w", (4, 4))
    info = [helper.make_tensor_value_info("t", 1, None)]
    then = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["t"])], "then", [], info)
    other = helper.make_graph([helper.make_node("Relu", ["x"], ["t"])], "else", [], info)
    build.op("If", "flag", out="y", then_branch=then, else_branch=other)
    build.output("y")
    assert partitioner.analyze(build.model()).flops == 128
