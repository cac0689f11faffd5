"""ONNX Runtime's providers: the one that a session really has counts, and what is missing is named."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from node_agent.engines import onnxruntime_providers
from node_agent.engines.choice import WithFallback
from node_agent.engines.onnxruntime_cpu import OnnxRuntimeCpu
from node_agent.engines.onnxruntime_providers import PROVIDERS, OnnxRuntimeProvider, Provider, why_absent
from node_agent.errors import EngineMissingError, LoadFailedError

ABSENT = [each for each in PROVIDERS if each.name not in onnxruntime.get_available_providers()]
PLAIN = Provider("onnxruntime-plain", "CPUExecutionProvider", "It is always there.")


@pytest.mark.parametrize("provider", ABSENT, ids=lambda each: each.engine)
def test_a_provider_that_is_not_built_in_is_one_clear_line_and_the_cpu_takes_over(provider, partition):
    engine = OnnxRuntimeProvider(provider)
    info = engine.info()
    assert f"built without {provider.name}" in info.missing
    assert provider.install in info.missing
    with pytest.raises(EngineMissingError, match=provider.name):
        engine.load(partition)
    session = WithFallback(provider.engine, engine, "onnxruntime-cpu", OnnxRuntimeCpu()).load(partition)
    assert session.engine == "onnxruntime-cpu"
    assert provider.name in session.notes[0]
    assert session.run({"x": np.zeros((1, 6), np.float32)})["y"].shape == (1, 4)
    session.close()


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda each: each.engine)
def test_what_is_missing_comes_with_the_command_that_installs_it(provider):
    assert "pip install" in provider.install


def test_no_onnxruntime_at_all(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for provider in PROVIDERS:
        assert "defer-edge[cpu]" in OnnxRuntimeProvider(provider).info().missing


def test_the_path_of_a_provider_on_the_real_runtime(partition):
    """With the CPU's own provider in the place of a GPU's, everything but the GPU is real."""
    engine = OnnxRuntimeProvider(PLAIN)
    assert engine.info().provider == "CPUExecutionProvider"
    session = engine.load(replace(partition, options={"optimization": "none"}))
    x = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
    other = OnnxRuntimeCpu().load(partition)
    np.testing.assert_allclose(session.run({"x": x})["y"], other.run({"x": x})["y"], rtol=1e-6)
    session.close()
    other.close()


def test_options_go_to_the_provider_as_they_are(partition, monkeypatch):
    asked = []

    class Recording(SilentRuntime):
        @staticmethod
        def InferenceSession(path, sess_options, providers):
            asked.extend(providers)
            return SilentRuntime.InferenceSession(path, sess_options, providers)

    monkeypatch.setattr(onnxruntime_providers, "import_runtime", Recording)
    options = {"device_id": "1", "arena_extend_strategy": "kSameAsRequested", "optimization": "basic"}
    with pytest.raises(EngineMissingError):
        onnxruntime_providers.cuda().load(replace(partition, options=options))
    assert asked == [
        ("CUDAExecutionProvider", {"device_id": "1", "arena_extend_strategy": "kSameAsRequested"})
    ]


def test_an_optimisation_level_that_does_not_exist(partition):
    with pytest.raises(LoadFailedError, match="optimization=most"):
        OnnxRuntimeProvider(PLAIN).load(replace(partition, options={"optimization": "most"}))


class SilentRuntime:
    """An ONNX Runtime that claims a provider and then runs on the CPU without a word, as the real one does."""

    __version__ = "1.31.1"
    __file__ = "/nowhere/onnxruntime/__init__.py"
    SessionOptions = onnxruntime.SessionOptions
    GraphOptimizationLevel = onnxruntime.GraphOptimizationLevel

    @staticmethod
    def get_available_providers():
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    @staticmethod
    def InferenceSession(path, sess_options, providers):
        assert providers[0][0] == "CUDAExecutionProvider"
        return onnxruntime.InferenceSession(path, sess_options, providers=["CPUExecutionProvider"])


def test_a_silent_fallback_is_found_out(partition, monkeypatch):
    monkeypatch.setattr(onnxruntime_providers, "import_runtime", SilentRuntime)
    with pytest.raises(
        EngineMissingError, match="runs on CPUExecutionProvider instead of CUDAExecutionProvider"
    ):
        onnxruntime_providers.cuda().load(partition)


@pytest.mark.integration
def test_a_library_that_is_missing_is_named(tmp_path):
    """A provider's library that needs another one which is not there, as CUDA's does on a box without CUDA."""
    import shutil
    import subprocess

    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    capi = tmp_path / "onnxruntime" / "capi"
    capi.mkdir(parents=True)
    source = tmp_path / "empty.c"
    source.write_text("int nothing(void) { return 0; }\n")

    def link(name: str, *more: str) -> None:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(capi / name), str(source), *more], check=True)

    link("libonnxruntime_providers_shared.so")
    link("libcublasLt.so.99")
    link("libonnxruntime_providers_cuda.so", "-Wl,--no-as-needed", f"-L{capi}", "-l:libcublasLt.so.99")
    runtime = SimpleNamespace(__file__=str(tmp_path / "onnxruntime" / "__init__.py"))
    provider = Provider("x", "XExecutionProvider", "", library="onnxruntime_providers_cuda")
    assert "libcublasLt.so.99" in why_absent(runtime, provider)
    link("libonnxruntime_providers_rocm.so")
    whole = Provider("y", "YExecutionProvider", "", library="onnxruntime_providers_rocm")
    assert why_absent(runtime, whole) == ""
