"""Buffers of the requests in flight: taken once, used again, so that nothing is allocated while requests run.

A slot has a host buffer and a device buffer for every tensor of the engine, as large as its greatest shape. On a
device that shares the CPU's memory the two are the same and nothing is copied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from node_agent.dtypes import ITEM_BYTES, storage
from node_agent.engines.cuda import Cuda, HostBuffer
from node_agent.errors import OutOfMemoryError, RunFailedError


@dataclass(frozen=True, slots=True)
class Capacity:
    """The most that a tensor needs.

    Attributes:
        name: The tensor.
        dtype: Its wire type.
        nbytes: Bytes of its greatest shape.
    """

    name: str
    dtype: str
    nbytes: int


class TensorBuffer:
    """One tensor of one slot."""

    def __init__(self, cuda: Cuda, capacity: Capacity, *, mapped: bool) -> None:
        self._cuda = cuda
        self._mapped = mapped
        self.capacity = capacity
        self.host: HostBuffer = cuda.allocate_host(capacity.nbytes, mapped=mapped)
        self.device = self.host.device if mapped else cuda.allocate(capacity.nbytes)

    def fill(self, array: npt.NDArray[Any], stream: Any) -> None:
        """Takes an input over, and starts its way to the device.

        Raises:
            RunFailedError: It is larger than the buffer.
        """
        if array.nbytes > self.capacity.nbytes:
            raise RunFailedError(
                f"Input {self.capacity.name!r} has {array.nbytes} bytes, and there is room for "
                f"{self.capacity.nbytes}.",
                hint="Deploy with a larger range (engine option dim.NAME).",
            )
        held = self.host.bytes[: array.nbytes].view(array.dtype).reshape(array.shape)
        np.copyto(held, array)
        if not self._mapped and array.nbytes:
            self._cuda.to_device(self.device, self.host, array.nbytes, stream)

    def fetch(self, shape: Sequence[int], stream: Any) -> None:
        """Starts an output's way to the host."""
        nbytes = math.prod(shape) * ITEM_BYTES[self.capacity.dtype]
        if not self._mapped and nbytes:
            self._cuda.to_host(self.host, self.device, nbytes, stream)

    def take(self, shape: Sequence[int]) -> npt.NDArray[Any]:
        """An output as an array of the caller's own."""
        dtype = storage(self.capacity.dtype)
        nbytes = math.prod(shape) * dtype.itemsize
        return self.host.bytes[:nbytes].view(dtype).reshape(tuple(shape)).copy()

    def close(self) -> None:
        """Gives the memory back."""
        if not self._mapped:
            self._cuda.free(self.device)
        self._cuda.free_host(self.host)


class Slot:
    """Buffers and events of one request in flight."""

    def __init__(self, cuda: Cuda, capacities: Sequence[Capacity], *, mapped: bool) -> None:
        self._cuda = cuda
        self.buffers: dict[str, TensorBuffer] = {}
        self._events: list[Any] = []
        try:
            for capacity in capacities:
                self.buffers[capacity.name] = TensorBuffer(cuda, capacity, mapped=mapped)
            self.arrived, self.computed, self.returned = (self._event() for _ in range(3))
        except Exception:
            self.close()
            raise
        self.shapes: Mapping[str, tuple[int, ...]] = {}

    def close(self) -> None:
        """Gives everything back."""
        for buffer in self.buffers.values():
            buffer.close()
        for event in self._events:
            self._cuda.destroy_event(event)
        self.buffers, self._events = {}, []

    def _event(self) -> Any:
        event = self._cuda.event()
        self._events.append(event)
        return event


def check_memory(free: int, engine: int, scratch: int, capacities: Sequence[Capacity], slots: int) -> None:
    """Count device memory before any of it is taken.

    Args:
        free: Bytes that the device has.
        engine: Bytes of the compiled engine, about what its weights take.
        scratch: Bytes that running it takes.
        capacities: Its inputs and outputs.
        slots: Requests in flight.

    Raises:
        OutOfMemoryError: It does not fit, with the sum.
    """
    buffers = slots * sum(capacity.nbytes for capacity in capacities)
    needed = engine + scratch + buffers
    if needed > free:
        raise OutOfMemoryError(
            f"The partition needs {_mib(needed)} of device memory (weights {_mib(engine)}, scratch {_mib(scratch)}, "
            f"buffers {_mib(buffers)}) and {_mib(free)} are free.",
            hint="Give this device fewer blocks, free its memory, or narrow the range of its batch.",
        )


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f} MiB"
