"""A model that computes nothing: ops in a row that hand their input on."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper


def save(path: Path, ops: int, nbytes: int) -> Path:
    """Writes a model of `ops` Identity ops on a float32 tensor of `nbytes` bytes."""
    shape = [1, nbytes // 4]
    nodes = [helper.make_node("Identity", [f"t{n}"], [f"t{n + 1}"]) for n in range(ops)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("t0", f"t{ops}")]
    graph = helper.make_graph(nodes, "nothing", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path
