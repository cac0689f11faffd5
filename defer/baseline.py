"""The whole model on one device: ONNX Runtime in a process of its own, one request after the other."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Tensors = dict[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class Baseline:
    """Outputs of every request, and requests per second without loading and warm-up."""

    outputs: list[Tensors]
    throughput_per_s: float


def whole_model(model: Path, inputs: list[Tensors], *, threads: int) -> Baseline:
    """Run the whole model on every input.

    A process of its own, started fresh, so that it shares neither a thread pool nor an interpreter with the caller.

    Args:
        model: The ONNX file.
        inputs: One set of tensors per request.
        threads: Engine threads.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_run, (model, inputs, threads))


def _run(model: Path, inputs: list[Tensors], threads: int) -> Baseline:
    from node_agent.engines.onnxruntime_cpu import import_runtime

    onnxruntime = import_runtime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    session.run(names, inputs[0])
    begin = time.perf_counter()
    outputs = [dict(zip(names, session.run(names, one), strict=True)) for one in inputs]
    return Baseline(outputs, len(inputs) / (time.perf_counter() - begin))
