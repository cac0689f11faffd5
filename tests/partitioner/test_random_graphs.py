"""Property: any graph, cut at any boundary, computes the same bits."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import partitioner
from partitioner.errors import InvalidOrder
from partitioner.preparing import prepare
from partitioner.reordering import predecessors

WIDTH = 4

KINDS = (
    "unary", "binary", "binary", "matmul", "bias", "concat", "split", "reshape", "far_shape", "cast", "topk",
    "if", "loop", "constant", "quantize", "dequantize_twice", "reduce", "dead",
)  # fmt: skip

steps = st.lists(st.tuples(st.sampled_from(KINDS), *[st.integers(0, 10**6)] * 4), min_size=1, max_size=14)


class RandomGraph:
    """Turns a list of drawn numbers into a graph over tensors of shape (N, 4)."""

    def __init__(self, build, inputs):
        self.build = build
        self.pool = [build.input(f"x{i}", ["N", WIDTH]) for i in range(inputs)]
        build.input("flag", [], TensorProto.BOOL)
        for i in range(3):
            build.weight(f"w{i}", (WIDTH, WIDTH))
        build.weight("axis1", np.array([1]))
        build.weight("row", np.array([1, WIDTH]))
        build.weight("zero", np.array([0]))
        build.weight("width", np.array([WIDTH]))
        build.weight("qs", np.float32(0.03))
        build.weight("qz", np.uint8(100))
        build.weight("turns", np.array(2))
        build.weight("yes", np.array(True))
        self.count = 0

    def pick(self, number):
        return self.pool[number % len(self.pool)]

    def name(self, stem):
        self.count += 1
        return f"{stem}{self.count}"

    def add(self, kind, a, b, c, d):
        build, op = self.build, self.build.op
        x, y = self.pick(a), self.pick(b)
        out = self.name("t")
        if kind == "unary":
            op(("Relu", "Tanh", "Sigmoid", "Neg")[c % 4], x, out=out)
        elif kind == "binary":
            op(("Add", "Mul", "Max", "Sub")[c % 4], x, y, out=out)
        elif kind == "matmul":
            op("MatMul", x, f"w{c % 3}", out=out)
        elif kind == "bias":
            op("Add", x, build.weight(self.name("bias"), (WIDTH,)), out=out)
        elif kind == "concat":
            wide = op("Concat", x, y, out=self.name("wide"), axis=1)
            op("MatMul", wide, build.weight(self.name("down"), (2 * WIDTH, WIDTH)), out=out)
        elif kind == "split":
            halves = [self.name("half"), self.name("half")]
            op("Split", x, out=halves, axis=1)
            op("Concat", halves[c % 2], halves[d % 2], out=out, axis=1)
        elif kind == "reshape":
            shape = op("Shape", x, out=self.name("shape"))
            first = op("Gather", shape, "zero", out=self.name("first"))
            target = op("Concat", first, "width", out=self.name("target"), axis=0)
            op("Reshape", y, target, out=out)
        elif kind == "far_shape":
            shape = op("Shape", x, out=self.name("shape"))
            total = op("ReduceSum", y, "axis1", out=self.name("sum"), keepdims=1)
            middle = op("Tanh", total, out=self.name("tanh"))
            op("Expand", middle, shape, out=out)
        elif kind == "cast":
            whole = op("Cast", x, out=self.name("int"), to=TensorProto.INT32)
            op("Cast", whole, out=out, to=TensorProto.FLOAT)
        elif kind == "topk":
            values, where = self.name("top"), self.name("index")
            op("TopK", x, "width", out=[values, where], axis=1)
            op("GatherElements", y, where, out=out, axis=1)
        elif kind == "if":
            branches = []
            for value, kernel in ((x, "Relu"), (y, "Tanh")):
                inner = self.name("b")
                nodes = [
                    helper.make_node("MatMul", [value, f"w{c % 3}"], [f"{inner}m"]),
                    helper.make_node(kernel, [f"{inner}m"], [inner]),
                ]
                branches.append(
                    helper.make_graph(nodes, inner, [], [helper.make_tensor_value_info(inner, 1, None)])
                )
            raw = op("If", "flag", out=self.name("if"), then_branch=branches[0], else_branch=branches[1])
            op("Identity", raw, out=out)
        elif kind == "loop":
            self._loop(x, y, out)
        elif kind == "constant":
            shape = numpy_helper.from_array(np.array([1, WIDTH]))
            op("Constant", out=self.name("dims"), value=shape)
            made = op("ConstantOfShape", f"dims{self.count}", out=self.name("made"))
            moved = op("Add", made, f"w{c % 3}", out=self.name("moved"))
            op("MatMul", x, moved, out=out)
        elif kind in ("quantize", "dequantize_twice"):
            small = op("QuantizeLinear", x, "qs", "qz", out=self.name("q"))
            large = op("DequantizeLinear", small, "qs", "qz", out=self.name("dq"))
            if kind == "quantize":
                op("MatMul", large, f"w{c % 3}", out=out)
            else:
                other = op("Relu", large, out=self.name("r"))
                op("Add", large, other, out=out)
        elif kind == "reduce":
            total = op("ReduceSum", x, "axis1", out=self.name("sum"), keepdims=1)
            op("Add", total, y, out=out)
        elif kind == "dead":
            op("Tanh", x, out=self.name("dead"))
            op("Identity", y, out=out)
        self.pool.append(out)

    def _loop(self, x, y, out):
        n = self.name("l")
        info = helper.make_tensor_value_info
        body = helper.make_graph(
            [
                helper.make_node("Add", [f"{n}s", y], [f"{n}a"]),
                helper.make_node("Tanh", [f"{n}a"], [f"{n}n"]),
                helper.make_node("Identity", [f"{n}g"], [f"{n}go"]),
            ],
            n,
            [info(f"{n}i", 7, []), info(f"{n}g", 9, []), info(f"{n}s", 1, None)],
            [info(f"{n}go", 9, []), info(f"{n}n", 1, None)],
        )
        self.build.op("Loop", "turns", "yes", x, out=out, body=body)


@st.composite
def graphs(draw):
    return draw(steps), draw(st.integers(1, 3)), draw(st.lists(st.integers(0, 10**6), min_size=1, max_size=3))


def build(harness, drawn, seed):
    plan, inputs, outputs = drawn
    graph = RandomGraph(harness.Builder(), inputs)
    for step in plan:
        graph.add(*step)
    made = graph.pool[inputs:]
    for name in dict.fromkeys([graph.pool[-1], *(made[number % len(made)] for number in outputs)]):
        graph.build.output(name, ["N", WIDTH])
    if seed % 3 == 0:
        graph.build.output("x0", ["N", WIDTH])
    if seed % 5 == 0:
        graph.build.output("w0", [WIDTH, WIDTH])
    return graph.build.model(opset=15)


def feeds_for(inputs, flag, seed):
    rng = np.random.default_rng(seed)
    feeds = {f"x{i}": rng.normal(size=(3, WIDTH)).astype(np.float32) for i in range(inputs)}
    feeds["flag"] = np.array(flag)
    return feeds


def check(harness, model, feeds, order=()):
    """Cut at every boundary at once and at each alone, chained partitions give the whole model's bits."""
    shapes = {name: array.shape for name, array in feeds.items()}
    chain = partitioner.analyze(model, shapes, order=order)
    whole = harness.run_whole(model, chain, feeds)
    plans = [chain.positions, *([position] for position in chain.positions)]
    for positions in plans:
        parts = partitioner.split(model, positions, order=order)
        values = harness.run_parts(parts, whole, folder=None)
        for name in whole.outputs:
            assert harness.equal(values[name], whole.values[name], 0.0)
    for boundary in chain.boundaries:
        sizes = [whole.values[name].nbytes for name in boundary.tensors]
        assert boundary.nbytes == sum(sizes)
        assert [chain.tensor_bytes[name] for name in boundary.tensors] == sizes
    return chain


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(graphs(), st.booleans(), st.integers(0, 2**32 - 1))
def test_every_boundary_of_random_graphs(harness, drawn, flag, seed):
    check(harness, build(harness, drawn, seed), feeds_for(drawn[1], flag, seed))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(graphs(), st.booleans(), st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
def test_every_boundary_of_every_order(harness, drawn, flag, seed, random):
    model, feeds = build(harness, drawn, seed), feeds_for(drawn[1], flag, seed)
    after = predecessors(prepare(model).layout)
    order: list[int] = []
    while len(order) < len(after):
        ready = [op for op, before in enumerate(after) if op not in order and set(before) <= set(order)]
        order.append(random.choice(ready))
    chain = check(harness, model, feeds, order)
    own = partitioner.analyze(model, {name: array.shape for name, array in feeds.items()})
    assert (chain.digest, chain.flops, chain.weight_bytes) == (own.digest, own.flops, own.weight_bytes)
    # An op put before one that it needs is refused, and so is an op left out or repeated.
    for op, before in enumerate(after):
        for other in before[:1]:
            swapped = [{op: other, other: op}.get(each, each) for each in order]
            with pytest.raises(InvalidOrder, match=f"op {op} .* before op"):
                partitioner.split(model, [], order=[op, *(each for each in order if each != op)])
            with pytest.raises(InvalidOrder):
                partitioner.analyze(model, order=swapped)
    for wrong in ([*order, 0], order[1:] or [1], [order[0]] * len(order) if len(order) > 1 else [7]):
        with pytest.raises(InvalidOrder, match="once"):
            partitioner.split(model, [], order=wrong)
