"""BERT base, uncased (Devlin et al. 2018, arXiv:1810.04805), with pooler, as Hugging Face's BertModel is exported.

Batch and sequence length are free. Positions, the attention mask and the shapes of the heads are computed in the
graph, layer by layer, as exporters leave them.
"""

from __future__ import annotations

import numpy as np

from models import filters
from models.graph import Graph, Recipe, Value
from models.transformer import SCORE_GAIN, attention, dense, gelu, layer_norm

_WORDS, _POSITIONS, _SEGMENTS = 30_522, 512, 2
_WIDTH, _HIDDEN, _HEADS, _LAYERS = 768, 3072, 12, 12
_EPSILON = 1e-12
_PENALTY = -10_000.0
"""Added to the score of a masked token. The original's value; the least float32 of later code overflows float16."""

_FREE = ("batch", "sequence")
_STREAM = (*_FREE, _WIDTH)


def bert_base(seed: int) -> Recipe:
    """BERT base with pooler, for up to 512 tokens."""
    graph = Graph("bert_base", seed)
    ids, attended, segments = (
        graph.input(name, _FREE, "int64") for name in ("input_ids", "attention_mask", "token_type_ids")
    )
    mask = _mask(graph, attended)
    x = _embeddings(graph, ids, segments)
    for layer in range(_LAYERS):
        output = "last_hidden_state" if layer == _LAYERS - 1 else None
        x = _layer(graph, x, mask, f"encoder.layer.{layer}", output)
    first = graph.constant("pooler.index", 0)
    y = graph.op("Gather", [x, first], name="pooler.first", shape=("batch", _WIDTH), axis=1)
    y = dense(graph, y, _WIDTH, name="pooler.dense")
    y = graph.op("Tanh", [y], name="pooler.activation", shape=y.shape, output="pooler_output")
    graph.output(x, y)
    return graph.finish()


def _mask(graph: Graph, attended: Value) -> Value:
    """0 where a token may be attended to and the penalty where not, as (batch, 1, 1, sequence)."""
    shape = ("batch", 1, 1, "sequence")
    axes = graph.constant("mask.axes", [1, 2])
    one = graph.constant("mask.one", 1.0, "float32")
    penalty = graph.constant("mask.penalty", _PENALTY, "float32")
    mask = graph.op("Unsqueeze", [attended, axes], name="mask.unsqueeze", shape=shape)
    mask = graph.op("Cast", [mask], name="mask.cast", shape=shape, dtype="float32", to=1)
    mask = graph.op("Sub", [one, mask], name="mask.invert", shape=shape)
    return graph.op("Mul", [mask, penalty], name="mask", shape=shape)


def _embeddings(graph: Graph, ids: Value, segments: Value) -> Value:
    """Words, segments and positions, added and normalised."""
    words = _table(graph, "embeddings.word_embeddings", _WORDS, 1.0)
    kinds = _table(graph, "embeddings.token_type_embeddings", _SEGMENTS, 0.3)
    places = _table(graph, "embeddings.position_embeddings", _POSITIONS, 0.5)
    x = graph.op("Gather", [words, ids], name="embeddings.word", shape=_STREAM, axis=0)
    y = graph.op("Gather", [kinds, segments], name="embeddings.token_type", shape=_STREAM, axis=0)
    x = graph.op("Add", [x, y], name="embeddings.add_token_type", shape=_STREAM)
    numbers = graph.constant("embeddings.position_ids", np.arange(_POSITIONS)[None])
    start, axis = graph.constant("embeddings.start", [0]), graph.constant("embeddings.axis", [1])
    length = graph.op("Shape", [ids], name="embeddings.length", shape=(1,), start=1, end=2)
    place = graph.op(
        "Slice", [numbers, start, length, axis], name="embeddings.positions", shape=(1, "sequence")
    )
    y = graph.op("Gather", [places, place], name="embeddings.position", shape=(1, "sequence", _WIDTH), axis=0)
    x = graph.op("Add", [x, y], name="embeddings.add_position", shape=_STREAM)
    return layer_norm(graph, x, name="embeddings.LayerNorm", epsilon=_EPSILON)


def _table(graph: Graph, name: str, rows: int, std: float) -> Value:
    return graph.lazy_weight(
        f"{name}.weight", (rows, _WIDTH), lambda: filters.normal(graph.rng(name), (rows, _WIDTH), std=std)
    )


def _layer(graph: Graph, x: Value, mask: Value, name: str, output: str | None) -> Value:
    """Attention, then MLP, each added to what it reads and then normalised."""
    attend = f"{name}.attention"
    parts = [
        dense(graph, x, _WIDTH, name=f"{attend}.self.query", gain=SCORE_GAIN),
        dense(graph, x, _WIDTH, name=f"{attend}.self.key", gain=SCORE_GAIN),
        dense(graph, x, _WIDTH, name=f"{attend}.self.value"),
    ]
    split, join = _shapes(graph, x, f"{attend}.self")
    y = attention(graph, parts, _HEADS, name=f"{attend}.self", split=split, join=join, mask=mask)
    y = dense(graph, y, _WIDTH, name=f"{attend}.output.dense", gain=0.5)
    y = graph.op("Add", [y, x], name=f"{attend}.output.add", shape=_STREAM)
    x = layer_norm(graph, y, name=f"{attend}.output.LayerNorm", epsilon=_EPSILON)
    y = dense(graph, x, _HIDDEN, name=f"{name}.intermediate.dense")
    y = gelu(graph, y, name=f"{name}.intermediate.gelu")
    y = dense(graph, y, _WIDTH, name=f"{name}.output.dense", gain=0.5, after_gelu=True)
    y = graph.op("Add", [y, x], name=f"{name}.output.add", shape=_STREAM)
    return layer_norm(graph, y, name=f"{name}.output.LayerNorm", epsilon=_EPSILON, output=output)


def _shapes(graph: Graph, x: Value, name: str) -> tuple[Value, Value]:
    """The shapes (batch, sequence, heads, 64) and (batch, sequence, 768), read off the stream."""
    shape = graph.op("Shape", [x], name=f"{name}.shape", shape=(3,), dtype="int64")
    axes = graph.constant(f"{name}.shape.axes", [0])
    sizes = []
    for axis, size in enumerate(_FREE):
        index = graph.constant(f"{name}.{size}.index", axis)
        value = graph.op("Gather", [shape, index], name=f"{name}.{size}", shape=(), axis=0)
        sizes.append(graph.op("Unsqueeze", [value, axes], name=f"{name}.{size}.unsqueeze", shape=(1,)))
    split = [*sizes, graph.constant(f"{name}.heads.sizes", [_HEADS, _WIDTH // _HEADS])]
    join = [*sizes, graph.constant(f"{name}.width.size", [_WIDTH])]
    return (
        graph.op("Concat", split, name=f"{name}.split_shape", shape=(4,), axis=0),
        graph.op("Concat", join, name=f"{name}.join_shape", shape=(3,), axis=0),
    )
