"""Tiny networks of special ops and types: control flow, functions, computed shapes, int64, float16, int8."""

from __future__ import annotations

import numpy as np
from onnx import helper

from models import filters
from models.graph import FUNCTION_DOMAIN, Array, Graph, Recipe, Value
from models.tiny import square, tanh_layer

_CLASSES = 10


def tiny_dynamic_batch(seed: int) -> Recipe:
    """Self-attention over a free length, whose heads are split by shapes computed in the graph."""
    graph = Graph("dynamic_batch", seed)
    free = ("batch", "length")
    x = graph.input("input", (*free, 16))
    shape = graph.op("Shape", [x], name="shape", shape=(3,), dtype="int64")
    sizes = []
    for axis, name in enumerate(free):
        index = graph.constant(f"{name}.index", [axis])
        sizes.append(graph.op("Gather", [shape, index], name=name, shape=(1,), dtype="int64", axis=0))
    split = graph.op(
        "Concat", [*sizes, graph.constant("heads", [2, 8])], name="split", shape=(4,), dtype="int64", axis=0
    )
    whole = graph.op(
        "Concat", [*sizes, graph.constant("width", [16])], name="whole", shape=(3,), dtype="int64", axis=0
    )

    def heads(name: str, perm: list[int]) -> Value:
        flat = graph.op("MatMul", [x, square(graph, f"{name}.weight")], name=name, shape=(*free, 16))
        apart = graph.op("Reshape", [flat, split], name=f"{name}.split", shape=(*free, 2, 8))
        permuted = tuple(apart.shape[axis] for axis in perm)
        return graph.op("Transpose", [apart], name=f"{name}.heads", shape=permuted, perm=perm)

    query, key, value = (
        heads("query", [0, 2, 1, 3]),
        heads("key", [0, 2, 3, 1]),
        heads("value", [0, 2, 1, 3]),
    )
    square_shape = ("batch", 2, "length", "length")
    scores = graph.op("MatMul", [query, key], name="scores", shape=square_shape)
    root = graph.constant("root", 8**0.5, "float32")
    scores = graph.op("Div", [scores, root], name="scale", shape=square_shape)
    weights = graph.op("Softmax", [scores], name="softmax", shape=square_shape, axis=-1)
    mixed = graph.op("MatMul", [weights, value], name="mix", shape=("batch", 2, "length", 8))
    mixed = graph.op("Transpose", [mixed], name="together", shape=(*free, 2, 8), perm=[0, 2, 1, 3])
    mixed = graph.op("Reshape", [mixed, whole], name="join", shape=(*free, 16))
    graph.output(graph.op("Add", [mixed, x], name="add", shape=(*free, 16), output="output"))
    return graph.finish()


def tiny_int64(seed: int) -> Recipe:
    """Embedding lookup in, class index out."""
    graph = Graph("int64", seed)
    ids = graph.input("input", (1, 12), "int64")
    table = graph.weight("embedding.weight", filters.normal(graph.rng("embedding"), (100, 16)))
    x = graph.op("Gather", [table, ids], name="embedding", shape=(1, 12, 16), dtype="float32", axis=0)
    x = graph.op("ReduceMean", [x], name="mean", shape=(1, 16), axes=[1], keepdims=0)
    weight = graph.weight("fc.weight", filters.normal(graph.rng("fc"), (16, _CLASSES), std=0.75))
    logits = graph.op("MatMul", [x, weight], name="fc", shape=(1, _CLASSES), output="logits")
    label = graph.op(
        "ArgMax", [logits], name="argmax", shape=(1,), dtype="int64", output="label", axis=1, keepdims=0
    )
    graph.output(logits, label)
    return graph.finish()


def tiny_if(seed: int) -> Recipe:
    """The bodies read an early value, a late one and a weight from around; the If node lists none of them."""
    graph = Graph("if", seed)
    early = tanh_layer(graph, graph.input("input", (1, 16)), square(graph, "first.weight"), "first")
    late = tanh_layer(graph, early, square(graph, "second.weight"), "second")
    only_inside = square(graph, "inside.weight")
    mean = graph.op("ReduceMean", [late], name="mean", shape=(), axes=[0, 1], keepdims=0)
    zero = graph.constant("zero", 0.0, "float32")
    condition = graph.op("Greater", [mean, zero], name="condition", shape=(), dtype="bool")
    then = Graph("then", seed)
    then.output(
        then.op(
            "Add",
            [then.op("MatMul", [late, only_inside], name="then.matmul", shape=(1, 16)), early],
            name="then.add",
            shape=(1, 16),
        )
    )
    other = Graph("else", seed)
    other.output(other.op("Sub", [early, late], name="else.sub", shape=(1, 16)))
    x = graph.op(
        "If",
        [condition],
        name="if",
        shape=(1, 16),
        dtype="float32",
        then_branch=then.body(),
        else_branch=other.body(),
    )
    graph.output(
        graph.op("MatMul", [x, square(graph, "last.weight")], name="last", shape=(1, 16), output="output")
    )
    return graph.finish()


def tiny_loop(seed: int) -> Recipe:
    """Three turns of a recurrence whose body reads an early value and a weight from around."""
    graph = Graph("loop", seed)
    early = tanh_layer(graph, graph.input("input", (1, 16)), square(graph, "first.weight"), "first")
    start = tanh_layer(graph, early, square(graph, "second.weight"), "second")
    weight = square(graph, "inside.weight")
    body = Graph("body", seed)
    body.input("turn", (), "int64")
    go_on = body.input("go_on", (), "bool")
    state = body.input("state", (1, 16))
    moved = body.op("MatMul", [state, weight], name="body.matmul", shape=(1, 16))
    moved = body.op("Add", [moved, early], name="body.add", shape=(1, 16))
    after = body.op("Tanh", [moved], name="body.tanh", shape=(1, 16))
    body.output(
        body.op("Identity", [go_on], name="body.go_on", shape=()),
        after,
        body.op("Identity", [after], name="body.scan", shape=(1, 16)),
    )
    turns, go = graph.constant("turns", 3), graph.constant("go", True, "bool")
    final, scan = Value("loop.state", "float32", (1, 16)), Value("trajectory", "float32", (3, 1, 16))
    graph.ops("Loop", [turns, go, start], [final, scan], name="loop", body=body.body())
    last = square(graph, "last.weight")
    graph.output(graph.op("MatMul", [final, last], name="last", shape=(1, 16), output="output"), scan)
    return graph.finish()


def tiny_function(seed: int) -> Recipe:
    """A gated layer as a function of the model, called twice."""
    graph = Graph("function", seed)
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["inner"], name="matmul"),
        helper.make_node("Sigmoid", ["inner"], ["gate"], name="sigmoid"),
        helper.make_node("Tanh", ["inner"], ["value"], name="tanh"),
        helper.make_node("Mul", ["gate", "value"], ["gated"], name="gated"),
        helper.make_node("Add", ["x", "gated"], ["y"], name="add"),
    ]
    graph.function("Gated", ["x", "weight"], ["y"], nodes)
    x = graph.input("input", (1, 16))
    for number in (1, 2):
        weight = square(graph, f"gated{number}.weight")
        x = graph.op("Gated", [x, weight], name=f"gated{number}", shape=(1, 16), domain=FUNCTION_DOMAIN)
    graph.output(
        graph.op("MatMul", [x, square(graph, "last.weight")], name="last", shape=(1, 16), output="output")
    )
    return graph.finish()


def tiny_float16(seed: int) -> Recipe:
    """Two dense layers in half precision."""
    graph = Graph("float16", seed)
    x = graph.input("input", (1, 16), "float16")

    def half(name: str, shape: tuple[int, ...], std: float) -> Value:
        return graph.weight(name, filters.normal(graph.rng(name), shape, std=std).astype(np.float16))

    for name in ("fc1", "fc2"):
        x = graph.op("MatMul", [x, half(f"{name}.weight", (16, 16), 0.35)], name=name, shape=(1, 16))
        x = graph.op("Add", [x, half(f"{name}.bias", (16,), 0.1)], name=f"{name}.add", shape=(1, 16))
        x = graph.op("Relu", [x], name=f"{name}.relu", shape=(1, 16))
    weight = half("fc3.weight", (16, _CLASSES), 0.35)
    graph.output(graph.op("MatMul", [x, weight], name="fc3", shape=(1, _CLASSES), output="output"))
    return graph.finish()


def tiny_quantized(seed: int) -> Recipe:
    """Two convolutions as a quantiser leaves them: int8 weights per channel, uint8 activations per tensor."""
    graph = Graph("quantized", seed)
    x = graph.input("input", (1, 3, 16, 16))
    x = _through_uint8(graph, x, "input.q", low=-4.0, high=4.0)
    for name, inputs, outputs in (("conv1", 3, 8), ("conv2", 8, 8)):
        weight = _int8_weight(graph, f"{name}.weight", (outputs, inputs, 3, 3), (2 / (9 * inputs)) ** 0.5)
        shape = (1, outputs, 16, 16)
        x = graph.op("Conv", [x, weight], name=name, shape=shape, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        x = graph.op("Relu", [x], name=f"{name}.relu", shape=shape)
        x = _through_uint8(graph, x, f"{name}.q", low=0.0, high=6.0)
    x = graph.op("MaxPool", [x], name="pool", shape=(1, 8, 4, 4), kernel_shape=[4, 4], strides=[4, 4])
    x = graph.op("Flatten", [x], name="flatten", shape=(1, 128), axis=1)
    weight = _int8_weight(graph, "fc.weight", (_CLASSES, 128), 0.1)
    graph.output(graph.op("Gemm", [x, weight], name="fc", shape=(1, _CLASSES), output="logits", transB=1))
    return graph.finish()


def _through_uint8(graph: Graph, x: Value, name: str, *, low: float, high: float) -> Value:
    scale = (high - low) / 255
    parts = [
        graph.constant(f"{name}.scale", scale, "float32"),
        graph.constant(f"{name}.zero", round(-low / scale), "uint8"),
    ]
    coded = graph.op("QuantizeLinear", [x, *parts], name=f"{name}.quantize", shape=x.shape, dtype="uint8")
    return graph.op(
        "DequantizeLinear", [coded, *parts], name=f"{name}.dequantize", shape=x.shape, dtype="float32"
    )


def _int8_weight(graph: Graph, name: str, shape: tuple[int, ...], std: float) -> Value:
    real = filters.normal(graph.rng(name), shape, std=std).reshape(shape[0], -1)
    scales: Array = (np.abs(real).max(axis=1) / 127).astype(np.float32)
    codes = np.round(real / scales[:, None]).astype(np.int8).reshape(shape)
    parts = [
        graph.weight(f"{name}.int8", codes),
        graph.weight(f"{name}.scale", scales),
        graph.weight(f"{name}.zero", np.zeros(shape[0], dtype=np.int8)),
    ]
    return graph.op("DequantizeLinear", parts, name=name, shape=shape, dtype="float32", axis=0)
