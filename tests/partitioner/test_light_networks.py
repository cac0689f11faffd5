"""The nine third-party networks that come with the onnx package, with weights that make them compute something.

As shipped, their weights are made by ConstantOfShape, so that every output is the same whatever the input.
"""

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import partitioner

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
NAMES = sorted(path.stem.removeprefix("light_") for path in FOLDER.glob("light_*.onnx"))
QUICK = ("squeezenet", "shufflenet")


def randomised(name, harness, seed=0):
    """The network with seeded weights that keep the variance of activations, and logits of order one."""
    model = onnx.load(FOLDER / f"light_{name}.onnx")
    model.ir_version = max(4, model.ir_version)
    rng = np.random.default_rng(seed)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    use = {i: (node.op_type, place) for node in model.graph.node for place, i in enumerate(node.input)}
    for node in [node for node in model.graph.node if node.op_type == "ConstantOfShape"]:
        shape = tuple(constants[node.input[0]])
        kind, place = use[node.output[0]]
        if kind == "Unsqueeze":
            kind, place = use[next(n.output[0] for n in model.graph.node if node.output[0] in n.input)]
        if len(shape) > 1:
            array = rng.standard_normal(shape, dtype=np.float32) * np.float32(np.sqrt(2 / np.prod(shape[1:])))
        elif (kind == "BatchNormalization" and place in (1, 4)) or kind == "Mul":
            array = rng.uniform(0.8, 1.2, shape)
        else:
            array = rng.normal(0, 0.02, shape)
        model.graph.initializer.append(
            numpy_helper.from_array(array.astype(np.float32, copy=False), node.output[0])
        )
        model.graph.node.remove(node)
    _scale_logits(model, harness)
    return model


def image(model, seed):
    weights = {tensor.name for tensor in model.graph.initializer}
    (info,) = (info for info in model.graph.input if info.name not in weights)
    shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
    coarse = np.random.default_rng(seed).normal(size=(*shape[:2], 7, 7))
    # Large patches: fine noise would average out and leave the logits alike for all inputs.
    return {info.name: np.kron(coarse, np.ones((32, 32))).astype(np.float32)}


def _scale_logits(model, harness):
    producers = {output: node for node in model.graph.node for output in node.output}
    softmax = [node for node in model.graph.node if node.op_type == "Softmax"]
    logits = softmax[0].input[0] if softmax else model.graph.output[0].name
    node = producers[logits]
    while node.op_type not in ("Gemm", "Conv"):
        node = producers[node.input[0]]
    session = harness.open_session(harness.with_outputs(model, [logits]))
    spread = harness.run(session, image(model, 9))[logits].std()
    for tensor in model.graph.initializer:
        if tensor.name in node.input[1:]:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) / spread, tensor.name))


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_chained_equals_whole(name, harness, scratch):
    path = scratch / f"{name}.onnx"
    onnx.save(
        randomised(name, harness),
        path,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=4096,
    )
    proto = onnx.load(path, load_external_data=False)
    feeds, others = image(proto, 1), image(proto, 2)
    whole = harness.open_session(path)
    (first,), (second,) = (harness.run(whole, f).values() for f in (feeds, others))
    assert np.isfinite(first).all()
    assert np.abs(first - second).max() > 0.05 * first.std() > 0
    del whole
    proof = harness.prove(path, feeds, every=name in QUICK, folder=scratch / "store")
    assert len(proof.chain.inputs) == 1
    coarse = partitioner.coarsen(proof.chain, 24)
    harness.run_parts(partitioner.split(path, coarse.positions), proof, folder=scratch / "store")
    parts = partitioner.split(path, partitioner.balance(coarse, 4))
    harness.run_parts(parts, proof, folder=scratch / "store", optimised=True, tolerance=1e-4)


@cache
def as_shipped(name):
    return partitioner.analyze(FOLDER / f"light_{name}.onnx")


@pytest.mark.parametrize("name", NAMES)
def test_as_shipped(name, harness):
    """Weights computed from constants are repeated: only activations cross."""
    path = FOLDER / f"light_{name}.onnx"
    chain = as_shipped(name)
    model = onnx.load(path)
    generated = {o for node in model.graph.node if node.op_type == "ConstantOfShape" for o in node.output}
    assert len(chain.inputs) == 1
    assert not generated & set(chain.tensors)
    assert chain.weight_bytes > 1e6
    parts = partitioner.split(path, partitioner.balance(chain, 8))
    assert sum(part.weight_bytes for part in parts) == chain.weight_bytes


def test_published_work():
    """Multiply-adds as published for these architectures (torchvision, fvcore), times two."""
    flops = {name: as_shipped(name).flops for name in ("resnet50", "vgg19", "densenet121", "squeezenet")}
    assert flops["resnet50"] == pytest.approx(2 * 4.1e9, rel=0.03)
    assert flops["vgg19"] == pytest.approx(2 * 19.6e9, rel=0.02)
    assert flops["densenet121"] == pytest.approx(2 * 2.87e9, rel=0.02)
    assert flops["squeezenet"] == pytest.approx(2 * 0.352e9, rel=0.02)
