"""A small network that takes any number of rows, and what it must answer.

`LAYERS` times y = relu(x · W + x): cheap enough to be checked, request by request, beside the processes under test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

NAME = "soak"
LAYERS = 8
WIDTH = 256
SEED = 11
TOLERANCE = 1e-3

Array = npt.NDArray[np.float32]


def weights() -> list[Array]:
    """One matrix per layer."""
    draw = np.random.default_rng(SEED)
    return [
        (draw.standard_normal((WIDTH, WIDTH)) * 0.5 / np.sqrt(WIDTH)).astype(np.float32)
        for _ in range(LAYERS)
    ]


def save(path: Path) -> Path:
    """Write it as ONNX."""
    import onnx  # the clients, whose memory is watched, only check results
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []
    constants: list[Any] = []
    for layer, matrix in enumerate(weights()):
        constants.append(numpy_helper.from_array(matrix, f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [f"a{layer}", f"w{layer}"], [f"m{layer}"]))
        nodes.append(helper.make_node("Add", [f"m{layer}", f"a{layer}"], [f"s{layer}"]))
        nodes.append(helper.make_node("Relu", [f"s{layer}"], [f"a{layer + 1}"]))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", WIDTH]) for name in ("a0", f"a{LAYERS}")
    ]
    graph = helper.make_graph(nodes, "soak", ends[:1], ends[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def request(number: int, rows: int) -> Array:
    """The input of a request, shape [rows, WIDTH]."""
    return np.random.default_rng(number).standard_normal((rows, WIDTH)).astype(np.float32)


def is_right(result: npt.NDArray[Any], number: int, rows: int, matrices: list[Array]) -> bool:
    """Whether a result is the network's for this request."""
    wanted = request(number, rows)
    for matrix in matrices:
        wanted = np.maximum(wanted @ matrix + wanted, 0)
    if result.shape != wanted.shape or result.dtype != np.float32:
        return False
    return bool(np.all(np.abs(result - wanted) <= TOLERANCE * max(1.0, float(np.max(wanted)))))
