"""A compiled partition at work: three streams, so that copies in, computation and copies out run side by side."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from node_agent.dtypes import ITEM_BYTES
from node_agent.engines.base import Arrays, Partition
from node_agent.engines.cuda import Cuda
from node_agent.engines.profiles import Profile, admits
from node_agent.engines.slots import Capacity, Slot, check_memory
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


class TensorRtSession:
    """See `Session`.

    `submit` and `collect` are the two halves of `run`: with several slots, one request's copies run beside
    another's computation; results come in the order of submission.
    """

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
        self._kept = tuple(kept)
        self._cuda = cuda
        self._engine = engine
        self._profile = profile
        self.engine_bytes = engine_bytes
        self.slots = slots
        self._inputs = {spec.name: spec.dtype for spec in partition.inputs}
        made = _made(engine)
        self.outputs: Sequence[TensorSpec] = tuple(partition.outputs) or made
        self._wanted = [spec.name for spec in self.outputs]
        # TensorRT writes every output; one that nobody wants still needs a place.
        self._outputs = {spec.name: spec.dtype for spec in made}
        self._slots: deque[Slot] = deque()
        self._busy: deque[Slot] = deque()
        self._streams: list[Any] = []
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
            mapped = cuda.info().integrated
            self._slots.extend(Slot(cuda, capacities, mapped=mapped) for _ in range(slots))
            self._streams.extend(cuda.stream() for _ in range(3))
        except BaseException:
            self._release()
            raise

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """See `Session.run`."""
        self.submit(inputs)
        return self.collect()

    def submit(self, inputs: Mapping[str, npt.NDArray[Any]]) -> None:
        """Starts a request; `collect` gives its result.

        Raises:
            RunFailedError: Inputs do not fit the engine, every slot is in flight, or TensorRT failed.
        """
        if self._context is None:
            raise RunFailedError("The session is closed.")
        if not self._slots:
            raise RunFailedError("Every slot is in flight; collect a result first.")
        reason = admits(self._profile, {name: array.shape for name, array in inputs.items()})
        if reason:
            raise RunFailedError(f"TensorRT cannot run this request: {reason}.")
        self._cuda.enter()
        upload, compute, download = self._streams
        slot = self._slots.popleft()
        try:
            self._start(slot, inputs, upload, compute, download)
        except BaseException:
            self._slots.append(slot)
            raise
        self._busy.append(slot)

    def collect(self) -> Arrays:
        """Waits for the oldest request in flight and gives its outputs.

        Raises:
            RunFailedError: Nothing is in flight, or the device failed.
        """
        if not self._busy:
            raise RunFailedError("No request is in flight.")
        self._cuda.enter()
        slot = self._busy.popleft()
        try:
            self._cuda.synchronize(slot.returned)
            return {name: slot.buffers[name].take(slot.shapes[name]) for name in self._wanted}
        finally:
            self._slots.append(slot)

    def compute_seconds(self, inputs: Mapping[str, npt.NDArray[Any]], runs: int) -> list[float]:
        """Wall seconds of `runs` computations on inputs that are on the device already, without any copy.

        The difference to `run` is what copies and buffers cost.

        Raises:
            RunFailedError: Inputs do not fit the engine, or TensorRT failed.
        """
        self.run(inputs)  # leaves inputs, shapes and addresses of one slot in place
        _, compute, _ = self._streams
        slot = self._slots[-1]
        seconds = []
        for _ in range(runs):
            begin = time.perf_counter()
            if not self._context.execute_async_v3(int(compute)):
                raise RunFailedError("TensorRT could not start the partition.")
            self._cuda.record(slot.computed, compute)
            self._cuda.synchronize(slot.computed)
            seconds.append(time.perf_counter() - begin)
        return seconds

    def close(self) -> None:
        """See `Session.close`."""
        if self._context is None:
            return
        self._cuda.enter()
        while self._busy:
            slot = self._busy.popleft()
            self._cuda.synchronize(slot.returned)
            self._slots.append(slot)
        self._release()
        self._cuda.close()

    def _start(
        self, slot: Slot, inputs: Mapping[str, npt.NDArray[Any]], upload: Any, compute: Any, download: Any
    ) -> None:
        context = self._context
        for name in self._inputs:
            array = np.ascontiguousarray(inputs[name]).reshape(inputs[name].shape)
            buffer = slot.buffers[name]
            buffer.fill(array, upload)
            if not context.set_input_shape(name, tuple(array.shape)):
                raise RunFailedError(f"TensorRT takes no input {name!r} of shape {list(array.shape)}.")
            context.set_tensor_address(name, buffer.device)
        self._cuda.record(slot.arrived, upload)
        self._cuda.wait(compute, slot.arrived)
        slot.shapes = {name: tuple(context.get_tensor_shape(name)) for name in self._outputs}
        for name in self._outputs:
            context.set_tensor_address(name, slot.buffers[name].device)
        if not context.execute_async_v3(int(compute)):
            raise RunFailedError("TensorRT could not start the partition.")
        self._cuda.record(slot.computed, compute)
        self._cuda.wait(download, slot.computed)
        for name in self._wanted:
            slot.buffers[name].fetch(slot.shapes[name], download)
        self._cuda.record(slot.returned, download)

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
        for slot in self._slots:
            slot.close()
        for stream in self._streams:
            self._cuda.destroy_stream(stream)
        self._slots.clear()
        self._streams = []
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
