"""Models as protobufs: valid, reproducible, named like an exporter's, and with the published structure."""

import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import models
from models.building import recipe

ZOO = [name for name in models.NAMES if models.describe(name).kind == "zoo"]
TINY = [name for name in models.NAMES if models.describe(name).kind == "tiny"]

# Multiply-adds in billions for one image, from the `_ops` of torchvision's weights (their documentation's GFLOPS).
MULTIPLY_ADDS = {
    "resnet50": 4.089,
    "vgg16": 15.47,
    "vgg19": 19.632,
    "mobilenet_v2": 0.301,
    "densenet121": 2.834,
    "inception_v3": 5.713,
    "vit_b16": 17.564,
}

OPS = {
    "resnet50": {"Conv": 53, "BatchNormalization": 53, "Add": 16, "Relu": 49, "MaxPool": 1, "Gemm": 1},
    "vgg16": {"Conv": 13, "MaxPool": 5, "Gemm": 3},
    "vgg19": {"Conv": 16, "MaxPool": 5, "Gemm": 3},
    "mobilenet_v2": {"Conv": 52, "BatchNormalization": 52, "Clip": 35, "Add": 10},
    "densenet121": {"Conv": 120, "BatchNormalization": 121, "Concat": 58, "AveragePool": 3},
    "inception_v3": {"Conv": 94, "BatchNormalization": 94, "AveragePool": 9, "MaxPool": 4, "Concat": 15},
    "vit_b16": {"LayerNormalization": 25, "Softmax": 12, "Split": 12, "Erf": 12, "Expand": 1},
    "bert_base": {"LayerNormalization": 25, "Softmax": 12, "Erf": 12, "Tanh": 1},
}


@pytest.mark.parametrize("name", TINY)
def test_the_checker_and_shape_inference_accept_tiny_models(name):
    model = models.build(name)
    onnx.checker.check_model(model, full_check=True)
    assert models.count_parameters(model) == models.describe(name).parameters


@pytest.mark.parametrize("name", models.NAMES)
def test_declared_shapes_are_those_that_onnx_infers(name):
    made = recipe(name)
    bare = onnx.ModelProto()
    bare.CopyFrom(made.model)
    known = {info.name: shape_of(info) for info in [*bare.graph.value_info, *bare.graph.output]}
    del bare.graph.value_info[:]
    listed = {info.name for info in bare.graph.input}
    for weight in made.weights:
        if weight.name not in listed:
            element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(weight.dtype))
            bare.graph.input.append(onnx.helper.make_tensor_value_info(weight.name, element, weight.shape))
    inferred = onnx.shape_inference.infer_shapes(bare, strict_mode=True, data_prop=True)
    found = {
        info.name: shape_of(info)
        for info in inferred.graph.value_info
        if info.type.tensor_type.HasField("shape")  # a Loop's state may change its shape, so none is inferred
    }
    compared = 0
    for key, shape in found.items():
        declared = known[key]
        assert len(declared) == len(shape)
        for ours, theirs in zip(declared, shape, strict=True):
            if isinstance(ours, int) and isinstance(theirs, int) and theirs:
                compared += 1
                assert ours == theirs, key
    assert compared > 0
    assert len(known) >= sum(len(node.output) for node in made.model.graph.node)


@pytest.mark.parametrize("name", models.NAMES)
def test_names_are_unique_and_telling_and_versions_are_widely_run(name):
    model = recipe(name).model
    nodes = [node.name for node in model.graph.node]
    assert all(nodes)
    assert len(set(nodes)) == len(nodes)
    assert model.ir_version <= 9
    assert all(opset.version <= 19 for opset in model.opset_import)


def test_nodes_are_called_like_pytorch_modules():
    nodes = {node.name: node for node in recipe("resnet50").model.graph.node}
    conv = nodes["layer3.2.conv2"]
    assert list(conv.input) == ["layer3.2.relu1.output", "layer3.2.conv2.weight"]
    assert list(conv.output) == ["layer3.2.conv2.output"]
    assert nodes["layer3.2.bn2"].input[3] == "layer3.2.bn2.running_mean"
    assert "encoder.layer.11.attention.self.query.matmul" in {
        node.name for node in recipe("bert_base").model.graph.node
    }


@pytest.mark.parametrize("name", OPS)
def test_the_structure_is_the_published_one(name):
    counts = Counter(node.op_type for node in recipe(name).model.graph.node)
    assert {op: counts[op] for op in OPS[name]} == OPS[name]


@pytest.mark.parametrize("name", MULTIPLY_ADDS)
def test_the_work_is_the_published_one(name):
    made = recipe(name)
    shapes = {weight.name: weight.shape for weight in made.weights}
    graph = made.model.graph
    for info in [*graph.input, *graph.value_info, *graph.output]:
        shapes[info.name] = tuple(1 if isinstance(size, str) else size for size in shape_of(info))
    work = 0
    for node in graph.node:
        if node.op_type == "Conv":
            work += math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])
        elif node.op_type in ("MatMul", "Gemm"):
            work += math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
    assert work / 1e9 == pytest.approx(MULTIPLY_ADDS[name], rel=0.005)


@pytest.mark.parametrize("name", [*TINY, "mobilenet_v2"])
def test_a_seed_gives_the_same_bytes_and_another_gives_others(name):
    first, again, other = (serialised(models.build(name, seed=seed)) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert len(first) == len(other)


def test_the_bytes_do_not_depend_on_the_processor_or_its_threads():
    code = (
        "import hashlib, models\n"
        "for name in ('tiny_residual', 'mobilenet_v2'):\n"
        "    print(hashlib.sha256(models.build(name).SerializeToString(deterministic=True)).hexdigest())"
    )
    plain = {
        "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 AVX512F AVX512_SKX AVX512_ICL X86_V3 X86_V4",
        "OPENBLAS_NUM_THREADS": "1",
    }
    made = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(models.__file__).parent.parent,
            env={**os.environ, **settings},
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout
        for settings in ({}, plain)
    ]
    assert len(made[0]) > 100
    assert made[0] == made[1]


def test_weights_do_not_depend_on_the_order_in_which_they_are_made():
    made = recipe("tiny_residual")
    forward = {weight.name: weight.data() for weight in made.weights}
    for weight in reversed(made.weights):
        np.testing.assert_array_equal(weight.data(), forward[weight.name])


def test_two_layers_of_one_shape_have_different_weights():
    weights = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in models.build("tiny_shared_weight").graph.initializer
    }
    assert weights["tied.weight"].shape == weights["middle.weight"].shape
    assert np.abs(weights["tied.weight"] - weights["middle.weight"]).max() > 0.1


def test_running_statistics_are_not_counted():
    model = models.build("tiny_residual")
    everything = sum(math.prod(tensor.dims) for tensor in model.graph.initializer)
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    assert everything - models.count_parameters(model) == len(norms) * 2 * 8


@pytest.mark.parametrize("build", [models.build, models.example_inputs])
def test_a_negative_seed_is_refused(build):
    with pytest.raises(models.WrongArgumentError, match="-1"):
        build("tiny_chain", seed=-1)


def serialised(model):
    return model.SerializeToString(deterministic=True)


def shape_of(info):
    return tuple(dim.dim_param or dim.dim_value for dim in info.type.tensor_type.shape.dim)
