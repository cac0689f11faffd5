"""Layers of transformers: dense layers, layer norm, multi-head attention and GELU over (batch, tokens, width).

Layer norm sets what enters each branch, so gains alone decide what leaves it, and no statistics need to be
followed: weights are normal with standard deviation gain / √inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from models import filters
from models.graph import Array, Graph, Value
from models.signals import Moments

SCORE_GAIN = 1.4
"""Gain of queries and keys. Scores get a standard deviation of about 2: each token attends to a few others."""

_GELU = Moments(np.array([0.2821]), np.array([0.3456]))
"""Mean and variance of GELU of a standard normal variable, by numerical integration."""


def dense(
    graph: Graph, x: Value, units: int, *, name: str, gain: float = 1.0, after_gelu: bool = False
) -> Value:
    """Return x · weight + bias over the last axis; of a standardised input it makes values of standard deviation `gain`.

    Args:
        graph: Where to add it.
        x: (…, inputs).
        units: Number of outputs.
        name: Its name in PyTorch; the ops are `<name>.matmul` and `<name>.add`.
        gain: Standard deviation of the outputs.
        after_gelu: The input is what GELU makes of standardised values.
    """
    inputs = x.shape[-1]
    assert isinstance(inputs, int)

    def make() -> Array:
        rng = graph.rng(f"{name}.weight")
        if not after_gelu:
            return filters.normal(rng, (inputs, units), std=gain / math.sqrt(inputs))
        before = Moments(np.repeat(_GELU.mean, inputs), np.repeat(_GELU.var, inputs))
        want = Moments(np.zeros(units), np.full(units, gain**2))
        return filters.transposed(filters.draw(rng, (units, inputs, 1), before, want))

    weight = graph.lazy_weight(f"{name}.weight", (inputs, units), make)
    bias = graph.weight(f"{name}.bias", filters.normal(graph.rng(f"{name}.bias"), units, std=0.1 * gain))
    shape = (*x.shape[:-1], units)
    y = graph.op("MatMul", [x, weight], name=f"{name}.matmul", shape=shape)
    return graph.op("Add", [y, bias], name=f"{name}.add", shape=shape)


def layer_norm(graph: Graph, x: Value, *, name: str, epsilon: float, output: str | None = None) -> Value:
    """Layer norm over the last axis, with scales near 1 and biases near 0."""
    width = x.shape[-1]
    assert isinstance(width, int)
    rng = graph.rng(name)
    inputs = [
        x,
        graph.weight(f"{name}.weight", filters.normal(rng, width, 1.0, 0.1)),
        graph.weight(f"{name}.bias", filters.normal(rng, width, 0.0, 0.1)),
    ]
    return graph.op(
        "LayerNormalization", inputs, name=name, shape=x.shape, output=output, axis=-1, epsilon=epsilon
    )


def gelu(graph: Graph, x: Value, *, name: str) -> Value:
    """Return x · (1 + erf(x / √2)) / 2, in the five ops that exporters write before opset 20."""
    root = graph.constant(f"{name}.root", math.sqrt(2), "float32")
    one = graph.constant(f"{name}.one", 1.0, "float32")
    half = graph.constant(f"{name}.half", 0.5, "float32")
    y = graph.op("Div", [x, root], name=f"{name}.div", shape=x.shape)
    y = graph.op("Erf", [y], name=f"{name}.erf", shape=x.shape)
    y = graph.op("Add", [y, one], name=f"{name}.add", shape=x.shape)
    y = graph.op("Mul", [x, y], name=f"{name}.mul", shape=x.shape)
    return graph.op("Mul", [y, half], name=f"{name}.halve", shape=x.shape)


def attention(
    graph: Graph,
    projected: Sequence[Value],
    heads: int,
    *,
    name: str,
    split: Value,
    join: Value,
    mask: Value | None = None,
) -> Value:
    """Scaled dot-product attention of several heads.

    Args:
        graph: Where to add it.
        projected: Queries, keys and values, each (batch, tokens, width).
        heads: Number of heads.
        name: Prefix of the ops.
        split: int64 shape (batch, tokens, heads, width / heads) for Reshape, where 0 keeps a dimension.
        join: int64 shape (batch, tokens, width).
        mask: What to add to the scores, (batch, 1, 1, tokens).
    """
    batch, tokens, width = projected[0].shape
    assert isinstance(width, int)
    each = width // heads

    def apart(value: Value, part: str, perm: Sequence[int]) -> Value:
        full = (batch, tokens, heads, each)
        value = graph.op("Reshape", [value, split], name=f"{name}.{part}.split", shape=full)
        shape = tuple(full[axis] for axis in perm)
        return graph.op("Transpose", [value], name=f"{name}.{part}.transpose", shape=shape, perm=list(perm))

    query = apart(projected[0], "query", (0, 2, 1, 3))
    key = apart(projected[1], "key", (0, 2, 3, 1))
    value = apart(projected[2], "value", (0, 2, 1, 3))
    square = (batch, heads, tokens, tokens)
    scores = graph.op("MatMul", [query, key], name=f"{name}.scores", shape=square)
    root = graph.constant(f"{name}.root", math.sqrt(each), "float32")
    scores = graph.op("Div", [scores, root], name=f"{name}.scale", shape=square)
    if mask is not None:
        scores = graph.op("Add", [scores, mask], name=f"{name}.mask", shape=square)
    weights = graph.op("Softmax", [scores], name=f"{name}.softmax", shape=square, axis=-1)
    mixed = graph.op("MatMul", [weights, value], name=f"{name}.mix", shape=(batch, heads, tokens, each))
    mixed = graph.op(
        "Transpose",
        [mixed],
        name=f"{name}.together",
        shape=(batch, tokens, heads, each),
        perm=[0, 2, 1, 3],
    )
    return graph.op("Reshape", [mixed, join], name=f"{name}.join", shape=(batch, tokens, width))
