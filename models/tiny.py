"""Tiny networks of plain layers, each with one difficulty for whoever splits it."""

from __future__ import annotations

from models import filters
from models.convnet import ConvNet, Feature
from models.graph import Graph, Recipe, Value

_SIZE = 16
_CLASSES = 10


def tiny_chain(seed: int) -> Recipe:
    """Convolutions in a chain."""
    net = _net("chain", seed)
    x = _block(net, net.image(_SIZE), 8, "conv1")
    x = net.max_pool(x, 2, 2, name="pool")
    x = _block(net, x, 16, "conv2")
    return net.finish(_head(net, x))


def tiny_residual(seed: int) -> Recipe:
    """Two residual blocks."""
    net = _net("residual", seed)
    x = _block(net, net.image(_SIZE), 8, "stem")
    for block in range(2):
        y = net.conv(x, 8, 3, name=f"block{block}.conv1", padding=1)
        y = net.relu(net.batch_norm(y, name=f"block{block}.bn1"), name=f"block{block}.relu1")
        y = net.conv(y, 8, 3, name=f"block{block}.conv2", padding=1)
        y = net.batch_norm(y, name=f"block{block}.bn2", scale=0.5)
        x = net.relu(net.add([y, x], name=f"block{block}.add"), name=f"block{block}.relu2")
    return net.finish(_head(net, x))


def tiny_diamond(seed: int) -> Recipe:
    """Branches of one, two and no convolutions between a fork and a Concat."""
    net = _net("diamond", seed)
    x = _block(net, net.image(_SIZE), 8, "fork")
    short = _block(net, x, 8, "short")
    long = _block(net, _block(net, x, 4, "long1"), 8, "long2")
    return net.finish(_head(net, net.concat([short, long, x], name="join")))


def tiny_two_inputs(seed: int) -> Recipe:
    """An image and a vector."""
    net = _net("two_inputs", seed)
    image = net.image(_SIZE)
    vector = net.vector(8, name="context")
    x = net.global_pool(_block(net, image, 16, "conv"), name="pool")
    y = net.relu(net.linear(vector, 16, name="embed"), name="embed.relu")
    x = net.relu(net.add([net.linear(x, 16, name="project"), y], name="join"), name="join.relu")
    return net.finish(net.linear(x, _CLASSES, name="fc", output="logits"))


def tiny_late_input(seed: int) -> Recipe:
    """A vector that only the last op reads."""
    net = _net("late_input", seed)
    image = net.image(_SIZE)
    vector = net.vector(_CLASSES, name="bias")
    x = _block(net, _block(net, image, 8, "conv1"), 8, "conv2")
    x = net.linear(net.global_pool(x, name="pool"), _CLASSES, name="fc")
    return net.finish(net.add([x, vector], name="shift", output="logits"))


def tiny_early_output(seed: int) -> Recipe:
    """An early exit; its logits also steer the rest."""
    net = _net("early_output", seed)
    x = _block(net, net.image(_SIZE), 8, "conv1")
    early = net.linear(net.global_pool(x, name="early.pool"), _CLASSES, name="early.fc", output="early")
    x = net.global_pool(_block(net, _block(net, x, 8, "conv2"), 8, "conv3"), name="pool")
    late = net.linear(x, _CLASSES, name="fc")
    return net.finish(early, net.add([late, early], name="combine", output="logits"))


def tiny_shared_weight(seed: int) -> Recipe:
    """One matrix at both ends, as tied embeddings have."""
    graph = Graph("shared_weight", seed)
    x = graph.input("input", (1, 16))
    tied = square(graph, "tied.weight")
    own = square(graph, "middle.weight")
    x = tanh_layer(graph, x, tied, "first")
    x = tanh_layer(graph, x, own, "middle")
    graph.output(graph.op("MatMul", [x, tied], name="last", shape=(1, 16), output="output"))
    return graph.finish()


def tiny_initializer_inputs(seed: int) -> Recipe:
    """Every initializer is listed as a graph input, as in files of IR version 3."""
    graph = Graph("initializer_inputs", seed)
    x = graph.input("input", (1, 16))
    weights = []
    for name, shape in (("fc1", (16, 16)), ("fc2", (16, _CLASSES))):
        drawn = filters.normal(graph.rng(name), shape, std=shape[0] ** -0.5)
        bias = filters.normal(graph.rng(f"{name}.bias"), shape[1], std=0.1)
        weights.append(graph.weight(f"{name}.weight", drawn, listed=True))
        weights.append(graph.weight(f"{name}.bias", bias, listed=True))
    x = graph.op("Gemm", [x, *weights[:2]], name="fc1", shape=(1, 16))
    x = graph.op("Tanh", [x], name="tanh", shape=(1, 16))
    graph.output(graph.op("Gemm", [x, *weights[2:]], name="fc2", shape=(1, _CLASSES), output="output"))
    return graph.finish()


def tiny_constants(seed: int) -> Recipe:
    """No initializer but one: weights come from nodes, some of which must be computed first."""
    graph = Graph("constants", seed)
    x = graph.input("input", (1, 16))
    first = graph.constant("first.weight", filters.normal(graph.rng("first"), (16, 16), std=0.25), "float32")
    first = graph.op("Transpose", [first], name="first.transpose", shape=(16, 16), perm=[1, 0])
    x = tanh_layer(graph, x, first, "first.matmul")
    second = graph.weight("second.weight", filters.normal(graph.rng("second"), (16, _CLASSES), std=0.25))
    shape = graph.constant("bias.shape", [_CLASSES])
    zeros = graph.op("ConstantOfShape", [shape], name="bias", shape=(_CLASSES,), dtype="float32")
    graph.output(graph.op("Gemm", [x, second, zeros], name="second", shape=(1, _CLASSES), output="output"))
    return graph.finish()


def square(graph: Graph, name: str, width: int = 16, gain: float = 1.4) -> Value:
    """A square matrix; the gain makes up for what tanh takes away."""
    return graph.weight(name, filters.normal(graph.rng(name), (width, width), std=gain * width**-0.5))


def tanh_layer(graph: Graph, x: Value, weight: Value, name: str) -> Value:
    """tanh(x · weight)."""
    x = graph.op("MatMul", [x, weight], name=name, shape=x.shape)
    return graph.op("Tanh", [x], name=f"{name}.tanh", shape=x.shape)


def _net(name: str, seed: int) -> ConvNet:
    return ConvNet(name, seed, batch=1)


def _block(net: ConvNet, x: Feature, channels: int, name: str) -> Feature:
    return net.relu(net.conv(x, channels, 3, name=name, padding=1, bias=True), name=f"{name}.relu")


def _head(net: ConvNet, x: Feature) -> Feature:
    return net.linear(net.global_pool(x, name="pool_all"), _CLASSES, name="fc", output="logits")
