"""The published networks, run once each: activations of order one through the whole depth, outputs that live.

Codecs and accuracy are judged on these activations, so they must neither explode nor die, ReLUs must leave about as
many zeros as trained ones do, tokens must not all become one, and the outputs must follow the input.
"""

import gc
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import models

ZOO = [name for name in models.NAMES if models.describe(name).kind == "zoo"]
VISION = [name for name in ZOO if name != "bert_base"]

# Softmax makes shares of one; masks and what is computed from shapes are no activations.
NOT_ACTIVATIONS = {"Constant", "Softmax", "Shape", "Sub", "Cast", "Unsqueeze"}


@dataclass
class Tensor:
    op_type: str
    declared: tuple
    shape: tuple
    std: float
    largest: float
    zeros: float


@dataclass
class Run:
    name: str
    tensors: dict[str, Tensor]
    outputs: dict[str, np.ndarray]


@pytest.fixture(scope="module", params=ZOO)
def zoo_run(request, tmp_path_factory):
    """Builds one network into a file with external data, and runs it on two inputs with every tensor an output."""
    name = request.param
    path = models.save(name, tmp_path_factory.mktemp(name) / "model.onnx", external=True)
    onnx.checker.check_model(path)
    model = onnx.load(path, load_external_data=False)
    assert models.count_parameters(model) == models.describe(name).parameters
    outputs = [info.name for info in model.graph.output]
    makers = {key: node for node in model.graph.node for key in node.output}
    declared = {info.name: info for info in [*model.graph.value_info, *model.graph.output]}
    model.graph.output.extend(
        info for info in model.graph.value_info if makers[info.name].op_type != "Constant"
    )
    onnx.save(model, path)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    keys = [output.name for output in session.get_outputs()]
    values = dict(zip(keys, session.run(keys, models.example_inputs(name, batch=2)), strict=True))
    del session
    tensors = {}
    for key, value in values.items():
        shape = tuple(dim.dim_param or dim.dim_value for dim in declared[key].type.tensor_type.shape.dim)
        real = value.dtype.kind == "f" and makers[key].op_type not in NOT_ACTIVATIONS
        std, largest = (float(value.std()), float(np.abs(value).max())) if real else (np.nan, np.nan)
        zeros = float((value == 0).mean())
        tensors[key] = Tensor(makers[key].op_type, shape, value.shape, std, largest, zeros)
    yield Run(name, tensors, {key: values[key] for key in outputs})
    del values
    for file in path.parent.iterdir():
        file.unlink()
    gc.collect()


pytestmark = pytest.mark.slow


def activations(run):
    """Tensors whose size says something: not the mask, nor the scores that it is added to."""
    return {
        key: tensor
        for key, tensor in run.tensors.items()
        if not np.isnan(tensor.std) and "mask" not in key and ".batch" not in key
    }


def test_every_tensor_has_its_declared_shape(zoo_run):
    bound = {"batch": 2, **models.describe(zoo_run.name).sizes}
    for key, tensor in zoo_run.tensors.items():
        assert tensor.shape == tuple(bound.get(size, size) for size in tensor.declared), key


def test_outputs_have_the_published_shapes(zoo_run):
    expected = {
        "last_hidden_state": (2, 128, 768),
        "pooler_output": (2, 768),
        "logits": (2, 1000),
    }
    assert {key: value.shape for key, value in zoo_run.outputs.items()} == {
        key: expected[key] for key in models.describe(zoo_run.name).output_shapes
    }


def test_activations_are_of_order_one_through_the_whole_depth(zoo_run):
    seen = activations(zoo_run)
    assert len(seen) > 30
    # Scores are a sum over 64 products before they are scaled down.
    wrong = {
        key: tensor.std
        for key, tensor in seen.items()
        if not 0.1 < tensor.std < (30 if key.endswith("scores.output") else 4)
    }
    assert not wrong
    assert max(tensor.largest for tensor in seen.values()) < 150


def test_the_last_layers_are_as_lively_as_the_first(zoo_run):
    kinds = {"BatchNormalization", "LayerNormalization"}
    stds = [tensor.std for tensor in zoo_run.tensors.values() if tensor.op_type in kinds]
    if not stds:
        stds = [tensor.std for tensor in zoo_run.tensors.values() if tensor.op_type == "Conv"]
    ends = max(4, len(stds) // 5)
    first, last = np.mean(stds[:ends]), np.mean(stds[-ends:])
    assert 0.5 < last / first < 2


def test_rectifiers_leave_about_half(zoo_run):
    shares = [tensor.zeros for tensor in zoo_run.tensors.values() if tensor.op_type in ("Relu", "Clip")]
    if zoo_run.name in ("vit_b16", "bert_base"):
        assert not shares
        return
    assert min(shares) > 0.25
    assert max(shares) < 0.75
    assert 0.4 < np.mean(shares) < 0.65


def test_the_output_changes_with_the_input_and_is_not_saturated(zoo_run):
    for value in zoo_run.outputs.values():
        assert np.isfinite(value).all()
        first, second = value.astype(np.float64)
        assert np.abs(first - second).mean() > 0.2 * np.abs(first).mean()
    logits = zoo_run.outputs.get("logits")
    if logits is not None:
        assert 0.5 < logits.std() < 4
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        assert (shares / shares.sum(axis=1, keepdims=True)).max() < 0.6
    else:
        pooled = zoo_run.outputs["pooler_output"]
        assert 0.3 < pooled.std() < 0.8
        assert (np.abs(pooled) > 0.99).mean() < 0.1


def test_tokens_do_not_all_become_one(zoo_run):
    if "last_hidden_state" not in zoo_run.outputs:
        assert zoo_run.name in VISION
        return
    tokens = zoo_run.outputs["last_hidden_state"][0]
    tokens = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    cosines = tokens @ tokens.T
    assert cosines[~np.eye(len(tokens), dtype=bool)].mean() < 0.85
