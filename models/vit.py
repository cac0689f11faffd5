"""ViT-B/16 (Dosovitskiy et al. 2020, arXiv:2010.11929) as torchvision builds it (vit_b_16).

The class token is repeated for the free batch by a shape that the graph computes, as exporters write it.
"""

from __future__ import annotations

import math

from models import filters
from models.graph import Graph, Recipe, Value
from models.transformer import SCORE_GAIN, attention, dense, gelu, layer_norm

_SIZE, _PATCH, _WIDTH, _HIDDEN, _HEADS, _LAYERS, _CLASSES = 224, 16, 768, 3072, 12, 12, 1000
_PATCHES = (_SIZE // _PATCH) ** 2
_EPSILON = 1e-6

_BRANCH = 1 / math.sqrt(_LAYERS)
"""Gain of the last layer of each branch: 24 of them add about 2 to the variance of the stream."""


def vit_b16(seed: int) -> Recipe:
    """ViT-B/16 for 224 × 224 images and 1000 classes."""
    graph = Graph("vit_b16", seed)
    image = graph.input("input", ("batch", 3, _SIZE, _SIZE))
    x = _embedding(graph, image)
    split = graph.constant("heads.shape", [0, 0, _HEADS, _WIDTH // _HEADS])
    join = graph.constant("width.shape", [0, 0, _WIDTH])
    for layer in range(_LAYERS):
        x = _encoder_layer(graph, x, split, join, f"encoder.layers.encoder_layer_{layer}")
    x = layer_norm(graph, x, name="encoder.ln", epsilon=_EPSILON)
    first = graph.constant("class.index", 0)
    x = graph.op("Gather", [x, first], name="class", shape=("batch", _WIDTH), axis=1)
    rng = graph.rng("heads.head")
    weight = graph.weight(
        "heads.head.weight", filters.normal(rng, (_CLASSES, _WIDTH), std=1.5 / math.sqrt(_WIDTH))
    )
    bias = graph.weight("heads.head.bias", filters.normal(rng, _CLASSES, std=0.1))
    logits = ("batch", _CLASSES)
    graph.output(
        graph.op("Gemm", [x, weight, bias], name="heads.head", shape=logits, output="logits", transB=1)
    )
    return graph.finish()


def _embedding(graph: Graph, image: Value) -> Value:
    """Patches, the class token before them, and positions added."""
    rng = graph.rng("conv_proj")
    taps = 3 * _PATCH * _PATCH
    weight = filters.normal(rng, (_WIDTH, 3, _PATCH, _PATCH), std=1 / math.sqrt(taps))
    inputs = [
        image,
        graph.weight("conv_proj.weight", weight),
        graph.weight("conv_proj.bias", filters.normal(rng, _WIDTH, std=0.1)),
    ]
    side = _SIZE // _PATCH
    x = graph.op(
        "Conv",
        inputs,
        name="conv_proj",
        shape=("batch", _WIDTH, side, side),
        kernel_shape=[_PATCH, _PATCH],
        strides=[_PATCH, _PATCH],
    )
    flat = graph.constant("patches.shape", [0, _WIDTH, _PATCHES])
    x = graph.op("Reshape", [x, flat], name="patches", shape=("batch", _WIDTH, _PATCHES))
    x = graph.op("Transpose", [x], name="tokens", shape=("batch", _PATCHES, _WIDTH), perm=[0, 2, 1])
    token = graph.weight("class_token", filters.normal(graph.rng("class_token"), (1, 1, _WIDTH), std=0.3))
    shape = graph.op("Shape", [x], name="class_token.batch", shape=(1,), dtype="int64", start=0, end=1)
    rest = graph.constant("class_token.rest", [1, _WIDTH])
    shape = graph.op("Concat", [shape, rest], name="class_token.shape", shape=(3,), axis=0)
    token = graph.op("Expand", [token, shape], name="class_token.expand", shape=("batch", 1, _WIDTH))
    tokens = ("batch", _PATCHES + 1, _WIDTH)
    x = graph.op("Concat", [token, x], name="concat", shape=tokens, axis=1)
    positions = filters.normal(graph.rng("positions"), (1, _PATCHES + 1, _WIDTH), std=0.3)
    positions_value = graph.weight("encoder.pos_embedding", positions)
    return graph.op("Add", [x, positions_value], name="encoder.pos", shape=tokens)


def _encoder_layer(graph: Graph, x: Value, split: Value, join: Value, name: str) -> Value:
    """Attention, then MLP, each read through a layer norm and added to the stream."""
    y = layer_norm(graph, x, name=f"{name}.ln_1", epsilon=_EPSILON)
    y = _self_attention(graph, y, split, join, f"{name}.self_attention")
    x = graph.op("Add", [y, x], name=f"{name}.add_1", shape=x.shape)
    y = layer_norm(graph, x, name=f"{name}.ln_2", epsilon=_EPSILON)
    y = gelu(graph, dense(graph, y, _HIDDEN, name=f"{name}.mlp.0"), name=f"{name}.mlp.1")
    y = dense(graph, y, _WIDTH, name=f"{name}.mlp.3", gain=_BRANCH, after_gelu=True)
    return graph.op("Add", [x, y], name=f"{name}.add_2", shape=x.shape)


def _self_attention(graph: Graph, x: Value, split: Value, join: Value, name: str) -> Value:
    """One projection for queries, keys and values together, which Split takes apart."""
    together = dense(graph, x, 3 * _WIDTH, name=f"{name}.in_proj", gain=SCORE_GAIN)
    parts = [Value(f"{name}.{part}", "float32", x.shape) for part in ("query", "key", "value")]
    sizes = graph.constant(f"{name}.sizes", [_WIDTH] * 3)
    graph.ops("Split", [together, sizes], parts, name=f"{name}.split", axis=-1)
    y = attention(graph, parts, _HEADS, name=name, split=split, join=join)
    return dense(graph, y, _WIDTH, name=f"{name}.out_proj", gain=_BRANCH)
