"""Which ops are worth running narrow, which must stay wide, and what each precision needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class Precision:
    """One way to write numbers.

    Attributes:
        name: what a user calls it.
        dtype: the narrow element type; None leaves the model as it is.
        largest: the largest finite number of that type.
        quantized: whether it is written as quantise/dequantise pairs instead of casts.
        opset: the least ONNX opset whose ops know the type.
        rest: what the ops are cast to that are not quantised; empty leaves them wide.
    """

    name: str
    dtype: ir.DataType | None
    largest: float = 0.0
    quantized: bool = False
    opset: int = 0
    rest: str = ""


PRECISIONS: Final = {
    precision.name: precision
    for precision in (
        Precision("fp32", None),
        Precision("fp16", ir.DataType.FLOAT16, largest=65504.0, opset=7),
        Precision("bf16", ir.DataType.BFLOAT16, largest=3.3895314e38, opset=13),
        Precision("int8", ir.DataType.INT8, largest=127.0, quantized=True, opset=13),
        Precision("int8-fp16", ir.DataType.INT8, largest=127.0, quantized=True, opset=13, rest="fp16"),
        Precision("fp8", ir.DataType.FLOAT8E4M3FN, largest=448.0, quantized=True, opset=19),
    )
}
"""By name. The opsets are those in which Cast (7, 13) and QuantizeLinear (13 per axis, 19) accept the type."""

COMPUTE: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Where a network spends its time; these run narrow."""

INT8_DEPTH: Final = 32
"""Products summed per output from which int8 wins over float16: matrix units take so many int8 numbers at a time. Below
lie depthwise convolutions and first ones of 3×3 on 3 channels, which do not fill them and lose the most by rounding."""

NORMS: Final = frozenset(
    {
        "BatchNormalization",
        "GroupNormalization",
        "InstanceNormalization",
        "LRN",
        "LayerNormalization",
        "LogSoftmax",
        "LpNormalization",
        "MeanVarianceNormalization",
        "RMSNormalization",
        "SkipLayerNormalization",
        "Softmax",
    }
)
"""Stay wide: they divide by a sum of squares or exponentials. Their results are of order one again."""

REDUCTIONS: Final = frozenset(
    {
        "CumSum",
        "Exp",
        "GlobalAveragePool",
        "GlobalLpPool",
        "Log",
        "LpPool",
        "Pow",
        "Reciprocal",
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceMean",
        "ReduceProd",
        "ReduceSum",
        "ReduceSumSquare",
        "Softplus",
        "Sqrt",
    }
)
"""Stay wide: they add many numbers or leave the narrow range easily, and so may their results."""

BOUNDED: Final = frozenset({"Erf", "Sigmoid", "Tanh", "HardSigmoid", "Softsign", "Sin", "Cos"})
"""Their results are small whatever comes in."""
