"""Numeric precision, written into a partition before it is named by its hash.

Casts (float16, bfloat16) and quantise/dequantise pairs (int8, float8) are ordinary ONNX ops, so every engine runs
the same graph and a result on a CPU predicts the result on a GPU. Norms, softmax and reductions stay wide.
"""

from partitioner.precision.boundaries import crossing, rewrite_chain
from partitioner.precision.calibration import Observer, instrument, observed_tensors
from partitioner.precision.policy import PRECISIONS, Precision
from partitioner.precision.rewriting import Rewritten, rewrite

__all__ = [
    "PRECISIONS",
    "Observer",
    "Precision",
    "Rewritten",
    "crossing",
    "instrument",
    "observed_tensors",
    "rewrite",
    "rewrite_chain",
]
