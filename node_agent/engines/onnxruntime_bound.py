"""ONNX Runtime on CUDA with buffers of its own: copies on other streams than the computation, several runs in flight.

A session is bound to addresses on the device (`IOBinding`), computes on a stream that is given to it (the provider's
option `user_compute_stream`), and does not wait for the device when a run is started (the run's option
`disable_synchronize_execution_providers`). Buffers are as large as usual requests need; another one runs by itself.
https://onnxruntime.ai/docs/performance/tune-performance/iobinding.html
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from node_agent.dtypes import ITEM_BYTES, RAW_BITS, STRING, storage
from node_agent.engines.base import Arrays, Partition
from node_agent.engines.cuda import Cuda
from node_agent.engines.onnxruntime_cpu import sentence
from node_agent.engines.slots import Capacity, Slot, check_memory
from node_agent.engines.streamed import StreamedSession
from node_agent.errors import RunFailedError
from node_agent.messages import TensorSpec
from node_agent.samples import samples

_RUN_ASYNCHRONOUSLY = ("disable_synchronize_execution_providers", "1")


def bindable(partition: Partition) -> str:
    """Why a partition cannot be bound to buffers that are taken beforehand; empty where it can."""
    if not partition.outputs:
        return "its outputs are not declared"
    for spec in (*partition.inputs, *partition.outputs):
        if spec.dtype in RAW_BITS or spec.dtype == STRING or spec.dtype not in ITEM_BYTES:
            return f"{spec.name!r} is {spec.dtype}"
    for spec in usual_inputs(partition):
        if not all(isinstance(size, int) and size > 0 for size in spec.shape):
            return f"nothing is known of the free dimensions of {spec.name!r}"
    given = {size for spec in partition.inputs for size in spec.shape}
    for spec in partition.outputs:
        if not all(isinstance(size, int) or size in given for size in spec.shape):
            return f"the size of {spec.name!r} may depend on values"
    return ""


def usual_inputs(partition: Partition) -> list[TensorSpec]:
    """The inputs with the sizes of usual requests in place of free dimensions, as far as they are known."""
    usual = partition.usual
    return [
        TensorSpec(spec.name, spec.dtype, tuple(usual.get(spec.name, spec.shape)))
        for spec in partition.inputs
    ]


class BoundSession(StreamedSession):
    """See the module, `Session` and `StreamedSession`.

    Args:
        runtime: The `onnxruntime` module.
        inner: An `InferenceSession` that computes on `stream`.
        cuda: Its device; closed with this session, once it was made.
        stream: Destroyed with this session, once it was made.
        partition: One that is `bindable`.
        slots: Runs that may be in flight.
        ordinal: The device's number.
        memory: What ONNX Runtime calls its memory.
    """

    rigid = True

    def __init__(
        self,
        runtime: Any,
        inner: Any,
        cuda: Cuda,
        stream: Any,
        partition: Partition,
        *,
        slots: int,
        ordinal: int,
        memory: str = "cuda",
    ) -> None:
        super().__init__(cuda, ordinal)
        self._inner = inner
        self._memory = memory
        self.slots = slots
        self.outputs = tuple(partition.outputs)
        self._inputs = {spec.name: spec.dtype for spec in partition.inputs}
        usual = usual_inputs(partition)
        self._usual = {spec.name: _sizes(spec) for spec in usual}
        # Outputs are bound by address, so their sizes are looked up beforehand.
        self._made = {name: array.shape for name, array in self._alone(samples(usual)).items()}
        dtypes = {spec.name: spec.dtype for spec in (*partition.inputs, *partition.outputs)}
        self._types = {name: storage(dtype) for name, dtype in dtypes.items()}
        self._options = runtime.RunOptions()
        self._options.add_run_config_entry(*_RUN_ASYNCHRONOUSLY)
        self._bindings: dict[Slot, Any] = {}
        capacities = [
            Capacity(name, dtypes[name], math.prod(shape) * ITEM_BYTES[dtypes[name]])
            for name, shape in (self._usual | self._made).items()
        ]
        check_memory(cuda.free_bytes(), 0, 0, capacities, slots)
        upload = None
        try:
            upload = cuda.stream()
            self._take(capacities, (upload, stream))
            for slot in self._free:
                self._bindings[slot] = binding = inner.io_binding()
                for name, shape in self._made.items():
                    address = slot.buffers[name].device
                    binding.bind_output(name, memory, ordinal, self._types[name].type, shape, address)
        except BaseException:
            # Whoever made the stream destroys it, for nobody else knows of it yet.
            self._streams = [each for each in self._streams if each is not stream]
            self._release()
            raise

    def submit(self, inputs: Mapping[str, npt.NDArray[Any]]) -> None:
        """See `OverlappingSession.submit`. A request of unusual shapes has run when this returns."""
        if self._open and any(
            inputs[name].shape != shape for name, shape in self._usual.items() if name in inputs
        ):
            self._busy.append(self._alone(inputs))
        else:
            super().submit(inputs)

    def _alone(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        names = [spec.name for spec in self.outputs]
        try:
            values = self._inner.run(names, {name: inputs[name] for name in self._inputs if name in inputs})
        except Exception as error:
            raise RunFailedError(f"ONNX Runtime failed: {sentence(error)}") from None
        return dict(zip(names, values, strict=True))

    def refuses(self, shapes: Mapping[str, tuple[int, ...]]) -> str:
        """See `StreamedSession.refuses`."""
        for name, usual in self._usual.items():
            shape = shapes.get(name)
            if shape is None:
                return f"Input {name!r} is missing."
            if shape != usual:
                return f"Input {name!r} is {list(shape)}, and its buffer is for {list(usual)}."
        return ""

    def _place(self, slot: Slot, name: str, shape: tuple[int, ...], pointer: int) -> None:
        binding = self._bindings[slot]
        binding.bind_input(name, self._memory, self.ordinal, self._types[name].type, shape, pointer)

    def _start(self, slot: Slot, stream: Any) -> Mapping[str, tuple[int, ...]]:  # noqa: ARG002
        # The stream is the one that the session was made with.
        try:
            self._inner.run_with_iobinding(self._bindings[slot], self._options)
        except Exception as error:
            raise RunFailedError(f"ONNX Runtime failed: {sentence(error)}") from None
        return self._made

    def _release(self) -> None:
        # Before the stream that it computes on.
        self._bindings.clear()
        self._inner = None
        super()._release()


def _sizes(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(int(size) for size in spec.shape)
