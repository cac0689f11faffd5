"""Put batch norms into the convolutions before them, so that a weight is rounded once and no norm is left over."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from partitioner import tensors

Array = npt.NDArray[np.float32]


def constant(value: ir.Value | None) -> npt.NDArray[np.generic] | None:
    """A value's numbers if it is an initializer, read from wherever they are."""
    if value is None or not value.is_initializer() or value.const_value is None:
        return None
    tensor = value.const_value
    if isinstance(tensor, ir.ExternalTensor):
        data = b"".join(tensors.chunks(tensor))
        return np.frombuffer(data, dtype=tensor.dtype.numpy()).reshape(tensor.shape.numpy())
    return np.asarray(tensor.numpy())


def weight(graph: ir.Graph, name: str, array: npt.NDArray[np.generic], dtype: ir.DataType) -> ir.Value:
    """A new initializer, registered under `name`, which must be free."""
    tensor = ir.Tensor(array, dtype=dtype, shape=ir.Shape(array.shape), name=name)
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def fold_batch_norms(graph: ir.Graph) -> int:
    """Fold every BatchNormalization whose input is a convolution that nobody else reads.

    The convolution's output takes the norm's name. Convolutions that share weights get weights of their own.

    Returns:
        How many were folded.
    """
    folded = 0
    for node in [*graph]:
        if node.op_type != "BatchNormalization" or node.domain not in ("", "ai.onnx"):
            continue
        source = node.inputs[0]
        conv = source.producer() if source is not None else None
        if conv is None or source is None or not _foldable(conv, source, node):
            continue
        if _fold(graph, conv, node):
            folded += 1
    return folded


def _foldable(conv: ir.Node, source: ir.Value, norm: ir.Node) -> bool:
    return (
        conv.op_type == "Conv"
        and conv.domain in ("", "ai.onnx")
        and not source.is_graph_output()
        and len(source.uses()) == 1
        and norm.attributes.get_int("training_mode", 0) == 0
        and all(output.name in (None, "") or not output.uses() for output in norm.outputs[1:])
    )


def _fold(graph: ir.Graph, conv: ir.Node, norm: ir.Node) -> bool:
    kernel = constant(conv.inputs[1])
    has_bias = len(conv.inputs) > 2 and conv.inputs[2] is not None
    bias = constant(conv.inputs[2]) if has_bias else None
    scale, shift, mean, variance = (constant(value) for value in norm.inputs[1:5])
    if kernel is None or (has_bias and bias is None) or kernel.dtype != np.float32:
        return False
    if scale is None or shift is None or mean is None or variance is None:
        return False
    epsilon = norm.attributes.get_float("epsilon", 1e-5)
    # In double precision, so that the folded weights are rounded once.
    factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
    offset = 0.0 if bias is None else bias.astype(np.float64)
    kernel_folded = kernel.astype(np.float64) * factor.reshape(-1, *(1,) * (kernel.ndim - 1))
    bias_folded = (offset - mean.astype(np.float64)) * factor + shift.astype(np.float64)
    output = norm.outputs[0]
    name = free_name(graph, f"{output.name}.weight")
    conv.replace_input_with(1, weight(graph, name, kernel_folded.astype(np.float32), ir.DataType.FLOAT))
    name = free_name(graph, f"{output.name}.bias")
    value = weight(graph, name, bias_folded.astype(np.float32), ir.DataType.FLOAT)
    if len(conv.inputs) < 3:
        conv.resize_inputs(3)
    conv.replace_input_with(2, value)
    made = conv.outputs[0]
    made.type, made.shape = output.type, output.shape
    output.replace_all_uses_with(made, replace_graph_outputs=True)
    graph.remove(norm, safe=True)
    made.name = output.name
    return True


def free_name(graph: ir.Graph, wanted: str) -> str:
    """`wanted`, or with a number after it where an initializer has that name already."""
    name, count = wanted, 1
    while name in graph.initializers:
        count += 1
        name = f"{wanted}.{count}"
    return name
