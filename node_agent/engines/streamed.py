"""Runs on a CUDA device in slots: three streams, so that copies in, computation and copies out go on side by side.

What an engine adds is how it says where its tensors lie and how it starts; buffers, streams, events and their order are
here, and so is handing a tensor from one engine to the next without leaving the device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from node_agent.engines.base import Arrays
from node_agent.engines.cuda import Cuda
from node_agent.engines.slots import Capacity, Slot
from node_agent.errors import RunFailedError
from node_agent.messages import TensorSpec


@dataclass(frozen=True, slots=True)
class DeviceTensor:
    """A tensor on the device, in a buffer of the slot that made it.

    Attributes:
        pointer: Its address for the device.
        shape: Its shape.
        ready: The event after which it may be read.
    """

    pointer: int
    shape: tuple[int, ...]
    ready: Any


Value = npt.NDArray[Any] | DeviceTensor


class StreamedSession:
    """See the module, and `OverlappingSession`.

    A subclass sets `outputs`, `slots` and `_inputs`, and calls `_take` last.

    Args:
        cuda: The device; closed with the session.
        ordinal: Which one it is.
    """

    outputs: Sequence[TensorSpec]
    slots: int
    rigid: bool = False
    """Whether it has buffers for one set of shapes alone; other requests take `run`."""
    _inputs: Mapping[str, str]
    """Types by name; a request may bring more."""

    def __init__(self, cuda: Cuda, ordinal: int) -> None:
        self.ordinal = ordinal
        self._cuda = cuda
        self._free: deque[Slot] = deque()
        self._busy: deque[Slot | Arrays] = deque()
        """What `collect` gives, in order: runs in flight, and results of those that ended as they were submitted."""
        self._streams: list[Any] = []
        self._open = False

    def _place(self, slot: Slot, name: str, shape: tuple[int, ...], pointer: int) -> None:
        """Says where an input lies and how large it is, before `_start`.

        Raises:
            RunFailedError: The engine does not take such a shape.
        """
        raise NotImplementedError

    def _start(self, slot: Slot, stream: Any) -> Mapping[str, tuple[int, ...]]:
        """Starts computing on a stream, into the slot's buffers; the shapes of all outputs.

        Raises:
            RunFailedError: The engine did not start.
        """
        raise NotImplementedError

    def refuses(self, shapes: Mapping[str, tuple[int, ...]]) -> str:
        """Why the engine does not take inputs of these shapes; empty where it does."""
        raise NotImplementedError

    def _take(self, capacities: Sequence[Capacity], streams: Sequence[Any] = ()) -> None:
        """Takes buffers, streams and events; `streams` are those of upload, computation and download that are there."""
        self._streams.extend(streams)
        mapped = self._cuda.info().integrated
        self._free.extend(Slot(self._cuda, capacities, mapped=mapped) for _ in range(self.slots))
        while len(self._streams) < 3:
            self._streams.append(self._cuda.stream())
        self._open = True

    # ------------------------------------------------------------------------------------------------- a session

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """See `Session.run`."""
        self.submit(inputs)
        return self.collect()

    def submit(self, inputs: Mapping[str, npt.NDArray[Any]]) -> None:
        """See `OverlappingSession.submit`."""
        self._busy.append(self.launch(inputs, [spec.name for spec in self.outputs]))

    def collect(self) -> Arrays:
        """See `OverlappingSession.collect`."""
        if not self._busy:
            raise RunFailedError("No request is in flight.")
        oldest = self._busy.popleft()
        return self.land(oldest, [spec.name for spec in self.outputs]) if isinstance(oldest, Slot) else oldest

    def close(self) -> None:
        """See `Session.close`."""
        if not self._open:
            return
        self._cuda.enter()
        while self._busy:
            slot = self._busy.popleft()
            if isinstance(slot, Slot):
                self._cuda.synchronize(slot.returned)
                self._free.append(slot)
        self._release()
        self._cuda.close()

    # ------------------------------------------------------------------------------- runs that stay on the device

    def launch(self, inputs: Mapping[str, Value], fetched: Collection[str]) -> Slot:
        """Starts a run.

        Args:
            inputs: By name, on the host or on this device. The slot that holds one on the device stays taken until
                this run has landed.
            fetched: Outputs that are copied to the host.

        Returns:
            What `tensor` and `land` ask for.

        Raises:
            RunFailedError: Inputs do not fit, every slot is in flight, or the engine failed. Nothing is in flight then.
        """
        if not self._open:
            raise RunFailedError("The session is closed.")
        if not self._free:
            raise RunFailedError("Every slot is in flight; collect a result first.")
        reason = self.refuses({name: tuple(value.shape) for name, value in inputs.items()})
        if reason:
            raise RunFailedError(reason)
        self._cuda.enter()
        slot = self._free.popleft()
        try:
            self._go(slot, inputs, fetched)
        except BaseException:
            self._free.append(slot)
            raise
        return slot

    def tensor(self, slot: Slot, name: str) -> DeviceTensor:
        """An output of a run that was started, on the device."""
        return DeviceTensor(slot.buffers[name].device, slot.shapes[name], slot.computed)

    def land(self, slot: Slot, fetched: Collection[str]) -> Arrays:
        """Waits for a run and gives what was fetched of it; its slot is free again.

        Raises:
            RunFailedError: The device failed.
        """
        self._cuda.enter()
        try:
            self._cuda.synchronize(slot.returned)
            return {name: slot.buffers[name].take(slot.shapes[name]) for name in fetched}
        finally:
            self._free.append(slot)

    def _go(self, slot: Slot, inputs: Mapping[str, Value], fetched: Collection[str]) -> None:
        upload, compute, download = self._streams
        for name in self._inputs:
            value = inputs[name]
            if isinstance(value, DeviceTensor):
                self._cuda.wait(compute, value.ready)
                self._place(slot, name, value.shape, value.pointer)
                continue
            # A scalar stays one: NumPy makes it a vector of one on the way.
            array = np.ascontiguousarray(value).reshape(value.shape)
            buffer = slot.buffers[name]
            buffer.fill(array, upload)
            self._place(slot, name, tuple(array.shape), buffer.device)
        self._cuda.record(slot.arrived, upload)
        self._cuda.wait(compute, slot.arrived)
        slot.shapes = self._start(slot, compute)
        self._cuda.record(slot.computed, compute)
        self._cuda.wait(download, slot.computed)
        for name in fetched:
            slot.buffers[name].fetch(slot.shapes[name], download)
        self._cuda.record(slot.returned, download)

    def _release(self) -> None:
        """Gives back what `_take` took; an engine that holds more gives that back too."""
        for slot in self._free:
            slot.close()
        for stream in self._streams:
            self._cuda.destroy_stream(stream)
        self._free.clear()
        self._streams = []
        self._open = False
