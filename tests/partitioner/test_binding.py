import onnx_ir as ir
import pytest

import partitioner
from partitioner.binding import bind
from partitioner.errors import MissingDimension, WrongInput
from partitioner.proto import ValueType


def types(**shapes):
    return {name: ValueType("tensor", ir.DataType.FLOAT, dims) for name, dims in shapes.items()}


def test_a_batch_is_one_and_names_are_shared():
    bound = bind(types(x=("batch", 3), y=("batch", "seq")), {"y": (4, 7)})
    assert bound.values == {"batch": 4, "seq": 7}
    assert bound.types["x"].dims == (4, 3)
    assert bind(types(x=("N", 3)), {}).values == {"N": 1}
    assert bind(types(lengths=("batch_size",)), {}).values == {"batch_size": 1}


@pytest.mark.parametrize(
    "dims", [("seq", "batch", 8), ("batch", "height", "width"), ("length",), ("anything",)]
)
def test_what_is_no_batch_must_be_given(dims):
    with pytest.raises(MissingDimension, match=r"of input 'x' has no size") as caught:
        bind(types(x=dims), {})
    assert "--input x=" in caught.value.hint
    assert bind(types(x=dims), {"x": tuple(d if isinstance(d, int) else 5 for d in dims)})


def test_incomplete_leaves_names():
    assert bind(types(x=("batch", "h")), {}, complete=False).types["x"].dims == ("batch", "h")


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"z": (1,)}, "no input 'z'; its inputs are 'x', 'y'"),
        ({"x": (1, 2)}, "3 dimensions"),
        ({"x": (1, 4, 5)}, "does not fit"),
        ({"x": (0, 3, 5)}, "at least 1"),
        ({"x": (1, 3, 5), "y": (2, 5)}, "'n' was given two sizes, 1 and 2"),
    ],
)
def test_contradictions(shapes, message):
    with pytest.raises(WrongInput, match=message):
        bind(types(x=("n", 3, "w"), y=("n", "w")), shapes)


def test_through_analyze(build):
    build.input("ids", ["batch", "tokens"], 7)
    build.op("Neg", "ids", out="y")
    build.output("y", None, 7)
    model = build.model()
    with pytest.raises(
        MissingDimension, match=r"dimension 1 \('tokens'\) of input 'ids' has no size"
    ) as caught:
        partitioner.analyze(model)
    assert "--input ids=1,?" in caught.value.hint
    assert partitioner.analyze(model, {"ids": (1, 9)}).bindings == {"batch": 1, "tokens": 9}
    with pytest.raises(WrongInput):
        partitioner.split(model, [], input_shapes={"ids": (1, 2, 3)})


def test_rank_unknown(build):
    build.input("x", None)
    build.op("Relu", "x", out="y")
    build.output("y")
    with pytest.raises(MissingDimension, match="declares no shape"):
        partitioner.analyze(build.model())
    assert partitioner.analyze(build.model(), {"x": (2, 3)}).boundaries[0].nbytes == 24


def test_positions_do_not_depend_on_shapes(build):
    build.input("x", ["batch", "h", "w"])
    for name in "abcd":
        build.op("ReduceSum" if name < "c" else "Concat", *(["x"] if name < "c" else ["x", "x"]), out=name,
                 **({"keepdims": 1} if name < "c" else {"axis": 1}))  # fmt: skip
    build.op("Add", "a", "b", out="ab")
    build.op("Add", "c", "d", out="cd")
    build.op("Add", "ab", "cd", out="y")
    build.output("y")
    model = build.model()
    orders = {
        tuple(block.name for block in partitioner.analyze(model, {"x": shape}).blocks)
        for shape in ((1, 1, 1), (9, 1, 500), (1, 300, 2))
    }
    assert len(orders) == 1
