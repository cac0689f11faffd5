"""A partition compiled by TensorRT at work."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt

from node_agent.dtypes import ITEM_BYTES
from node_agent.engines.base import Partition
from node_agent.engines.cuda import Cuda
from node_agent.engines.profiles import Profile, admits
from node_agent.engines.slots import Capacity, Slot, check_memory
from node_agent.engines.streamed import StreamedSession
from node_agent.errors import LoadFailedError, RunFailedError
from node_agent.messages import TensorSpec

_TYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
    "FP8": "float8_e4m3fn",
}
"""Wire type by the name of TensorRT's `DataType`."""


class TensorRtSession(StreamedSession):
    """See `Session` and `StreamedSession`."""

    def __init__(
        self,
        cuda: Cuda,
        engine: Any,
        partition: Partition,
        profile: Profile,
        *,
        engine_bytes: int,
        slots: int,
        kept: Sequence[Any] = (),
    ) -> None:
        super().__init__(cuda, ordinal=0)
        self._kept = tuple(kept)
        self._engine = engine
        self._profile = profile
        self.engine_bytes = engine_bytes
        self.slots = slots
        self._inputs = {spec.name: spec.dtype for spec in partition.inputs}
        made = _made(engine)
        self.outputs = tuple(partition.outputs) or made
        # TensorRT writes every output; one that nobody wants still needs a place.
        self._outputs = {spec.name: spec.dtype for spec in made}
        self._context: Any = None
        _check_tensors(engine, (*partition.inputs, *self.outputs))
        capacities = [self._capacity_in(name) for name in self._inputs]
        check_memory(cuda.free_bytes(), 0, int(engine.device_memory_size_v2), capacities, slots)
        self._context = engine.create_execution_context()
        if self._context is None:
            raise LoadFailedError(
                "TensorRT makes no execution context; the device is probably out of memory."
            )
        try:
            capacities += self._capacities_out()
            check_memory(cuda.free_bytes(), 0, 0, capacities, slots)
            self._take(capacities)
        except BaseException:
            self._release()
            raise

    def compute_seconds(self, inputs: Mapping[str, npt.NDArray[Any]], runs: int) -> list[float]:
        """Wall seconds of `runs` computations on inputs that are on the device already, without any copy.

        The difference to `run` is what copies and buffers cost.

        Raises:
            RunFailedError: Inputs do not fit the engine, or TensorRT failed.
        """
        self.run(inputs)  # leaves inputs, shapes and addresses of one slot in place
        _, compute, _ = self._streams
        slot = self._free[-1]
        seconds = []
        for _ in range(runs):
            begin = time.perf_counter()
            if not self._context.execute_async_v3(int(compute)):
                raise RunFailedError("TensorRT could not start the partition.")
            self._cuda.record(slot.computed, compute)
            self._cuda.synchronize(slot.computed)
            seconds.append(time.perf_counter() - begin)
        return seconds

    def refuses(self, shapes: Mapping[str, tuple[int, ...]]) -> str:
        """See `StreamedSession.refuses`."""
        reason = admits(self._profile, shapes)
        return f"TensorRT cannot run this request: {reason}." if reason else ""

    def _place(self, slot: Slot, name: str, shape: tuple[int, ...], pointer: int) -> None:  # noqa: ARG002
        if not self._context.set_input_shape(name, shape):
            raise RunFailedError(f"TensorRT takes no input {name!r} of shape {list(shape)}.")
        self._context.set_tensor_address(name, pointer)

    def _start(self, slot: Slot, stream: Any) -> Mapping[str, tuple[int, ...]]:
        context = self._context
        shapes = {name: tuple(context.get_tensor_shape(name)) for name in self._outputs}
        for name in self._outputs:
            context.set_tensor_address(name, slot.buffers[name].device)
        if not context.execute_async_v3(int(stream)):
            raise RunFailedError("TensorRT could not start the partition.")
        return shapes

    def _capacity_in(self, name: str) -> Capacity:
        dtype = self._inputs[name]
        return Capacity(name, dtype, math.prod(self._profile[name].greatest) * ITEM_BYTES[dtype])

    def _capacities_out(self) -> list[Capacity]:
        """Room for each output when every input has its greatest shape."""
        context = self._context
        for name in self._inputs:
            context.set_input_shape(name, self._profile[name].greatest)
        found = []
        for name, dtype in self._outputs.items():
            shape = tuple(context.get_tensor_shape(name))
            if any(size < 0 for size in shape):
                raise LoadFailedError(
                    f"The size of output {name!r} depends on the data, which TensorRT's buffers here do not allow for.",
                    hint="Run this partition on ONNX Runtime.",
                )
            found.append(Capacity(name, dtype, math.prod(shape) * ITEM_BYTES[dtype]))
        return found

    def _release(self) -> None:
        super()._release()
        # TensorRT frees what they hold when the last reference goes: a context before its engine, an engine before
        # its runtime and logger.
        self._context = None
        self._engine = None
        self._kept = ()


def _made(engine: Any) -> tuple[TensorSpec, ...]:
    """Every output, as the engine itself describes it; -1 is its word for a free dimension."""
    found = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        if engine.get_tensor_mode(name).name == "OUTPUT":
            kind = engine.get_tensor_dtype(name).name
            shape = tuple(
                size if size >= 0 else f"dim{axis}" for axis, size in enumerate(engine.get_tensor_shape(name))
            )
            found.append(TensorSpec(name, _TYPES.get(kind, kind), shape))
    return tuple(found)


def _check_tensors(engine: Any, specs: Sequence[TensorSpec]) -> None:
    """The engine has the tensors that were declared, of the same types and on the device.

    Raises:
        LoadFailedError: Naming the first that differs.
    """
    present = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    for spec in specs:
        if spec.name not in present:
            raise LoadFailedError(f"The TensorRT engine has no tensor {spec.name!r}.")
        kind = engine.get_tensor_dtype(spec.name).name
        if _TYPES.get(kind) != spec.dtype:
            raise LoadFailedError(
                f"TensorRT has tensor {spec.name!r} as {kind}, and the partition declares {spec.dtype}.",
                hint="Run this partition on ONNX Runtime.",
            )
        if engine.is_shape_inference_io(spec.name):
            raise LoadFailedError(
                f"Tensor {spec.name!r} decides shapes inside the partition, which TensorRT wants on the host.",
                hint="Run this partition on ONNX Runtime.",
            )
