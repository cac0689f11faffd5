"""ONNX Runtime with an execution provider other than the CPU's (https://onnxruntime.ai/docs/execution-providers/).

ONNX Runtime falls back to the CPU without a word when a provider cannot start. Here the provider that a session
really has is looked up, and what is missing is found by loading the provider's library beforehand.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from node_agent.engines.base import Partition, Session
from node_agent.engines.cuda import Cuda
from node_agent.engines.onnxruntime_bound import BoundSession, bindable
from node_agent.engines.onnxruntime_cpu import LEVELS, bind, import_runtime, sentence
from node_agent.errors import AgentError, EngineMissingError, LoadFailedError, OutOfMemoryError
from node_agent.interpreter import python
from node_agent.machine import trim
from node_agent.messages import EngineInfo


@dataclass(frozen=True, slots=True)
class Provider:
    """One execution provider.

    Attributes:
        engine: What `--engine` calls it.
        name: What ONNX Runtime calls it.
        install: How to get an ONNX Runtime that has it.
        libraries: How to get what it needs besides.
        library: Stem of its shared library beside ONNX Runtime's own; empty where it is built in.
        also: Providers that take the ops it leaves, before the CPU.
        options: Options that it always gets, unless the deployment sets them.
        binds: Whether it computes on a CUDA stream that it is given, on buffers of ours.
        memory: What ONNX Runtime calls the memory of its device.
    """

    engine: str
    name: str
    install: str
    libraries: str = "Install the vendor's driver and runtime."
    library: str = ""
    also: tuple[str, ...] = ()
    options: Mapping[str, str] | None = None
    binds: bool = False
    memory: str = "cuda"


_GPU = (
    'pip uninstall onnxruntime, then pip install "defer-edge[gpu]" (x86-64); on a Jetson see docs/install.md.'
)

_CUDA = 'Install CUDA and cuDNN: pip install "onnxruntime-gpu[cuda,cudnn]", and NVIDIA\'s driver.'

_AMD = "https://repo.radeon.com/rocm/manylinux/"
"""Where AMD keeps its wheels, a folder for each release of ROCm."""

PROVIDERS = (
    Provider(
        "onnxruntime-tensorrt",
        "TensorrtExecutionProvider",
        _GPU,
        f"{_CUDA} TensorRT of the version that is named: pip install tensorrt-cu13 or tensorrt-cu12.",
        "onnxruntime_providers_tensorrt",
        also=("CUDAExecutionProvider",),
    ),
    Provider(
        "onnxruntime-cuda", "CUDAExecutionProvider", _GPU, _CUDA, "onnxruntime_providers_cuda", binds=True
    ),
    Provider(
        "onnxruntime-rocm",
        "ROCMExecutionProvider",
        "pip uninstall onnxruntime, then pip install onnxruntime-rocm -f "
        f"{_AMD}rocm-rel-6.4.1/ (the folder of your ROCm; from 7 on there is onnxruntime-migraphx alone).",
        library="onnxruntime_providers_rocm",
    ),
    Provider(
        "onnxruntime-migraphx",
        "MIGraphXExecutionProvider",
        f"pip uninstall onnxruntime, then pip install onnxruntime-migraphx -f {_AMD}rocm-rel-7.2.1/ (the folder of "
        "your ROCm).",
        library="onnxruntime_providers_migraphx",
    ),
    Provider(
        "onnxruntime-openvino",
        "OpenVINOExecutionProvider",
        "pip uninstall onnxruntime, then pip install onnxruntime-openvino.",
        library="onnxruntime_providers_openvino",
    ),
    Provider(
        "onnxruntime-coreml",
        "CoreMLExecutionProvider",
        'Only macOS has it; there: pip install "defer-edge[cpu]".',
    ),
)
"""All that can be asked for by name, the fastest as a rule first."""

_BY_ENGINE = {provider.engine: provider for provider in PROVIDERS}

_NVIDIA = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
_PROBE_S = 60.0
"""Seconds that a library may take to load; CUDA's are large."""

OWN_OPTIONS = ("optimization", "cpu_ops", "slots")
"""Options that are ours; every other one is passed to the provider as it is."""


class OnnxRuntimeProvider:
    """ONNX Runtime on one provider."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    def info(self) -> EngineInfo:
        """See `Engine.info`."""
        name = self._provider.engine
        try:
            runtime = import_runtime()
            self._check(runtime)
        except EngineMissingError as error:
            return EngineInfo(name, missing=f"{error} {error.hint}")
        return EngineInfo(name, runtime.__version__, self._provider.name)

    def load(self, partition: Partition) -> Session:
        """See `Engine.load`.

        Options: `optimization` as on the CPU; `cpu_ops=no` refuses a partition of which the provider leaves ops to
        the CPU; all others go to the provider.
        """
        runtime = import_runtime()
        self._check(runtime)
        level = partition.options.get("optimization", "all")
        if level not in LEVELS:
            raise LoadFailedError(f"There is no optimization={level}.", hint=f"Choose {'|'.join(LEVELS)}.")
        slots = partition.options.get("slots", "2")
        if not slots.isdecimal() or int(slots) < 1:
            raise LoadFailedError(f"There is no slots={slots}.", hint="Give a number, 1 or more.")
        if self._provider.binds and int(slots) > 1 and not bindable(partition):
            session = self._bound(runtime, partition, int(slots))
            if session is not None:
                return session
        return bind(runtime, self._inner(runtime, partition), partition)

    def _bound(self, runtime: Any, partition: Partition, slots: int) -> Session | None:
        """A session whose copies overlap with its computation; None where that cannot be had.

        What is started is not waited for, so no op may be left to the CPU: its results would be copied to the device
        after the run was said to be on its way.
        """
        ordinal = partition.options.get("device_id", "0")
        if "user_compute_stream" in partition.options or not ordinal.isdecimal():
            return None
        try:
            cuda = Cuda(int(ordinal))
        except AgentError:
            return None
        stream = None
        try:
            cuda.enter()
            stream = cuda.stream()
            inner = self._inner(runtime, partition, stream=stream)
            memory = self._provider.memory
            return BoundSession(
                runtime, inner, cuda, stream, partition, slots=slots, ordinal=int(ordinal), memory=memory
            )
        except BaseException as error:
            if stream is not None:
                cuda.destroy_stream(stream)
            cuda.close()
            if isinstance(error, AgentError):
                return (
                    None  # the usual session says what is wrong, if that is more than this way of running it
                )
            raise

    def _inner(self, runtime: Any, partition: Partition, stream: Any = None) -> Any:
        """An `InferenceSession` that is on the provider.

        Raises:
            EngineMissingError: It is on another one.
            LoadFailedError: An op cannot be run.
        """
        options = runtime.SessionOptions()
        options.intra_op_num_threads = partition.threads
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        level = LEVELS[partition.options.get("optimization", "all")]
        options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, level)
        passed = {name: value for name, value in partition.options.items() if name not in OWN_OPTIONS}
        if stream is not None:
            passed["user_compute_stream"] = str(int(stream))
        if partition.options.get("cpu_ops") == "no" or stream is not None:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        wanted: list[Any] = [(self._provider.name, {**(self._provider.options or {}), **passed})]
        wanted += [name for name in self._provider.also if name in runtime.get_available_providers()]
        try:
            # With a fallback it would print, and try the CPU, before it says what is wrong.
            more = {} if stream is None else {"enable_fallback": 0}
            inner = runtime.InferenceSession(
                str(partition.graph), sess_options=options, providers=wanted, **more
            )
        except Exception as error:
            said = sentence(error)
            kind = OutOfMemoryError if "out of memory" in said.lower() else LoadFailedError
            raise kind(
                f"{self._provider.name} cannot run an op of the model: {said}",
                hint="Run it on onnxruntime-cpu, or cut the model around the op.",
            ) from None
        trim()
        actual = inner.get_providers()
        if not actual or actual[0] != self._provider.name:
            reason = why_absent(runtime, self._provider) or "ONNX Runtime gives no reason"
            raise EngineMissingError(
                f"ONNX Runtime runs on {actual[0] if actual else 'nothing'} instead of {self._provider.name}: {reason}.",
                hint=self._provider.libraries,
            )
        return inner

    def _check(self, runtime: Any) -> None:
        """The provider is built in, and what its library needs is there.

        Raises:
            EngineMissingError: Saying what is not.
        """
        provider = self._provider
        if provider.name not in runtime.get_available_providers():
            raise EngineMissingError(
                f"This ONNX Runtime ({runtime.__version__}) is built without {provider.name}.",
                hint=provider.install,
            )
        reason = why_absent(runtime, provider)
        if reason:
            raise EngineMissingError(f"{provider.name} cannot start: {reason}.", hint=provider.libraries)


_PROBE = """
import ctypes, sys
import onnxruntime
if hasattr(onnxruntime, "preload_dlls") and sys.argv[3] == "nvidia":
    onnxruntime.preload_dlls()
ctypes.CDLL(sys.argv[2], mode=ctypes.RTLD_GLOBAL)
try:
    ctypes.CDLL(sys.argv[1])
except OSError as error:
    print("absent:", error)
"""


def why_absent(runtime: Any, provider: Provider) -> str:
    """What keeps a provider's library from loading; empty if nothing does, or if it is no library of its own."""
    if not provider.library:
        return ""
    folder = Path(runtime.__file__).parent / "capi"
    return _missing_library(folder, provider.library, provider.name in _NVIDIA)


@cache
def _missing_library(folder: Path, stem: str, nvidia: bool) -> str:
    """Loads a provider's library in a child process, because outside ONNX Runtime it may crash once it is complete."""
    library, shared = folder / f"lib{stem}.so", folder / "libonnxruntime_providers_shared.so"
    if not library.exists() or not shared.exists():
        return ""  # another platform, or built in
    try:
        done = subprocess.run(
            [*python(), "-c", _PROBE, str(library), str(shared), "nvidia" if nvidia else ""],
            capture_output=True,
            text=True,
            timeout=_PROBE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""  # nothing is known; creating the session will tell
    absent = [line for line in done.stdout.splitlines() if line.startswith("absent: ")]
    return absent[-1].removeprefix("absent: ") if absent else ""


def _named(engine: str) -> OnnxRuntimeProvider:
    return OnnxRuntimeProvider(_BY_ENGINE[engine])


def tensorrt() -> OnnxRuntimeProvider:
    """TensorRT inside ONNX Runtime."""
    return _named("onnxruntime-tensorrt")


def cuda() -> OnnxRuntimeProvider:
    """CUDA and cuDNN."""
    return _named("onnxruntime-cuda")


def rocm() -> OnnxRuntimeProvider:
    """AMD GPUs, by ROCm."""
    return _named("onnxruntime-rocm")


def migraphx() -> OnnxRuntimeProvider:
    """AMD GPUs, by MIGraphX."""
    return _named("onnxruntime-migraphx")


def openvino() -> OnnxRuntimeProvider:
    """Intel CPUs, GPUs and NPUs."""
    return _named("onnxruntime-openvino")


def coreml() -> OnnxRuntimeProvider:
    """Apple's."""
    return _named("onnxruntime-coreml")
