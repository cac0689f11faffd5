"""NVIDIA's and Microsoft's real packages on a machine without a GPU: what a user meets who installed too little.

Each test runs where its package happens to be installed, and is passed over elsewhere.
"""

from __future__ import annotations

import ctypes

import onnxruntime
import pytest

from node_agent.engines import onnxruntime_providers
from node_agent.engines.choice import WithFallback
from node_agent.engines.cuda import DRIVER, Cuda
from node_agent.engines.onnxruntime_cpu import OnnxRuntimeCpu
from node_agent.errors import EngineMissingError
from node_agent.sensors_nvml import Nvml


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


pytestmark = pytest.mark.skipif(has_driver(), reason="this machine has a driver")


def test_cuda_bindings_without_a_driver():
    pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    with pytest.raises(EngineMissingError, match="CUDA cannot be used") as caught:
        Cuda()
    assert "\n" not in str(caught.value)
    assert caught.value.hint == DRIVER


def test_nvml_without_a_driver():
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    nvml = Nvml()
    assert "NVML Shared Library Not Found" in nvml.missing
    assert nvml.read() == {}
    nvml.close()


@pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="onnxruntime-gpu is not installed",
)
def test_onnxruntime_gpu_without_cuda(partition):
    engine = onnxruntime_providers.cuda()
    assert "libcu" in engine.info().missing
    session = WithFallback("onnxruntime-cuda", engine, "onnxruntime-cpu", OnnxRuntimeCpu()).load(partition)
    assert session.engine == "onnxruntime-cpu"
    assert "cannot open shared object file" in session.notes[0]
    session.close()


@pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="onnxruntime-gpu is not installed",
)
def test_onnxruntime_gpus_silent_fallback_is_found_out(partition, monkeypatch):
    """As if the library's absence had not been noticed beforehand."""
    monkeypatch.setattr(onnxruntime_providers.OnnxRuntimeProvider, "_check", lambda *_: None)
    with pytest.raises(
        EngineMissingError, match="runs on CPUExecutionProvider instead of CUDAExecutionProvider"
    ):
        onnxruntime_providers.cuda().load(partition)
