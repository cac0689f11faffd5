"""One partition by itself on a device: nothing is received or sent. Prints seconds per run.

python -m benchmarks.stage_alone partition.onnx SECONDS NAME=float32:1,64,56,56 …
"""

from __future__ import annotations

import sys
import time

from node_agent.messages import TensorSpec
from node_agent.samples import samples


def main(model: str, seconds: float, described: list[str]) -> None:
    """Runs the partition for `seconds` after a warm-up."""
    import onnxruntime

    specs = []
    for text in described:
        name, _, kind = text.rpartition("=")
        dtype, _, shape = kind.partition(":")
        specs.append(TensorSpec(name, dtype, tuple(int(size) for size in shape.split(",") if size)))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    outputs = [value.name for value in session.get_outputs()]
    inputs = samples(specs)
    session.run(outputs, inputs)
    begin = time.perf_counter()
    runs = 0
    while (took := time.perf_counter() - begin) < seconds or runs < 3:
        session.run(outputs, inputs)
        runs += 1
    sys.stdout.write(f"{took / runs}\n")


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), sys.argv[3:])
