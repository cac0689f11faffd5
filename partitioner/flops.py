"""Operations per op, from the shapes of what it reads and makes.

A multiply-add counts as two operations (the convention of the ONNX model zoo's and fvcore's "FLOPs" ×2, and
of roofline models). What has no formula here counts one operation per element it makes. The numbers rank
blocks when nobody has measured them; a profile replaces them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Final

import onnx_ir as ir

Dims = tuple[int, ...]


def op_flops(node: ir.Node, inputs: Sequence[Dims | None], outputs: Sequence[Dims | None]) -> int:
    """Operations of one run of an op, bodies not included.

    Args:
        node: the op.
        inputs: shape of each input, None where absent or unknown.
        outputs: shape of each output, None where unknown.
    """
    formula = _FORMULAS.get(node.op_type)
    if formula is not None:
        try:
            return max(0, int(formula(node, inputs, outputs)))
        except (IndexError, TypeError, ValueError, ZeroDivisionError):
            pass  # a shape the formula needs is unknown: the general rule holds
    return sum(prod(shape) for shape in outputs if shape is not None)


Formula = Callable[[ir.Node, Sequence[Dims | None], Sequence[Dims | None]], int]


def _size(shape: Dims | None) -> int:
    if shape is None:
        raise TypeError("unknown shape")
    return prod(shape)


def _known(shape: Dims | None) -> Dims:
    if shape is None:
        raise TypeError("unknown shape")
    return shape


def _conv(weight_at: int, bias_at: int) -> Formula:
    def formula(_node: ir.Node, inputs: Sequence[Dims | None], outputs: Sequence[Dims | None]) -> int:
        weight = _known(inputs[weight_at])  # (channels out, channels in / group, kernel …)
        bias = len(inputs) > bias_at and inputs[bias_at] is not None
        return _size(outputs[0]) * (2 * prod(weight[1:]) + bias)

    return formula


def _conv_transpose(_node: ir.Node, inputs: Sequence[Dims | None], outputs: Sequence[Dims | None]) -> int:
    weight = _known(inputs[1])  # (channels in, channels out / group, kernel …)
    bias = len(inputs) > 2 and inputs[2] is not None
    return 2 * _size(inputs[0]) * prod(weight[1:]) + bias * _size(outputs[0])


def _gemm(node: ir.Node, inputs: Sequence[Dims | None], outputs: Sequence[Dims | None]) -> int:
    a = _known(inputs[0])
    inner = a[0] if node.attributes.get_int("transA", 0) else a[1]
    bias = len(inputs) > 2 and inputs[2] is not None
    return _size(outputs[0]) * (2 * inner + bias)


def _matmul(_node: ir.Node, inputs: Sequence[Dims | None], outputs: Sequence[Dims | None]) -> int:
    return 2 * _known(inputs[0])[-1] * _size(outputs[0])


def _matmul_nbits(node: ir.Node, _inputs: Sequence[Dims | None], outputs: Sequence[Dims | None]) -> int:
    return 2 * int(node.attributes.get_int("K", 1)) * _size(outputs[0])


def _einsum(node: ir.Node, inputs: Sequence[Dims | None], _outputs: Sequence[Dims | None]) -> int:
    equation = (node.attributes.get_string("equation") or "").replace(" ", "")
    terms = equation.split("->")[0].split(",")
    sizes: dict[str, int] = {}
    rest = 1
    for term, shape in zip(terms, inputs, strict=True):
        dims = _known(shape)
        head, _, tail = term.partition("...")
        sizes.update(zip(head, dims, strict=False))
        if tail:
            sizes.update(zip(tail, dims[-len(tail) :], strict=True))
        if "..." in term:
            rest = max(rest, prod(dims[len(head) : len(dims) - len(tail)]))
    return len(terms) * rest * prod(sizes.values())


def _pool(node: ir.Node, _inputs: Sequence[Dims | None], outputs: Sequence[Dims | None]) -> int:
    kernel = node.attributes.get_ints("kernel_shape", ())
    return _size(outputs[0]) * prod(kernel)


def _per_input(factor: int) -> Formula:
    return lambda _node, inputs, _outputs: factor * _size(inputs[0])


def _per_output(factor: int) -> Formula:
    return lambda _node, _inputs, outputs: factor * _size(outputs[0])


def _recurrent(gates: int) -> Formula:
    def formula(node: ir.Node, inputs: Sequence[Dims | None], _outputs: Sequence[Dims | None]) -> int:
        steps = _known(inputs[0])
        first, second = (steps[1], steps[0]) if node.attributes.get_int("layout", 0) else steps[:2]
        directions, hidden_gates, features = _known(inputs[1])
        hidden = hidden_gates // gates
        per_step = 2 * hidden_gates * (features + hidden) + 8 * gates * hidden
        return first * second * directions * per_step

    return formula


def _attention(node: ir.Node, inputs: Sequence[Dims | None], _outputs: Sequence[Dims | None]) -> int:
    query, key = _known(inputs[0]), _known(inputs[1])
    if len(query) == 4:  # (batch, heads, length, head size)
        return 4 * prod(query) * key[2] + 5 * prod(query[:3]) * key[2]
    heads = int(node.attributes.get_int("q_num_heads", node.attributes.get_int("num_heads", 1)))
    return 4 * prod(query) * key[1] + 5 * query[0] * heads * query[1] * key[1]


def _lrn(node: ir.Node, _inputs: Sequence[Dims | None], outputs: Sequence[Dims | None]) -> int:
    return _size(outputs[0]) * (2 * int(node.attributes.get_int("size", 1)) + 4)


def _resize(node: ir.Node, _inputs: Sequence[Dims | None], outputs: Sequence[Dims | None]) -> int:
    mode = node.attributes.get_string("mode", "nearest")
    return _size(outputs[0]) * {"linear": 11, "cubic": 40}.get(mode, 1)


def _free(_node: ir.Node, _inputs: Sequence[Dims | None], _outputs: Sequence[Dims | None]) -> int:
    return 0


# Formulas by op; ops without one cost one operation per output element.
_FORMULAS: Final[Mapping[str, Formula]] = {
    "Conv": _conv(1, 2),
    "FusedConv": _conv(1, 2),
    "ConvInteger": _conv(1, 99),
    "QLinearConv": _conv(3, 8),
    "ConvTranspose": _conv_transpose,
    "DeformConv": _conv(1, 3),
    "Gemm": _gemm,
    "FusedGemm": _gemm,
    "QGemm": lambda node, inputs, outputs: _gemm(node, [*inputs[:1], None, *inputs[6:7]], outputs),
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearMatMul": _matmul,
    "FusedMatMul": _matmul,
    "MatMulNBits": _matmul_nbits,
    "Einsum": _einsum,
    "Attention": _attention,
    "MultiHeadAttention": _attention,
    "LSTM": _recurrent(4),
    "GRU": _recurrent(3),
    "RNN": _recurrent(1),
    "AveragePool": _pool,
    "MaxPool": _pool,
    "LpPool": _pool,
    **dict.fromkeys(
        ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin",
         "ReduceProd", "ReduceL1", "ArgMax", "ArgMin", "CumSum"),
        _per_input(1),
    ),
    **dict.fromkeys(("ReduceL2", "ReduceSumSquare"), _per_input(2)),
    **dict.fromkeys(("ReduceLogSum", "ReduceLogSumExp", "TopK"), _per_input(5)),
    **dict.fromkeys(("Exp", "Log", "Sqrt", "Tanh", "Sigmoid", "Erf", "Sin", "Cos", "Pow"), _per_output(4)),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "HardSigmoid", "HardSwish", "Elu", "Selu", "Softplus"),
                    _per_output(5)),
    **dict.fromkeys(("Gelu", "FastGelu", "Mish", "Swish"), _per_output(8)),
    **dict.fromkeys(("BatchNormalization",), _per_output(2)),
    **dict.fromkeys(
        ("LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization",
         "MeanVarianceNormalization", "LpNormalization", "SkipLayerNormalization"),
        _per_output(8),
    ),
    "LRN": _lrn,
    "Resize": _resize,
    "Upsample": _resize,
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"), _per_output(2)),
    "Sum": lambda _node, inputs, outputs: max(1, len(inputs) - 1) * _size(outputs[0]),
    # These move or relabel memory, at most.
    **dict.fromkeys(("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Shape", "Size", "Constant", "Dropout"),
                    _free),
}  # fmt: skip
