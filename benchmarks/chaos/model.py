"""A network whose every activation carries its request's number, so that agents know what they ran.

`LAYERS` times y = relu(x · W). Column 0 of each W is the first unit vector, and so is row 0: element 0 of the input, the
number, passes unchanged and changes nothing else. Leaving a layer out, or running one twice, changes all others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

LAYERS = 16
WIDTH = 1024
ROWS = 8
"""Of a request, all alike: work and bytes as of a real network, and checked at the price of one."""
SEED = 7
TOLERANCE = 1e-3

Array = npt.NDArray[np.float32]


def weights() -> list[Array]:
    """One matrix per layer."""
    draw = np.random.default_rng(SEED)
    made = []
    for _ in range(LAYERS):
        # He's scale keeps what ReLU leaves as large as what came.
        matrix = (draw.standard_normal((WIDTH, WIDTH)) * np.sqrt(2 / WIDTH)).astype(np.float32)
        matrix[0, :] = matrix[:, 0] = 0
        matrix[0, 0] = 1
        made.append(matrix)
    return made


def save(path: Path) -> Path:
    """Write it as ONNX."""
    nodes: list[Any] = []
    constants: list[Any] = []
    for layer, matrix in enumerate(weights()):
        constants.append(numpy_helper.from_array(matrix, f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [f"a{layer}", f"w{layer}"], [f"m{layer}"], f"matmul{layer}"))
        nodes.append(helper.make_node("Relu", [f"m{layer}"], [f"a{layer + 1}"], f"relu{layer}"))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", WIDTH]) for name in ("a0", f"a{LAYERS}")
    ]
    graph = helper.make_graph(nodes, "numbered", ends[:1], ends[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def request(number: int, rows: int = ROWS) -> Array:
    """The input of one request, shape [rows, WIDTH]; below 2^24, a number is exact in float32."""
    array = np.random.default_rng(number).standard_normal((1, WIDTH)).astype(np.float32)
    array[0, 0] = number
    return np.tile(array, (rows, 1))


def expected(number: int, matrices: list[Array]) -> Array:
    """What the whole network makes of one row of it."""
    array = request(number, 1)
    for matrix in matrices:
        array = np.maximum(array @ matrix, 0)
    return array


def is_right(result: npt.NDArray[Any], number: int, matrices: list[Array], rows: int = ROWS) -> bool:
    """Whether a result is that of the whole network for this request."""
    wanted = expected(number, matrices)
    if result.shape != (rows, WIDTH) or result.dtype != np.float32:
        return False
    near = np.abs(result - wanted)[:, 1:] <= TOLERANCE * np.max(wanted[0, 1:])
    return bool(np.all(near) and np.all(result[:, 0] == number))
