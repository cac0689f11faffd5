"""Which inputs and outputs of an op may change their element type together; read from ONNX's own op schemas."""

from __future__ import annotations

from functools import cache
from typing import Final

import onnx
import onnx_ir as ir

_NAMES: Final = {
    ir.DataType.FLOAT16: "tensor(float16)",
    ir.DataType.BFLOAT16: "tensor(bfloat16)",
}


@cache
def narrowable(
    domain: str, op_type: str, version: int, dtype: ir.DataType, inputs: int, outputs: int
) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """Per input and output, whether it may be of type `dtype` instead of float32.

    Only type variables that bind an input to an output count: an output whose type an attribute decides (Cast)
    and an input of a fixed type (the scales of Resize) stay as they are.

    Args:
        domain: of the op.
        op_type: its name.
        version: opset of the model for that domain.
        dtype: FLOAT16 or BFLOAT16.
        inputs: how many the op has, optional ones counted.
        outputs: likewise.
    """
    none = (False,) * inputs, (False,) * outputs
    try:
        schema = onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return none
    allowed = {
        constraint.type_param_str
        for constraint in schema.type_constraints
        if _NAMES[dtype] in constraint.allowed_type_strs
    }
    taken = _variables(schema.inputs, inputs)
    made = _variables(schema.outputs, outputs)
    free = allowed & set(taken) & set(made)
    return tuple(each in free for each in taken), tuple(each in free for each in made)


def _variables(formal: object, count: int) -> list[str]:
    """The type variable of each actual parameter; the last formal one repeats when it is variadic."""
    names = [parameter.type_str for parameter in formal]  # type: ignore[attr-defined]
    if not names:
        return [""] * count
    return [names[min(index, len(names) - 1)] for index in range(count)]
