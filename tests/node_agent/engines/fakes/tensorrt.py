"""Stands in for NVIDIA's module: the same names, ONNX Runtime's CPU underneath. A test puts this folder on the path.

It says nothing about TensorRT's numbers or speed. It lets our own code run: building in a child, caching, profiles,
buffers, order of calls, failures. `FAKE_TENSORRT` chooses a failure, `FAKE_TENSORRT_VERSION` the version.
"""

from __future__ import annotations

import base64
import ctypes
import enum
import json
import os
import time
from pathlib import Path

import numpy as np
import onnxruntime

__version__ = os.environ.get("FAKE_TENSORRT_VERSION", "11.4.0.106")

onnxruntime.set_default_logger_severity(4)

_NAMES = {
    "tensor(float)": "FLOAT",
    "tensor(float16)": "HALF",
    "tensor(int64)": "INT64",
    "tensor(int32)": "INT32",
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(int8)": "INT8",
}
_NUMPY = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT64": np.int64,
    "INT32": np.int32,
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "INT8": np.int8,
}


def _mode() -> str:
    return os.environ.get("FAKE_TENSORRT", "")


def _lacks() -> set[str]:
    return set(filter(None, os.environ.get("FAKE_TENSORRT_LACKS", "").split(",")))


class NetworkDefinitionCreationFlag(enum.IntEnum):
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


class BuilderFlag(enum.IntEnum):
    VERSION_COMPATIBLE = 0
    EXCLUDE_LEAN_RUNTIME = 1


class MemoryPoolType(enum.IntEnum):
    WORKSPACE = 0


class TensorIOMode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    INT64 = 8


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2

    def __init__(self) -> None:
        pass


class IProgressMonitor:
    def __init__(self) -> None:
        pass


class _Tensor:
    def __init__(self, name: str) -> None:
        self.name = name


class _Network:
    def __init__(self) -> None:
        self.path = ""
        self.inputs: list[_Tensor] = []

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    def get_input(self, index: int) -> _Tensor:
        return self.inputs[index]


class _Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, object] = {}

    def set_shape(self, name: str, least: tuple, usual: tuple, greatest: tuple) -> None:
        self.shapes[name] = (least, usual, greatest)


class _Bytes(bytes):
    pass


class _TimingCache:
    def __init__(self, data: bytes) -> None:
        self.data = data or b"timings:"

    def serialize(self) -> bytes:
        return self.data + b"."


class _Config:
    def __init__(self) -> None:
        self.profiles: list[_Profile] = []
        self.flags: list[int] = []
        self.progress_monitor = None
        self.builder_optimization_level = 3
        self._cache = None

    def add_optimization_profile(self, profile: _Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def set_memory_pool_limit(self, pool: MemoryPoolType, size: int) -> None:
        pass

    def set_flag(self, flag: BuilderFlag) -> None:
        self.flags.append(int(flag))

    def create_timing_cache(self, data: bytes) -> _TimingCache | None:
        return None if data.startswith(b"damaged") else _TimingCache(data)

    def set_timing_cache(self, cache: _TimingCache, ignore_mismatch: bool) -> bool:
        self._cache = cache
        return True

    def get_timing_cache(self) -> _TimingCache | None:
        return self._cache


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def create_network(self, flags: int = 0) -> _Network:
        strong = 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        assert flags == (strong if __version__.startswith("10.") else 0), flags
        return _Network()

    def create_builder_config(self) -> _Config:
        return _Config()

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network(self, network: _Network, config: _Config) -> bytes | None:
        monitor = config.progress_monitor
        monitor.phase_start("Building engine", None, 4)
        monitor.phase_start("Timing kernels", "Building engine", 10)
        for step in range(4):
            monitor.step_complete("Building engine", step)
        monitor.phase_finish("Timing kernels")
        monitor.phase_finish("Building engine")
        mode = _mode()
        if mode == "hang":
            time.sleep(600)
        if mode == "crash":
            os.kill(os.getpid(), 11)
        if mode == "killed":
            os.kill(os.getpid(), 9)
        if mode in ("oom", "no-kernel"):
            text = "Cuda Runtime (out of memory)" if mode == "oom" else "Could not find any implementation"
            self._logger.log(ILogger.Severity.ERROR, text)
            return None
        print("a library's own chatter")
        shapes = config.profiles[0].shapes if config.profiles else {}
        plan = {"fake": __version__, "graph": network.path, "shapes": shapes}
        # A real engine holds all that it needs; this one looks at the file while that is there, for its weights.
        plan["model"] = base64.b64encode(Path(network.path).read_bytes()).decode()
        return json.dumps(plan).encode()


class _ParserError:
    def __init__(self, op: str = "Mystery", name: str = "middle") -> None:
        self._op, self._name = op, name

    def node_operator(self) -> str:
        return self._op

    def node_name(self) -> str:
        return self._name

    def desc(self) -> str:
        return f"no importer registered for op: {self._op}"


class OnnxParser:
    num_errors = 0

    def __init__(self, network: _Network, logger: ILogger) -> None:
        self._network = network
        self._subgraphs: list[tuple[bool, list[int]]] = []
        self._lacking: list[_ParserError] = []

    def parse_from_file(self, path: str) -> bool:
        if _mode() == "parse-error":
            self.num_errors = 1
            return False
        if _lacks():
            import onnx

            for index, node in enumerate(onnx.load(path, load_external_data=False).graph.node):
                if node.op_type in _lacks():
                    self._lacking.append(_ParserError(node.op_type, node.name or f"node{index}"))
            self.num_errors = len(self._lacking)
            if self._lacking:
                return False
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self._network.path = path
        self._network.inputs = [_Tensor(value.name) for value in session.get_inputs()]
        return True

    def get_error(self, index: int) -> _ParserError:
        return self._lacking[index] if self._lacking else _ParserError()

    def supports_model_v2(self, model: bytes, path: str | None = None) -> bool:
        import onnx

        if _mode() == "crash":
            os.kill(os.getpid(), 11)
        if _mode() == "hang":
            time.sleep(600)
        graph = onnx.load_from_string(model).graph
        lacks = _lacks()
        for index, node in enumerate(graph.node):
            good = node.op_type not in lacks
            if not good:
                self._lacking.append(_ParserError(node.op_type, node.name or f"node{index}"))
                self.num_errors += 1
            if self._subgraphs and self._subgraphs[-1][0] == good:
                self._subgraphs[-1][1].append(index)
            else:
                self._subgraphs.append((good, [index]))
        return all(good for good, _ in self._subgraphs)

    @property
    def num_subgraphs(self) -> int:
        return len(self._subgraphs)

    def is_subgraph_supported(self, index: int) -> bool:
        return self._subgraphs[index][0]

    def get_subgraph_nodes(self, index: int) -> list[int]:
        return self._subgraphs[index][1]


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger
        self.engine_host_code_allowed = False

    def load_runtime(self, path: str) -> Runtime | None:
        return self if Path(path).exists() else None

    def deserialize_cuda_engine(self, data: bytes) -> _Engine | None:
        try:
            plan = json.loads(data)
        except ValueError:
            plan = {}
        if plan.get("fake") != __version__:
            self._logger.log(
                ILogger.Severity.ERROR, "The engine plan file is not compatible with this version"
            )
            return None
        return _Engine(plan)


class _Engine:
    device_memory_size_v2 = int(os.environ.get("FAKE_TENSORRT_SCRATCH", "1024"))

    def __init__(self, plan: dict) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        there = Path(plan["graph"]).exists()
        self.session = onnxruntime.InferenceSession(
            plan["graph"] if there else base64.b64decode(plan["model"]),
            options,
            providers=["CPUExecutionProvider"],
        )
        self.shapes = plan["shapes"]
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.outputs = {value.name: value for value in self.session.get_outputs()}
        self._names = [*self.inputs, *self.outputs]

    @property
    def num_io_tensors(self) -> int:
        return len(self._names)

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        value = self.inputs.get(name) or self.outputs[name]
        return DataType[_NAMES[value.type]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        value = self.inputs.get(name) or self.outputs[name]
        return tuple(size if isinstance(size, int) else -1 for size in value.shape)

    def is_shape_inference_io(self, name: str) -> bool:
        return False

    def create_execution_context(self) -> _Context | None:
        return None if _mode() == "no-context" else _Context(self)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._known: dict[tuple, dict[str, tuple[int, ...]]] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, greatest = self._engine.shapes.get(name, (shape, shape, shape))
        self._shapes[name] = shape
        return all(low <= size <= high for low, size, high in zip(least, shape, greatest, strict=True))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        key = tuple(sorted(self._shapes.items()))
        if key not in self._known:
            feeds = {}
            for each, value in self._engine.inputs.items():
                feeds[each] = np.zeros(self._shapes[each], _NUMPY[_NAMES[value.type]])
            made = self._engine.session.run(None, feeds)
            self._known[key] = {
                each: array.shape for each, array in zip(self._engine.outputs, made, strict=True)
            }
        return self._known[key][name]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        if _mode() == "run-fails":
            return False
        feeds = {}
        for name, value in self._engine.inputs.items():
            dtype = np.dtype(_NUMPY[_NAMES[value.type]])
            shape = self._shapes[name]
            size = int(np.prod(shape)) * dtype.itemsize
            raw = ctypes.string_at(self._addresses[name], size)
            feeds[name] = np.frombuffer(raw, dtype).reshape(shape)
        made = self._engine.session.run(None, feeds)
        for name, array in zip(self._engine.outputs, made, strict=True):
            if _mode() == "wrong" and array.dtype.kind == "f":
                array = array * np.asarray(1.5, array.dtype)
            data = np.ascontiguousarray(array)
            ctypes.memmove(self._addresses[name], data.ctypes.data, data.nbytes)
        return True
