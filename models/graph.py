"""Builds an ONNX graph node by node, in the form in which an exporter leaves it, with weights made on demand.

A `Graph` collects nodes and `Weight`s; `finish` turns it into a `Recipe`: the graph without weights, and for
each weight how to make it. So a network of half a gigabyte can be described, counted or written tensor by
tensor without ever being held whole.

Naming: a node is called like the PyTorch module that it stands for (`layer1.0.conv1`), its output
`<node>.output`, its weights `<node>.weight`, `<node>.bias`, ….
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

OPSET = 17
"""LayerNormalization needs 17; every ONNX Runtime since 1.12 and TensorRT since 8.5 runs it."""

IR_VERSION = 8
"""The oldest that has model-local functions, hence the one that most runtimes accept."""

FUNCTION_DOMAIN = "defer.models"
"""Domain of the model-local functions."""

type_of = helper.np_dtype_to_tensor_dtype

Dimensions = tuple[int | str, ...]
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the graph: its name, NumPy dtype name and shape; a free dimension is a string."""

    name: str
    dtype: str
    shape: Dimensions


@dataclass(frozen=True, slots=True)
class Weight:
    """An initializer that is made when it is asked for.

    Attributes:
        name: Name of the initializer.
        dtype: NumPy's name of its element type.
        shape: Its dimensions.
        make: Returns the array, the same at each call.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], Array]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Length of the raw data in bytes."""
        return self.size * np.dtype(self.dtype).itemsize

    def header(self) -> onnx.TensorProto:
        """The initializer without its data."""
        return onnx.TensorProto(name=self.name, data_type=type_of(np.dtype(self.dtype)), dims=self.shape)

    def data(self) -> Array:
        """The array as it lies in the file: C order, little endian, of the declared dtype and shape."""
        array = np.ascontiguousarray(self.make(), dtype=np.dtype(self.dtype).newbyteorder("<"))
        if array.shape != self.shape:
            raise AssertionError(f"weight {self.name} was declared {self.shape} and made {array.shape}")
        return array


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole model whose weights are still to be made.

    Attributes:
        model: The model without initializers.
        weights: Its initializers, in the order of the file.
        parameters: Number of trainable parameters: all initializers but the running statistics of batch norm.
    """

    model: onnx.ModelProto
    weights: tuple[Weight, ...]
    parameters: int

    @property
    def weight_bytes(self) -> int:
        """Bytes of all initializers."""
        return sum(weight.nbytes for weight in self.weights)

    def to_proto(self) -> onnx.ModelProto:
        """The model with all weights in it. Two calls give equal models."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for weight in self.weights:
            tensor = model.graph.initializer.add()
            tensor.CopyFrom(weight.header())
            tensor.raw_data = weight.data().tobytes()
        return model


class Graph:
    """A graph under construction.

    Args:
        name: Name of the graph; also salts the random streams of its weights.
        seed: Seed of all weights, ≥ 0.
    """

    def __init__(self, name: str, seed: int = 0) -> None:
        self.name = name
        self.seed = seed
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._inner: dict[str, Value] = {}
        self._weights: dict[str, Weight] = {}
        self._functions: list[onnx.FunctionProto] = []
        self._statistics: set[str] = set()

    def rng(self, name: str) -> np.random.Generator:
        """A random stream that depends on the seed, the graph and `name` alone, not on the order of calls."""
        salt = zlib.crc32(f"{self.name}/{name}".encode())
        return np.random.Generator(np.random.SFC64(np.random.SeedSequence([self.seed, salt])))

    def input(self, name: str, shape: Sequence[int | str], dtype: str = "float32") -> Value:
        """Declare a graph input."""
        value = Value(name, dtype, tuple(shape))
        self._inputs.append(_info(value))
        return value

    def lazy_weight(
        self, name: str, shape: Sequence[int], make: Callable[[], Array], dtype: str = "float32"
    ) -> Value:
        """Add an initializer that `make` returns when the model is written."""
        if name in self._weights:
            raise AssertionError(f"two weights are called {name}")
        self._weights[name] = Weight(name, dtype, tuple(shape), make)
        return Value(name, dtype, tuple(shape))

    def weight(self, name: str, array: Array, *, listed: bool = False, statistic: bool = False) -> Value:
        """Add a small initializer whose values are known now.

        Args:
            name: Name of the initializer.
            array: Its values; its dtype is kept.
            listed: List it among the graph inputs too, as models before IR version 4 had to.
            statistic: It is a running statistic, not a trainable parameter.
        """
        value = self.lazy_weight(name, array.shape, lambda: array, array.dtype.name)
        if listed:
            self._inputs.append(_info(value))
        if statistic:
            self._statistics.add(name)
        return value

    def constant(self, name: str, content: Any, dtype: str = "int64") -> Value:
        """Add a Constant node, as exporters write shapes, axes and scalars."""
        array = np.asarray(content, dtype=dtype)
        tensor = onnx.TensorProto(dims=array.shape, data_type=type_of(array.dtype), raw_data=array.tobytes())
        return self.op("Constant", [], name=name, shape=array.shape, dtype=dtype, value=tensor)

    def op(
        self,
        op_type: str,
        inputs: Sequence[Value],
        *,
        name: str,
        shape: Sequence[int | str],
        dtype: str | None = None,
        output: str | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> Value:
        """Add a node with one output.

        Args:
            op_type: Operator.
            inputs: Its inputs.
            name: Name of the node.
            shape: Shape of its output.
            dtype: Its dtype; that of the first input unless given.
            output: Name of the output tensor; `<name>.output` unless given.
            domain: Operator domain.
            attributes: The node's attributes.
        """
        value = Value(output or f"{name}.output", dtype or inputs[0].dtype, tuple(shape))
        self.ops(op_type, inputs, [value], name=name, domain=domain, **attributes)
        return value

    def ops(
        self,
        op_type: str,
        inputs: Sequence[Value],
        outputs: Sequence[Value],
        *,
        name: str,
        domain: str = "",
        **attributes: Any,
    ) -> None:
        """Add a node with any number of outputs, which the caller declares."""
        arguments = [value.name for value in inputs]
        results = [value.name for value in outputs]
        self._nodes.append(
            helper.make_node(op_type, arguments, results, name=name, domain=domain or None, **attributes)
        )
        for value in outputs:
            if value.name in self._inner:
                raise AssertionError(f"two nodes write {value.name}")
            self._inner[value.name] = value

    def function(
        self, name: str, inputs: Sequence[str], outputs: Sequence[str], nodes: Sequence[Any]
    ) -> None:
        """Define a model-local function in the domain `defer.models`."""
        opsets = [helper.make_opsetid("", OPSET)]
        self._functions.append(
            helper.make_function(FUNCTION_DOMAIN, name, list(inputs), list(outputs), list(nodes), opsets)
        )

    def output(self, *values: Value) -> None:
        """Declare graph outputs, in order."""
        for value in values:
            self._outputs.append(_info(value))

    def body(self) -> onnx.GraphProto:
        """This graph as the body of a control-flow node; it may read any value of the graph around it."""
        if self._weights:
            raise AssertionError("the weights of a body belong to the graph around it")
        return helper.make_graph(self._nodes, self.name, self._inputs, self._outputs)

    def finish(self) -> Recipe:
        """The model as built so far."""
        outside = {info.name for info in self._outputs}
        infos = [_info(value) for name, value in self._inner.items() if name not in outside]
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, value_info=infos)
        opsets = [helper.make_opsetid("", OPSET)]
        if self._functions:
            opsets.append(helper.make_opsetid(FUNCTION_DOMAIN, 1))
        model = helper.make_model(
            graph,
            producer_name="defer",
            opset_imports=opsets,
            functions=self._functions,
            ir_version=IR_VERSION,
        )
        weights = tuple(self._weights.values())
        return Recipe(model, weights, sum(w.size for w in weights if w.name not in self._statistics))


def _info(value: Value) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(value.name, type_of(np.dtype(value.dtype)), list(value.shape))
