"""The only module that touches protobuf messages and the onnx package.

Everything else works on ``onnx_ir`` objects and on the plain :class:`ValueType` results from here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from partitioner.errors import InvalidModel, UnsupportedOp

_SMALL: Final = 4096  # bytes; initializers up to here may hold shapes, axes or scales that inference reads
ONNX_DOMAINS: Final = ("", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training")


@dataclass(frozen=True, slots=True)
class ValueType:
    """What is known about a value's type.

    Attributes:
        kind: ``tensor``, or the word for what it is instead: ``sequence``, ``optional``, ``sparse tensor``.
        dtype: element type, of the tensors inside for a sequence or an optional; UNDEFINED where unknown.
        dims: an int, a name or None (nothing known) per dimension; None if not even the rank is known.
    """

    kind: str
    dtype: ir.DataType
    dims: tuple[int | str | None, ...] | None


def parse(data: bytes) -> ir.Model:
    """A model from serialised bytes (weights of which may have been stripped).

    Raises:
        InvalidModel: if the bytes are no ONNX model.
        UnsupportedOp: if the model holds something onnx-ir would silently lose.
    """
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise InvalidModel(
            "not an ONNX model: the bytes are no protobuf message of this kind, or are truncated",
            hint="export the model again, and check that it opens in onnx.load",
        ) from error
    return from_proto(proto)


def from_proto(proto: onnx.ModelProto) -> ir.Model:
    """A model from a ModelProto, sharing its weights.

    Raises:
        InvalidModel: if it is no complete model.
        UnsupportedOp: if it holds sparse initializers, which onnx-ir drops.
    """
    if not proto.HasField("graph") or not proto.opset_import:
        raise InvalidModel(
            "not an ONNX model: it has no graph or declares no opset",
            hint="export the model again, and check that it opens in onnx.load",
        )
    if proto.graph.sparse_initializer:
        name = proto.graph.sparse_initializer[0].values.name
        raise UnsupportedOp(
            f"the model stores {name!r} as a sparse initializer, which cannot be split yet",
            hint="store it as a dense initializer",
        )
    try:
        model = ir.serde.deserialize_model(proto)
        for opsets in (model.graph.opset_imports, *(f.opset_imports for f in model.functions.values())):
            if "ai.onnx" in opsets:  # the default domain's long name
                opsets.setdefault("", opsets.pop("ai.onnx"))
        return model
    except (ValueError, TypeError, NotImplementedError, RuntimeError, ir.serde.SerdeError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
        raise InvalidModel(f"the ONNX model cannot be read: {reason}") from error


def serialize_graph(graph: ir.Graph | ir.GraphView, *, ir_version: int) -> bytes:
    """Bytes of a GraphProto, the same for the same graph."""
    proto = onnx.GraphProto()
    ir.serde.serialize_graph_into(proto, from_=graph, model_ir_version=ir_version)  # type: ignore[arg-type]
    # onnx-ir repeats every initializer's type as a value_info: the tensor itself says the same.
    weights = set(graph.initializers)
    kept = [info for info in proto.value_info if info.name not in weights]
    del proto.value_info[:]
    proto.value_info.extend(kept)
    return bytes(proto.SerializeToString(deterministic=True))


def serialize_envelope(model: ir.Model) -> bytes:
    """Bytes of the ModelProto without its graph: versions, opsets, functions, metadata."""
    empty = ir.Graph((), (), nodes=(), opset_imports=dict(model.graph.opset_imports))
    shell = ir.Model(
        empty,
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        domain=model.domain,
        model_version=model.model_version,
        doc_string=model.doc_string,
        functions=tuple(model.functions.values()),
        metadata_props=dict(model.metadata_props),
    )
    proto = ir.serde.serialize_model(shell)
    proto.ClearField("graph")
    return bytes(proto.SerializeToString(deterministic=True))


def tensor_header(tensor: ir.TensorProtocol, name: str) -> bytes:
    """Bytes of a TensorProto without its raw data."""
    proto = onnx.TensorProto(name=name, data_type=tensor.dtype.value, dims=tensor.shape.numpy())
    return bytes(proto.SerializeToString(deterministic=True))


def check_ops(nodes: Iterable[ir.Node], opsets: Mapping[str, int], functions: Collection[object]) -> None:
    """Refuse ops that no ONNX opset defines.

    Ops of other domains pass: the engine may know them.

    Raises:
        UnsupportedOp: naming op, node and domain.
    """
    known: set[tuple[str, str]] = set()
    for node in nodes:
        key = (node.domain, node.op_type)
        if key in known or node.op_identifier() in functions:
            continue
        where = f"op {node.op_type!r} (node {node.name or node.outputs[0].name!r})"
        if node.domain not in opsets:
            raise UnsupportedOp(
                f"{where} is of domain {node.domain!r}, which the model imports no opset of",
                hint="export the model again with this domain's opset declared",
            )
        if node.domain in ONNX_DOMAINS:
            try:
                onnx.defs.get_schema(node.op_type, opsets[node.domain], node.domain)
            except onnx.defs.SchemaError as error:
                raise UnsupportedOp(
                    f"{where} is unknown: ONNX opset {opsets[node.domain]} of domain {node.domain or 'ai.onnx'!r} "
                    f"(onnx {onnx.__version__}) does not define it",
                    hint="export the model for an opset that defines it, or give the op its own domain",
                ) from error
        known.add(key)


class ShapeInference:
    """ONNX's shape inference over a graph whose weights stay where they are.

    The graph is serialised once, with weights above 4 KiB listed as typed inputs instead (which is also
    what lets a model above protobuf's 2 GB limit pass); each run sets other input shapes.
    """

    def __init__(self, model: ir.Model, graph: ir.Graph, inputs: Iterable[ir.Value]) -> None:
        """Prepare a graph of ``model``.

        Args:
            model: gives opsets and functions.
            graph: the main graph or an op's body.
            inputs: values that ``graph`` takes from outside, captured ones included.
        """
        large: list[ir.Value] = []
        small: list[ir.Value] = []
        for value in graph.initializers.values():
            tensor = value.const_value
            (small if tensor is not None and tensor.nbytes <= _SMALL else large).append(value)
        self._names = [value.name or "" for value in inputs]
        view = ir.GraphView(
            (), (), nodes=tuple(graph), opset_imports=dict(model.graph.opset_imports), name="g"
        )
        self._proto = ir.serde.serialize_model(
            ir.Model(view, ir_version=max(model.ir_version, 4), functions=tuple(model.functions.values()))  # type: ignore[arg-type]
        )
        body = self._proto.graph
        # Declared shapes are believed only where nothing can be inferred; exporters get them wrong.
        opaque = {
            output.name
            for node in graph
            if node.domain not in ONNX_DOMAINS and node.op_identifier() not in model.functions
            for output in node.outputs
        }
        kept = [info for info in body.value_info if info.name in opaque]
        del body.value_info[:]
        body.value_info.extend(kept)
        for value in large:
            if value.const_value is not None:
                _add_input(body, value.name or "", value.const_value.dtype, value.const_value.shape.numpy())
        for value in small:
            tensor = value.const_value
            if tensor is not None:
                plain = tensor
                if isinstance(tensor, ir.ExternalTensor):
                    plain = ir.Tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=value.name)
                plain.name = value.name
                ir.serde.serialize_tensor_into(body.initializer.add(), plain)
        for value in graph.outputs:
            if value.name and value.producer() is not None:
                body.output.add().name = value.name

    def run(
        self,
        inputs: Mapping[str, ValueType],
        hints: Mapping[str, ValueType] | None = None,
        values: Mapping[str, ir.TensorProtocol] | None = None,
    ) -> dict[str, ValueType]:
        """Types of every value that inference reaches.

        Args:
            inputs: types of the graph's inputs and captured values, by name.
            hints: types of values inside the graph that are known otherwise.
            values: values inside the graph that are known otherwise; the ops that make them are left out.

        Returns:
            Types by value name; what could not be inferred is absent or has unknown dimensions.

        Raises:
            InvalidModel: if inference rejects the whole model.
        """
        proto = onnx.ModelProto()
        proto.CopyFrom(self._proto)
        for name in self._names:
            known = inputs.get(name)
            if known is not None and known.kind == "tensor":
                _add_input(proto.graph, name, known.dtype, known.dims)
        hinted = {} if hints is None else hints
        kept = [info for info in proto.graph.value_info if info.name not in hinted]
        del proto.graph.value_info[:]
        proto.graph.value_info.extend(kept)
        for name, known in hinted.items():
            shape = None if known.dims is None else list(known.dims)
            proto.graph.value_info.append(onnx.helper.make_tensor_value_info(name, known.dtype.value, shape))
        if values:
            nodes = [node for node in proto.graph.node if node.output[0] not in values]
            del proto.graph.node[:]
            proto.graph.node.extend(nodes)
            for tensor in values.values():
                ir.serde.serialize_tensor_into(proto.graph.initializer.add(), tensor)
        try:
            result = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        except Exception as error:
            if type(error).__module__.split(".")[0] not in ("onnx", "builtins"):
                raise
            raise InvalidModel(
                f"ONNX shape inference rejects the model: {str(error).strip().splitlines()[0]}",
                hint="check the model with onnx.checker.check_model",
            ) from error
        graph = result.graph
        return {
            info.name: _value_type(info.type)
            for group in (graph.value_info, graph.input, graph.output)
            for info in group
            if info.HasField("type")
        }


def _add_input(
    graph: onnx.GraphProto, name: str, dtype: ir.DataType, dims: Iterable[int | str | None] | None
) -> None:
    shape = None if dims is None else list(dims)
    graph.input.append(onnx.helper.make_tensor_value_info(name, dtype.value, shape))


def _value_type(proto: onnx.TypeProto) -> ValueType:
    if not proto.HasField("tensor_type"):
        field = proto.WhichOneof("value") or "unknown"
        held = getattr(proto, field).elem_type if field in ("sequence_type", "optional_type") else proto
        dtype = held.tensor_type.elem_type if held.HasField("tensor_type") else 0
        return ValueType(field.removesuffix("_type").replace("_", " "), ir.DataType(dtype), None)
    tensor = proto.tensor_type
    dims = None
    if tensor.HasField("shape"):
        dims = tuple(_dimension(dim) for dim in tensor.shape.dim)
    return ValueType("tensor", ir.DataType(tensor.elem_type), dims)


def _dimension(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value) if dim.dim_value >= 0 else None
    return str(dim.dim_param) or None


def raw_tensor(like: ir.TensorProtocol, raw: bytes) -> ir.TensorProtocol:
    """A tensor in memory of the same name, type and shape, over the given raw bytes."""
    tensor = onnx.TensorProto(
        name=like.name or "", data_type=like.dtype.value, dims=like.shape.numpy(), raw_data=raw
    )
    return ir.serde.TensorProtoTensor(tensor)
