"""Compiles one partition with TensorRT, as a process of its own: `python -m node_agent.engines.tensorrt_build JOB`.

A build takes seconds to minutes, holds the GIL for much of it and may be killed by the system for its memory. The
process that answers heartbeats must feel none of that. JOB is a JSON file (`Job`). Standard output has one JSON
object per line: `{"phase": …, "fraction": …}` while it works, last `{"done": …}` or `{"error": …, "code": …}`.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from node_agent.engines.engine_cache import write_whole
from node_agent.engines.tensorrt_versions import dialect
from node_agent.errors import AgentError, LoadFailedError, OutOfMemoryError

Say = Callable[[dict[str, object]], None]
Shape = tuple[int, ...]


class Job(msgspec.Struct, frozen=True):
    """What to build.

    Attributes:
        graph: The partition's ONNX file; its weights lie beside it.
        engine: Where the compiled engine goes.
        shapes: Least, usual and greatest shape of every input that has a free dimension.
        timing_cache: File of kernel timings that is read and brought up to date; empty for none.
        workspace_bytes: Scratch memory that kernels may ask for; 0 for the device's all.
        level: Builder optimisation level, 0 to 5; -1 for TensorRT's own.
        version_compatible: Make an engine that newer TensorRT versions run too.
        exclude_lean_runtime: Leave the runtime that executes it out of the file.
        module: Name of the TensorRT module.
    """

    graph: str
    engine: str
    shapes: dict[str, tuple[Shape, Shape, Shape]] = {}
    timing_cache: str = ""
    workspace_bytes: int = 0
    level: int = -1
    version_compatible: bool = False
    exclude_lean_runtime: bool = False
    module: str = "tensorrt"


def main(arguments: Sequence[str]) -> int:
    """Runs a job; the exit status is 0 when there is an engine."""
    lock = threading.Lock()

    def say(line: dict[str, object]) -> None:
        with lock:  # TensorRT reports from several threads
            print(json.dumps(line), flush=True)

    try:
        job = msgspec.json.decode(Path(arguments[0]).read_bytes(), type=Job)
        started = time.monotonic()
        size = build(job, __import__(job.module), say)
    except AgentError as error:
        say({"error": str(error), "code": error.code, "hint": error.hint})
        return 1
    except Exception as error:
        say({"error": f"{type(error).__name__}: {error}", "code": LoadFailedError.code, "hint": ""})
        return 1
    say({"done": size, "seconds": time.monotonic() - started})
    return 0


def build(job: Job, trt: Any, say: Say) -> int:
    """Builds the engine and writes it.

    Returns:
        Its size in bytes.

    Raises:
        LoadFailedError: TensorRT does not take the graph, or finds no way to run it.
        OutOfMemoryError: It ran out of memory on the way.
    """
    speech = dialect(trt.__version__)
    log = make_logger(trt)
    builder = trt.Builder(log)
    network = builder.create_network(speech.network_flags(trt))
    parser = trt.OnnxParser(network, log)
    say({"phase": "parse", "fraction": 0.0})
    if not parser.parse_from_file(job.graph):
        raise LoadFailedError(
            f"TensorRT {trt.__version__} does not take partition {Path(job.graph).name}: {parse_errors(parser)}",
            hint="Run this partition on ONNX Runtime, or cut the model around the op.",
        )
    config = builder.create_builder_config()
    # TensorRT refers to these for as long as it builds.
    kept = _configure(job, trt, config, builder, network, say)
    plan = builder.build_serialized_network(network, config)
    del kept
    if plan is None:
        reason = log.errors[-1] if log.errors else "it gave no reason"
        kind = OutOfMemoryError if "memory" in reason.lower() else LoadFailedError
        raise kind(f"TensorRT cannot build partition {Path(job.graph).name}: {reason}")
    _keep_timings(job, config)
    data = bytes(plan)
    write_whole(Path(job.engine), data)
    return len(data)


def _configure(job: Job, trt: Any, config: Any, builder: Any, network: Any, say: Say) -> list[Any]:
    """Sets everything up; returns what must live until the build is done."""
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.name in job.shapes:
            least, usual, greatest = job.shapes[tensor.name]
            profile.set_shape(tensor.name, least, usual, greatest)
    if job.shapes:
        config.add_optimization_profile(profile)
    if job.workspace_bytes:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.workspace_bytes)
    if job.level >= 0:
        config.builder_optimization_level = job.level
    if job.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if job.exclude_lean_runtime:
            config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
    kept: list[Any] = [profile]
    if job.timing_cache:
        path = Path(job.timing_cache)
        known = path.read_bytes() if path.exists() else b""
        cache = config.create_timing_cache(known)
        if cache is None or not config.set_timing_cache(cache, False):
            # Taken on another device or version, or damaged: start afresh.
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, False)
        kept.append(cache)
    monitor = make_monitor(trt, say)
    config.progress_monitor = monitor
    kept.append(monitor)
    return kept


def _keep_timings(job: Job, config: Any) -> None:
    cache = config.get_timing_cache() if job.timing_cache else None
    if cache is not None:
        write_whole(Path(job.timing_cache), bytes(cache.serialize()))


def parse_errors(parser: Any) -> str:
    """What the parser holds against the model, one clause per error, at most three."""
    found = []
    for index in range(min(parser.num_errors, 3)):
        error = parser.get_error(index)
        op = error.node_operator() or "the graph"
        name = error.node_name()
        where = f"{op} {name!r}" if name else op
        found.append(f"{where}: {' '.join(error.desc().split())}")
    return "; ".join(found) or "it gave no reason"


def make_logger(trt: Any) -> Any:
    """A TensorRT logger that keeps what went wrong, in `errors`, and prints nothing."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(" ".join(text.split())[:1000])

    return Log()


def make_monitor(trt: Any, say: Say) -> Any:
    """A TensorRT progress monitor that says how far each outermost phase is."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._steps[phase_name] = num_steps
                say({"phase": phase_name, "fraction": 0.0})

        def step_complete(self, phase_name: str, step: int) -> bool:
            steps = self._steps.get(phase_name)
            if steps:
                say({"phase": phase_name, "fraction": min((step + 1) / steps, 1.0)})
            return True

        def phase_finish(self, phase_name: str) -> None:
            if self._steps.pop(phase_name, None) is not None:
                say({"phase": phase_name, "fraction": 1.0})

    return Monitor()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
