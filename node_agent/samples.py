"""Inputs for a warm-up or a measurement where no real ones are at hand. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from node_agent.codecs import Array
from node_agent.dtypes import RAW_BITS, STRING, storage
from node_agent.engines.base import Arrays
from node_agent.messages import TensorSpec


def sample(spec: TensorSpec, seed: int = 0) -> Array:
    """A value for `spec`: standard normal, 0 or 1 for integers (valid as index and as mask), a word; free dimensions 1.

    Args:
        spec: What is needed.
        seed: Equal seeds give equal values.
    """
    shape = tuple(1 if isinstance(size, str) else size for size in spec.shape)
    held = storage(spec.dtype)
    if spec.dtype == STRING:
        return np.full(shape, "text", held)
    random = np.random.default_rng([seed, *spec.name.encode()])
    if spec.dtype == "bfloat16":
        # The upper half of a float32 is its bfloat16, rounded towards zero.
        return (random.standard_normal(shape, np.float32).view(np.uint32) >> 16).astype(held)
    if spec.dtype in RAW_BITS:
        # Small positive numbers in each of the float8 formats.
        return random.integers(0x20, 0x40, shape).astype(held)
    if held.kind in "fc":
        return random.standard_normal(shape).astype(held)
    return random.integers(0, 2, shape).astype(held)


def samples(specs: Sequence[TensorSpec], seed: int = 0) -> Arrays:
    """A value for each of `specs`, by name."""
    return {spec.name: sample(spec, seed) for spec in specs}
