"""TensorRT: a partition compiled on the device that runs it (https://docs.nvidia.com/deeplearning/tensorrt/).

The graph goes through TensorRT's ONNX parser into a strongly typed network: numeric precision is what the
partitioner wrote into the graph and nothing else. Builds happen in a child process and are kept on disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from node_agent.engines import onnxruntime_providers, tensorrt_versions
from node_agent.engines.base import Partition, Session
from node_agent.engines.build_process import DEADLINE_S, run_build
from node_agent.engines.cuda import Cuda, DeviceInfo
from node_agent.engines.engine_cache import LIMIT_BYTES, EngineCache, EngineKey, shapes_of
from node_agent.engines.in_parts import Named, load_in_parts
from node_agent.engines.onnxruntime_cpu import OnnxRuntimeCpu
from node_agent.engines.profiles import Profile, choose_profile
from node_agent.engines.slots import check_memory
from node_agent.engines.tensorrt_build import Job, make_logger
from node_agent.engines.tensorrt_session import TensorRtSession
from node_agent.engines.tensorrt_support import ask_aside
from node_agent.errors import AgentError, EngineMissingError, LoadFailedError
from node_agent.messages import EngineInfo

NAME = "tensorrt"
_INSTALL = 'Install TensorRT: pip install "defer-edge[tensorrt]"; on a Jetson use the one of JetPack (docs/install.md).'

OPTIONS = (
    "dim.NAME",
    "slots",
    "workspace",
    "level",
    "version_compatible",
    "exclude_lean_runtime",
    "lean_runtime",
    "build_deadline",
    "parts",
)
"""Names of the options that a deployment may set; docs/engines.md says what each does."""

Build = Callable[..., None]


def runtime() -> Any:
    """The `tensorrt` module.

    Raises:
        EngineMissingError: It is not installed, is broken, or is too old.
    """
    try:
        import tensorrt
    except ImportError as error:
        raise EngineMissingError(f"TensorRT cannot be imported: {error}.", hint=_INSTALL) from None
    except Exception as error:
        raise EngineMissingError(
            f"TensorRT cannot be imported: {type(error).__name__}: {error}.", hint=_INSTALL
        ) from None
    version = getattr(tensorrt, "__version__", None)
    if version is None:
        raise EngineMissingError("The module called tensorrt is not NVIDIA's TensorRT.", hint=_INSTALL)
    tensorrt_versions.dialect(version)
    return tensorrt


class TensorRt:
    """The engine.

    Args:
        build: Compiles; in a process of its own by default.
        folder: Where engines are kept.
        others: What takes over ops that TensorRT lacks, the fastest first; asked for when that happens.
    """

    def __init__(
        self,
        build: Build = run_build,
        folder: Path | None = None,
        others: Callable[[], Sequence[Named]] | None = None,
    ) -> None:
        self._build = build
        self._folder = cache_folder() if folder is None else folder
        self._others = _beside if others is None else others

    def info(self) -> EngineInfo:
        """See `Engine.info`."""
        try:
            trt = runtime()
            cuda = Cuda()
            try:
                device = cuda.info()
            finally:
                cuda.close()
        except AgentError as error:
            return EngineInfo(NAME, missing=f"{error} {error.hint}".strip())
        major, minor = device.capability
        return EngineInfo(NAME, trt.__version__, f"{device.name}, compute capability {major}.{minor}")

    def load(self, partition: Partition) -> Session:
        """See `Engine.load`. Options: see `OPTIONS`. What TensorRT lacks of a partition runs beside it."""
        options = _check_options(partition.options)
        try:
            return self._load_whole(partition, options)
        except LoadFailedError as error:
            if _is_set({"parts": "yes", **options}, "parts"):
                session = self._load_in_parts(partition, error)
                if session is not None:
                    return session
            raise

    def _load_in_parts(self, partition: Partition, error: LoadFailedError) -> Session | None:
        """The partition in parts, if an op is what keeps TensorRT from taking it whole.

        Raises:
            LoadFailedError: With both reasons, where that does not work either.
        """
        support = ask_aside(partition.graph)
        if support.supported or not support.refused:
            return None
        pieces = dict(partition.options) | {"parts": "no"}
        try:
            return load_in_parts(
                replace(partition, options=pieces),
                support.refused,
                support.reason,
                Named(NAME, self),
                self._others(),
                self._folder,
            )
        except AgentError as why:
            raise LoadFailedError(f"{error} In parts it does not run either: {why}", hint=why.hint) from None

    def _load_whole(self, partition: Partition, options: Mapping[str, str]) -> Session:
        trt = runtime()
        cuda = Cuda()
        try:
            cuda.enter()
            device = cuda.info()
            profile = choose_profile(partition.inputs, partition.usual, options)
            key = _key(partition, profile, trt.__version__, device, options)
            return self._open(trt, cuda, partition, profile, key, options)
        except BaseException:
            cuda.close()
            raise

    def unsupported(self, partition: Partition) -> str:
        """Which op TensorRT's parser refuses, as it says it; empty where it takes the partition.

        A process of its own is asked, see `tensorrt_support`. Without TensorRT nothing is known, and so nothing said.
        """
        if self.info().missing:
            return ""
        support = ask_aside(partition.graph)
        return "" if support.supported else support.reason

    def _open(
        self,
        trt: Any,
        cuda: Cuda,
        partition: Partition,
        profile: Profile,
        key: EngineKey,
        options: Mapping[str, str],
    ) -> Session:
        cache = EngineCache(self._folder, int(os.environ.get("DEFER_ENGINE_CACHE_BYTES", LIMIT_BYTES)))
        log = make_logger(trt)
        data = cache.get(key)
        engine, kept = None, ()
        if data is not None:
            check_memory(cuda.free_bytes(), len(data), 0, (), 0)
            engine, kept = _deserialize(trt, log, data, options)
        if engine is None:
            # Absent, or of the right name and yet refused: build it (again).
            data = self._compile(partition, profile, key, cache, options)
            check_memory(cuda.free_bytes(), len(data), 0, (), 0)
            engine, kept = _deserialize(trt, log, data, options)
        if engine is None or data is None:
            cache.drop(key)
            reason = log.errors[-1] if log.errors else "it gave no reason"
            raise LoadFailedError(f"TensorRT does not load the engine that it built: {reason}")
        slots = int(options.get("slots", "2"))
        return TensorRtSession(
            cuda, engine, partition, profile, engine_bytes=len(data), slots=slots, kept=(*kept, log)
        )

    def _compile(
        self,
        partition: Partition,
        profile: Profile,
        key: EngineKey,
        cache: EngineCache,
        options: Mapping[str, str],
    ) -> bytes:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._folder, prefix=".building-") as folder:
                built = Path(folder, "engine")
                self._build(
                    Job(
                        graph=str(partition.graph),
                        engine=str(built),
                        shapes={
                            name: shapes for name, shapes in key.shapes.items() if not profile[name].fixed
                        },
                        timing_cache=str(self._folder / _timing_name(key)),
                        workspace_bytes=int(options.get("workspace", "0")),
                        level=int(options.get("level", "-1")),
                        version_compatible=_is_set(options, "version_compatible"),
                        exclude_lean_runtime=_is_set(options, "exclude_lean_runtime"),
                    ),
                    deadline_s=float(options.get("build_deadline", DEADLINE_S)),
                    progress=partition.progress,
                )
                data = built.read_bytes()
        except OSError as error:
            raise LoadFailedError(
                f"The engine cache {self._folder} cannot be used: {error.strerror or error}.",
                hint="Set DEFER_ENGINE_CACHE to a folder that this user can write to.",
            ) from None
        with contextlib.suppress(
            OSError
        ):  # a full disk costs the next start a build, not this one its engine
            cache.put(key, data)
        return data


def _beside() -> list[Named]:
    """CUDA, so that nothing leaves the device, where it is installed; then the CPU."""
    found = [
        Named("onnxruntime-cuda", onnxruntime_providers.cuda()),
        Named("onnxruntime-cpu", OnnxRuntimeCpu()),
    ]
    return [each for each in found if not each.engine.info().missing]


def cache_folder() -> Path:
    """Where engines are kept: `DEFER_ENGINE_CACHE`, else a folder of the user's cache."""
    named = os.environ.get("DEFER_ENGINE_CACHE")
    systemd = os.environ.get("CACHE_DIRECTORY")
    cache = systemd or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(named or f"{cache}/defer/engines").expanduser()


def _deserialize(trt: Any, log: Any, data: bytes, options: Mapping[str, str]) -> tuple[Any, tuple[Any, ...]]:
    """The engine, None if TensorRT refuses it; and what must outlive it."""
    machine = trt.Runtime(log)
    kept: tuple[Any, ...] = (machine,)
    if _is_set(options, "version_compatible"):
        # Such an engine carries code; it was built here, from a graph whose hash was checked.
        machine.engine_host_code_allowed = True
    if "lean_runtime" in options:
        machine = machine.load_runtime(options["lean_runtime"])
        if machine is None:
            raise LoadFailedError(f"TensorRT cannot load the lean runtime {options['lean_runtime']}.")
        kept = (machine, *kept)
    return machine.deserialize_cuda_engine(data), kept


def _key(
    partition: Partition, profile: Profile, version: str, device: DeviceInfo, options: Mapping[str, str]
) -> EngineKey:
    built = ("workspace", "level", "version_compatible", "exclude_lean_runtime")
    return EngineKey(
        partition=hashlib.sha256(partition.graph.read_bytes()).hexdigest(),
        shapes=shapes_of(profile),
        runtime=version,
        device=device.name,
        capability=device.capability,
        driver=device.driver,
        flags=tuple(f"{name}={options[name]}" for name in built if name in options),
    )


def _timing_name(key: EngineKey) -> str:
    """Kernel timings hold for a device and a version, whatever the model."""
    facts = f"{key.runtime}\n{key.device}\n{key.capability}\n{key.driver}"
    return f"timing-{hashlib.sha256(facts.encode()).hexdigest()[:16]}.cache"


def _check_options(options: Mapping[str, str]) -> Mapping[str, str]:
    for name, value in options.items():
        known = name in OPTIONS or name.startswith("dim.")
        number = name in ("slots", "workspace", "level", "build_deadline")
        if not known or (number and not value.lstrip("-").replace(".", "", 1).isdecimal()):
            raise LoadFailedError(
                f"Engine {NAME} has no option {name}={value}.", hint=f"It has: {', '.join(OPTIONS)}."
            )
    if int(options.get("slots", "2")) < 1:
        raise LoadFailedError("slots must be at least 1.")
    return options


def _is_set(options: Mapping[str, str], name: str) -> bool:
    return options.get(name, "no") in ("yes", "true", "1")
