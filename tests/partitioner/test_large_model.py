"""A model above protobuf's 2 GB limit goes through without its weights ever being in memory."""

import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

SIDE = 12288
LAYERS = 4

WORKER = """
import json, resource, sys
import partitioner

model, store, folder = sys.argv[1:]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
chain = partitioner.analyze(model)
positions = partitioner.balance(chain, 3)
parts = partitioner.split(model, positions)
stored = [partitioner.write_store(part, store) for part in parts]
manifest = partitioner.write_directory(parts, chain, folder)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({
    "grown": (after - before) * 1024,
    "weight_bytes": chain.weight_bytes,
    "flops": chain.flops,
    "positions": positions,
    "graphs": [s.graph.sha256 for s in stored],
    "files": sum(len(s.weights) for s in stored),
    "partitions": manifest["partitions"],
}))
"""


def write_model(path):
    """Weights are mostly holes in a sparse file: one page of numbers at the start of each row."""
    nodes, tensors = [], []
    size = SIDE * SIDE * 4
    rng = np.random.default_rng(0)
    with path.with_name("weights.bin").open("wb") as file:
        file.truncate(LAYERS * size)
        for layer in range(LAYERS):
            for row in range(SIDE):
                file.seek(layer * size + row * SIDE * 4 + 4096 * (row % 12))
                file.write(rng.normal(size=1024).astype(np.float32) / np.float32(32))
            tensor = TensorProto(
                name=f"w{layer}", data_type=1, dims=[SIDE, SIDE], data_location=TensorProto.EXTERNAL
            )
            for key, value in (("location", "weights.bin"), ("offset", layer * size), ("length", size)):
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)
            nodes.append(
                helper.make_node("MatMul", [f"r{layer - 1}" if layer else "x", f"w{layer}"], [f"m{layer}"])
            )
            nodes.append(helper.make_node("Relu", [f"m{layer}"], [f"r{layer}"]))
    ends = [helper.make_tensor_value_info(n, 1, ["N", SIDE]) for n in ("x", f"r{LAYERS - 1}")]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def load(path):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_prepacking", "1")  # else it copies every weight
    return onnxruntime.InferenceSession(str(path), options)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_more_than_two_gigabytes(scratch):
    path = scratch / "large.onnx"
    write_model(path)
    done = subprocess.run(
        [sys.executable, "-c", WORKER, path, scratch / "store", scratch / "out"],
        check=True, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    facts = json.loads(done.stdout)
    assert facts["weight_bytes"] == LAYERS * SIDE * SIDE * 4 > 2**31
    assert facts["flops"] == LAYERS * SIDE * (2 * SIDE + 1)
    assert facts["grown"] < 300e6
    assert facts["files"] == LAYERS
    assert sum("data" in part for part in facts["partitions"]) == 1  # the part with two matrices

    x = np.random.default_rng(1).normal(size=(1, SIDE)).astype(np.float32)
    (whole,) = load(path).run(None, {"x": x})
    assert np.count_nonzero(whole) > SIDE // 4
    files = [
        [scratch / "store" / f"{digest}.onnx" for digest in facts["graphs"]],
        [scratch / "out" / part["file"] for part in facts["partitions"]],
    ]
    for chain in files:
        value = x
        for file in chain:
            session = load(file)
            (value,) = session.run(None, {session.get_inputs()[0].name: value})
            del session
        assert value.tobytes() == whole.tobytes()
