"""ONNX Runtime on the CPU (https://onnxruntime.ai/docs/api/python/api_summary.html)."""

from __future__ import annotations

import ctypes
import logging
import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from node_agent.dtypes import RAW_BITS, storage
from node_agent.engines.base import Arrays, NotInBlocks, Partition, Session
from node_agent.engines.onnxruntime_blocks import native_block, optimised
from node_agent.engines.onnxruntime_frugal import prepared
from node_agent.errors import EngineMissingError, LoadFailedError, RunFailedError
from node_agent.layouts import channel_blocks_of
from node_agent.machine import trim
from node_agent.messages import EngineInfo, TensorSpec

log = logging.getLogger(__name__)

NAME = "onnxruntime-cpu"
_INSTALL = 'Install ONNX Runtime: pip install "defer-edge[cpu]".'

LEVELS = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "none": "ORT_DISABLE_ALL",
}
"""Graph optimisation levels by the name of option `optimization`."""

_ONNX_TYPE = {
    "bfloat16": 16,
    "float8_e4m3fn": 17,
    "float8_e4m3fnuz": 18,
    "float8_e5m2": 19,
    "float8_e5m2fnuz": 20,
    "float8_e8m0fnu": 24,
}
"""onnx.TensorProto.DataType of the types that travel as raw bits (onnx.proto)."""


_NUMPY_NAME = {
    "float": "float32",
    "double": "float64",
    "float8e4m3fn": "float8_e4m3fn",
    "float8e4m3fnuz": "float8_e4m3fnuz",
    "float8e5m2": "float8_e5m2",
    "float8e5m2fnuz": "float8_e5m2fnuz",
    "float8e8m0": "float8_e8m0fnu",
}
"""Wire names of the types that ONNX Runtime calls otherwise."""


QUIET = ("ORT_DISABLE_TELEMETRY", "1")
"""Set before the import: ONNX Runtime 1.31 and later collect usage events for their maker from then on, and keep them
in `~/.cache/Microsoft/DeveloperTools/.onnxruntime` and `$TMPDIR/.ses`; `disable_telemetry_events` comes too late."""


def import_runtime() -> Any:
    """The `onnxruntime` module, its telemetry off unless `ORT_DISABLE_TELEMETRY` says otherwise.

    Raises:
        EngineMissingError: It is not installed, or is broken.
    """
    os.environ.setdefault(*QUIET)
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineMissingError(f"ONNX Runtime cannot be imported: {error}.", hint=_INSTALL) from None
    return onnxruntime


LAYOUTS = ("blocks", "plain")
"""What option `layout` may be: whether tensors that cross a cut between convolutions may do so in blocks of channels."""


class OnnxRuntimeCpu:
    """ONNX Runtime's CPU provider."""

    def info(self) -> EngineInfo:
        """See `Engine.info`."""
        try:
            runtime = import_runtime()
        except EngineMissingError as error:
            return EngineInfo(NAME, missing=f"{error} {error.hint}")
        return EngineInfo(NAME, runtime.__version__, "CPUExecutionProvider")

    def channel_block(self) -> int:
        """See `BlockEngine.channel_block`."""
        try:
            return native_block(import_runtime())
        except EngineMissingError:
            return 0

    def load(self, partition: Partition) -> Session:
        """See `Engine.load`. Options: `optimization`: all (default), extended, basic, none; `layout`: see `LAYOUTS`."""
        runtime = import_runtime()
        options = partial(_options, runtime, partition)
        with prepared(runtime, partition.graph, options) as graph:
            return _open(runtime, graph, options(), partition)

    def load_in_blocks(self, partition: Partition) -> Session:
        """See `BlockEngine.load_in_blocks`."""
        runtime = import_runtime()
        own = native_block(runtime)
        asked = {*channel_blocks_of((*partition.inputs, *partition.outputs)).values()}
        if partition.options.get("layout") == "plain":
            raise NotInBlocks("layout=plain is asked for")
        if asked != {own}:
            raise NotInBlocks(f"it computes on blocks of {own}, not of {', '.join(map(str, sorted(asked)))}")
        inputs, outputs = (
            {spec.name: int(spec.shape[1]) for spec in specs if spec.channel_block}
            for specs in (partition.inputs, partition.outputs)
        )
        options = partial(_options, runtime, partition)
        try:
            with optimised(runtime, partition.graph, options, inputs, outputs) as graph:
                ready = options()
                ready.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
                return _open(runtime, graph, ready, partition)
        except NotInBlocks:
            raise
        except Exception as error:  # whatever it is, in plain it may run
            log.warning("%s cannot be prepared for tensors in blocks", partition.graph.name, exc_info=True)
            raise NotInBlocks(sentence(error)) from None


def _options(runtime: Any, partition: Partition) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = partition.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Several agents may share these cores; a thread that spins while it waits takes them from the others.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    for name, value in partition.options.items():
        if name == "optimization" and value in LEVELS:
            options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, LEVELS[value])
        elif name != "layout" or value not in LAYOUTS:
            raise LoadFailedError(
                f"Engine {NAME} has no option {name}={value}.",
                hint=f"It has: optimization={'|'.join(LEVELS)}, layout={'|'.join(LAYOUTS)}.",
            )
    return options


def _open(runtime: Any, graph: Path, options: Any, partition: Partition) -> Session:
    try:
        # By path: from bytes ONNX Runtime keeps the GIL while it builds the session.
        inner = runtime.InferenceSession(str(graph), sess_options=options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise LoadFailedError(
            f"ONNX Runtime {runtime.__version__} on this device cannot run an op of the model: {sentence(error)}",
            hint="Load the model with onnxruntime by itself; another version, or opset, may help.",
        ) from None
    trim()
    return bind(runtime, inner, partition)


def bind(runtime: Any, inner: Any, partition: Partition) -> Session:
    """A `Session` on an `InferenceSession`, whatever its provider.

    Raises:
        LoadFailedError: It lacks an input or output that the partition declares.
    """
    held = {value.name for value in inner.get_inputs()}
    made = {value.name: value for value in inner.get_outputs()}
    for spec in partition.inputs:
        if spec.name not in held:
            raise LoadFailedError(f"Partition {partition.graph.name} has no input {spec.name!r}.")
    for spec in partition.outputs:
        if spec.name not in made:
            raise LoadFailedError(f"Partition {partition.graph.name} has no output {spec.name!r}.")
    outputs = tuple(partition.outputs) or tuple(_spec(value) for value in made.values())
    if any(spec.dtype in RAW_BITS for spec in (*partition.inputs, *outputs)):
        return _RawBitsSession(runtime, inner, partition.inputs, outputs)
    return _PlainSession(inner, outputs)


def _spec(value: Any) -> TensorSpec:
    """An output as the engine itself describes it: `tensor(float)`, with None or a name for a free dimension."""
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    shape = tuple(size if isinstance(size, int) else str(size) for size in value.shape or ())
    return TensorSpec(value.name, _NUMPY_NAME.get(kind, kind), shape)


class _PlainSession:
    """Every input and output has a NumPy type."""

    def __init__(self, inner: Any, outputs: Sequence[TensorSpec]) -> None:
        self.outputs = outputs
        self._inner = inner
        self._names = [spec.name for spec in outputs]
        # The compiled session: around it ONNX Runtime looks up in Python what was checked when the item was admitted,
        # and changes providers where one fails, for which there is none here.
        compiled: Any = getattr(inner, "_sess", None)
        alone = compiled is not None and inner.get_providers() == ["CPUExecutionProvider"]
        self._run: Any = compiled.run if alone else inner.run

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """See `Session.run`."""
        try:
            values = self._run(self._names, inputs, None)
        except Exception as error:
            raise RunFailedError(f"ONNX Runtime failed: {sentence(error)}") from None
        return dict(zip(self._names, values, strict=True))

    def close(self) -> None:
        """See `Session.close`."""
        self._inner = self._run = None
        trim()


class _RawBitsSession:
    """Some input or output has no NumPy type: values pass as raw bits through `OrtValue`."""

    def __init__(
        self, runtime: Any, inner: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> None:
        self.outputs = outputs
        self._make = runtime.OrtValue
        self._inner = inner
        self._kinds = {spec.name: _ONNX_TYPE.get(spec.dtype) for spec in inputs}

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """See `Session.run`."""
        try:
            feeds = {name: self._value(array, self._kinds.get(name)) for name, array in inputs.items()}
            values = self._inner.run_with_ort_values([spec.name for spec in self.outputs], feeds)
            return {
                spec.name: _bits(value, spec.dtype) if spec.dtype in RAW_BITS else value.numpy()
                for spec, value in zip(self.outputs, values, strict=True)
            }
        except Exception as error:
            raise RunFailedError(f"ONNX Runtime failed: {sentence(error)}") from None

    def _value(self, array: npt.NDArray[Any], kind: int | None) -> Any:
        if kind is None:
            return self._make.ortvalue_from_numpy(array)
        return self._make.ortvalue_from_numpy_with_onnx_type(array, kind)

    def close(self) -> None:
        """See `Session.close`."""
        self._inner = None
        trim()


def _bits(value: Any, dtype: str) -> npt.NDArray[Any]:
    """The raw bits of an output: `OrtValue.numpy` knows no type for them."""
    held = storage(dtype)
    array = np.empty(tuple(value.shape()), held)
    ctypes.memmove(array.ctypes.data, value.data_ptr(), array.nbytes)
    return array


_NOISE = (
    re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : "),
    re.compile(r"(Exception during loading: |Load model from \S+ failed: ?|Failed to load model because )"),
    # Where in its C++ a check failed: file, line, and the function's name or its whole signature.
    re.compile(r"(?<!\S)[\w.]+\.(?:cc|cpp|cu|cuh|h|hpp):\d+ [A-Za-z_]\w* "),
    re.compile(
        r"\S+\.(?:cc|cpp|cu|cuh|h|hpp):\d+ (?:[^.]*?onnxruntime::.*?\)(?: const)?(?: \[with [^\]]*\])? )?"
        r"(?:\[ONNXRuntimeError\] : \d+ : \w+ : )?"
    ),
)


_AT_NODE = re.compile(
    r"Non-zero status code returned while running (\w+) node\. Name:'([^']*)' Status Message: "
)


def sentence(error: Exception) -> str:
    """What ONNX Runtime said, on one line and not endless, without its codes, its source and our store's paths."""
    text = " ".join(str(error).split())
    for noise in _NOISE:
        text = noise.sub("", text)
    text = _AT_NODE.sub(lambda found: f"op {found[1]}{f' {found[2]!r}' if found[2] else ''}: ", text)
    return text if len(text) <= 1000 else text[:1000] + "…"
