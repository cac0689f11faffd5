"""A decoder that keeps its keys and values from one call to the next is no single-pass model: it is refused.

Each call of such a model reads what the call before it wrote, growing with every token. A pipeline in which each
request stands alone would carry the whole cache through every boundary and hand it back to the client.
"""

from __future__ import annotations

import re
from typing import Final

import onnx_ir as ir

from partitioner.errors import KeyValueCache

# Op type → numbers of the inputs that take keys and values of earlier calls.
_PAST_INPUTS: Final = {
    ("", "Attention"): (4, 5),
    ("com.microsoft", "Attention"): (4,),
    ("com.microsoft", "DecoderMaskedMultiHeadAttention"): (5, 6),
    ("com.microsoft", "DecoderMaskedSelfAttention"): (4,),
    ("com.microsoft", "GroupQueryAttention"): (3, 4),
    ("com.microsoft", "MultiHeadAttention"): (6, 7),
    ("com.microsoft", "PagedAttention"): (3, 4),
    ("com.microsoft", "SparseAttention"): (3, 4),
}
_PARTS: Final = frozenset(("k", "key", "keys", "kv", "v", "value", "values"))
_DIRECTIONS: Final = frozenset(
    ("cache", "in", "input", "new", "next", "out", "output", "past", "present", "updated")
)
_TRANSFORMERS: Final = ("past", "key", "values")
_HINT: Final = (
    "export the model without its cache (use_cache=False in transformers, task text-generation and not "
    "text-generation-with-past in optimum), so that each request brings its whole sequence"
)


def refuse_cache(graph: ir.Graph) -> None:
    """Refuse a model whose inputs are keys and values that an earlier call made.

    Recurrent states (``h0`` and ``hn``) and past observations (``past_values``) are ordinary inputs.

    Raises:
        KeyValueCache: naming an input that takes the cache.
    """
    outputs = {value.name or "": _words(value.name) for value in graph.outputs}
    for value in graph.inputs:
        partner = _partner(_words(value.name), outputs)
        if partner is None:
            continue
        made = f" and hands it out as output {partner!r}" if partner else ""
        raise KeyValueCache(
            f"the model takes a key-value cache as input {value.name!r}{made}; only single-pass models can be split",
            hint=_HINT,
        )
    initializers = set(graph.initializers.values())
    for node in graph:
        domain = "" if node.domain == "ai.onnx" else node.domain
        for number in _PAST_INPUTS.get((domain, node.op_type), ()):
            past = node.inputs[number] if number < len(node.inputs) else None
            if past is not None and past not in initializers:
                raise KeyValueCache(
                    f"op {node.op_type!r} (node {node.name or node.outputs[0].name!r}) takes a key-value cache as "
                    f"input {past.name!r}; only single-pass models can be split",
                    hint=_HINT,
                )


def _words(name: str | None) -> tuple[str, ...]:
    return tuple(re.findall(r"[a-z]+|[0-9]+", (name or "").lower()))


def _partner(words: tuple[str, ...], outputs: dict[str, tuple[str, ...]]) -> str | None:
    """The output that returns a cache which an input takes; empty if it needs none, None if it is no cache."""
    wanted: set[tuple[str, ...]] = set()
    if "past" in words:
        wanted.add(tuple("present" if word == "past" else word for word in words))
        if words[:3] == _TRANSFORMERS:
            wanted.add(("present", *words[3:]))
    elif "cache" in words and _PARTS & set(words):
        kept = sorted(set(words) - _DIRECTIONS)
        wanted = {
            made
            for made in outputs.values()
            if _PARTS & set(made) and sorted(set(made) - _DIRECTIONS) == kept
        }
    for name, made in outputs.items():
        if made in wanted:
            return name
    return "" if words[:3] == _TRANSFORMERS else None
