"""What the engine tests share: small partitions on disk, and NVIDIA's libraries played by stand-ins."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from node_agent.engines import cuda
from node_agent.engines.base import Partition
from node_agent.messages import TensorSpec

FAKES = Path(__file__).parent / "fakes"


def load_module(path: Path) -> ModuleType:
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def save(folder: Path, nodes, inputs, outputs, weights, name: str = "part.onnx") -> Path:
    graph = helper.make_graph(nodes, "part", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def linear(folder: Path, dtype: str = "float32") -> Partition:
    """y = relu(x·w + b) with a free batch, and its row sums as a second output."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    random = np.random.default_rng(3)
    weight = random.standard_normal((6, 4)).astype(dtype)
    bias = random.standard_normal(4).astype(dtype)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["a"]),
        helper.make_node("Relu", ["a"], ["y"]),
        helper.make_node("ReduceSum", ["y", "axes"], ["s"], keepdims=0),
    ]
    weights = [
        numpy_helper.from_array(weight, "w"),
        numpy_helper.from_array(bias, "b"),
        numpy_helper.from_array(np.array([1]), "axes"),
    ]
    value = helper.make_tensor_value_info
    path = save(
        folder,
        nodes,
        [value("x", kind, ["batch", 6])],
        [value("y", kind, ["batch", 4]), value("s", kind, ["batch"])],
        weights,
        f"linear_{dtype}.onnx",
    )
    return Partition(
        path,
        (TensorSpec("x", dtype, ("batch", 6)),),
        (TensorSpec("y", dtype, ("batch", 4)), TensorSpec("s", dtype, ("batch",))),
    )


def embedding(folder: Path) -> Partition:
    """int64 indices and a bool mask in, rows of a table and a count out."""
    table = np.random.default_rng(4).standard_normal((9, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Not", ["mask"], ["kept"]),
    ]
    value = helper.make_tensor_value_info
    path = save(
        folder,
        nodes,
        [value("ids", TensorProto.INT64, [5]), value("mask", TensorProto.BOOL, [5])],
        [value("rows", TensorProto.FLOAT, [5, 3]), value("kept", TensorProto.BOOL, [5])],
        [numpy_helper.from_array(table, "table")],
        "embedding.onnx",
    )
    return Partition(
        path,
        (TensorSpec("ids", "int64", (5,)), TensorSpec("mask", "bool", (5,))),
        (TensorSpec("rows", "float32", (5, 3)), TensorSpec("kept", "bool", (5,))),
    )


@pytest.fixture
def partition(tmp_path: Path) -> Partition:
    return linear(tmp_path)


@pytest.fixture
def make_partition(tmp_path: Path) -> Callable[[str], Partition]:
    def make(kind: str) -> Partition:
        return embedding(tmp_path) if kind == "embedding" else linear(tmp_path, kind)

    return make


@pytest.fixture
def fake_tensorrt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Puts the stand-in for TensorRT on the path, here and for children; call it again to change its behaviour."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FAKES), str(Path(__file__).parents[3])]))
    monkeypatch.setenv("DEFER_ENGINE_CACHE", str(tmp_path / "engines"))
    monkeypatch.syspath_prepend(str(FAKES))

    def set_up(mode: str = "", version: str = "11.4.0.106") -> None:
        monkeypatch.setenv("FAKE_TENSORRT", mode)
        monkeypatch.setenv("FAKE_TENSORRT_VERSION", version)
        sys.modules.pop("tensorrt", None)

    set_up()
    yield set_up
    sys.modules.pop("tensorrt", None)


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """Makes a stand-in for the CUDA driver and puts it in the driver's place."""
    module = load_module(FAKES / "cuda_driver.py")

    def set_up(**options):
        driver = module.FakeDriver(**options)
        monkeypatch.setattr(cuda, "driver_api", lambda: driver)
        return driver

    set_up.results = module.CUresult
    return set_up
