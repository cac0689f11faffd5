"""The few CUDA calls that an engine needs, on NVIDIA's own `cuda-bindings` (driver API).

The driver API and not the runtime's: it comes with the driver itself, so one build of the bindings works with
CUDA 12 and 13 and nothing has to match a toolkit. https://nvidia.github.io/cuda-python/cuda-bindings/

On a device that shares its memory with the CPU (Jetson) host buffers are mapped: the device reads and writes them
in place and nothing is copied. Elsewhere they are pinned, so that copies run beside computation.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from node_agent.errors import EngineMissingError, OutOfMemoryError, RunFailedError

INSTALL = 'Install the bindings: pip install "defer-edge[tensorrt]".'
DRIVER = "Install NVIDIA's driver and check that nvidia-smi (on a Jetson: tegrastats) runs as this user."


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A CUDA device.

    Attributes:
        name: As the driver calls it.
        capability: Compute capability, (major, minor).
        driver: Newest CUDA version that the driver supports, (major, minor).
        memory_bytes: All of its memory.
        integrated: Whether it shares the CPU's memory.
    """

    name: str
    capability: tuple[int, int]
    driver: tuple[int, int]
    memory_bytes: int
    integrated: bool


class HostBuffer:
    """Pinned memory of the CPU that the device can reach.

    Attributes:
        pointer: Its address for the CPU.
        device: Its address for the device; 0 if it is not mapped.
        bytes: It as an array of bytes.
    """

    def __init__(self, pointer: int, device: int, nbytes: int) -> None:
        self.pointer = pointer
        self.device = device
        memory: Any = (ctypes.c_uint8 * nbytes).from_address(pointer)
        self.bytes: npt.NDArray[np.uint8] = np.frombuffer(memory, dtype=np.uint8)


def driver_api() -> Any:
    """The bindings' driver module.

    Raises:
        EngineMissingError: They are not installed, or there is no driver to bind to.
    """
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise EngineMissingError(f"CUDA cannot be used: {error}.", hint=INSTALL) from None
    except Exception as error:
        raise EngineMissingError(f"CUDA cannot be used: {_sentence(error)}", hint=DRIVER) from None
    return driver


class Cuda:
    """One device, and its primary context, which TensorRT and ONNX Runtime use too.

    Every thread that calls it first calls `enter`. Close it when nothing on the device is used any more.
    """

    def __init__(self, ordinal: int = 0, api: Any | None = None) -> None:
        self._api = driver_api() if api is None else api
        self._context: Any = None
        try:
            self._call("cuInit", 0)
            count = self._call("cuDeviceGetCount")
            if ordinal >= count:
                raise EngineMissingError(
                    f"There is no CUDA device {ordinal}: the driver shows {count}.",
                    hint="Check nvidia-smi, CUDA_VISIBLE_DEVICES, and that a container was started with its GPUs.",
                )
            self._device = self._call("cuDeviceGet", ordinal)
            self._context = self._call("cuDevicePrimaryCtxRetain", self._device)
        except (EngineMissingError, OutOfMemoryError):
            raise
        except RunFailedError as error:
            raise EngineMissingError(f"CUDA cannot be used: {error}", hint=DRIVER) from None
        except Exception as error:
            # The bindings find the driver's library only now, and say so in an error of their own.
            raise EngineMissingError(f"CUDA cannot be used: {_sentence(error)}", hint=DRIVER) from None

    def info(self) -> DeviceInfo:
        """What the device is."""
        attribute = self._api.CUdevice_attribute
        name = self._call("cuDeviceGetName", 128, self._device)
        version = int(self._call("cuDriverGetVersion"))

        def ask(what: str) -> int:
            return int(self._call("cuDeviceGetAttribute", getattr(attribute, what), self._device))

        return DeviceInfo(
            name=bytes(name).split(b"\0")[0].decode(),
            capability=(
                ask("CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR"),
                ask("CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR"),
            ),
            driver=(version // 1000, version % 1000 // 10),
            memory_bytes=int(self._call("cuDeviceTotalMem", self._device)),
            integrated=bool(ask("CU_DEVICE_ATTRIBUTE_INTEGRATED")),
        )

    def enter(self) -> None:
        """Makes the device this thread's."""
        self._call("cuCtxSetCurrent", self._context)

    def free_bytes(self) -> int:
        """Device memory that nobody uses."""
        free, _total = self._call("cuMemGetInfo")
        return int(free)

    def allocate(self, nbytes: int) -> int:
        """Device memory; its address.

        Raises:
            OutOfMemoryError: There is not as much.
        """
        return int(self._call("cuMemAlloc", max(nbytes, 1)))

    def free(self, pointer: int) -> None:
        """Gives device memory back."""
        self._call("cuMemFree", pointer)

    def allocate_host(self, nbytes: int, *, mapped: bool) -> HostBuffer:
        """Pinned host memory, mapped into the device's addresses if asked for.

        Raises:
            OutOfMemoryError: There is not as much.
        """
        flags = self._api.CU_MEMHOSTALLOC_PORTABLE
        if mapped:
            flags |= self._api.CU_MEMHOSTALLOC_DEVICEMAP
        pointer = int(self._call("cuMemHostAlloc", max(nbytes, 1), flags))
        device = int(self._call("cuMemHostGetDevicePointer", pointer, 0)) if mapped else 0
        return HostBuffer(pointer, device, nbytes)

    def free_host(self, buffer: HostBuffer) -> None:
        """Gives host memory back; its array must not be used any more."""
        self._call("cuMemFreeHost", buffer.pointer)

    def stream(self) -> Any:
        """A stream that does not wait for the default one."""
        return self._call("cuStreamCreate", self._api.CUstream_flags.CU_STREAM_NON_BLOCKING.value)

    def destroy_stream(self, stream: Any) -> None:
        """Gives a stream back."""
        self._call("cuStreamDestroy", stream)

    def event(self) -> Any:
        """An event; whoever waits for it sleeps instead of spinning on a core that other stages need."""
        flags = self._api.CUevent_flags
        return self._call(
            "cuEventCreate", flags.CU_EVENT_DISABLE_TIMING.value | flags.CU_EVENT_BLOCKING_SYNC.value
        )

    def destroy_event(self, event: Any) -> None:
        """Gives an event back."""
        self._call("cuEventDestroy", event)

    def record(self, event: Any, stream: Any) -> None:
        """Marks this point of the stream."""
        self._call("cuEventRecord", event, stream)

    def wait(self, stream: Any, event: Any) -> None:
        """What follows on the stream starts after the event."""
        self._call("cuStreamWaitEvent", stream, event, 0)

    def synchronize(self, event: Any) -> None:
        """Blocks this thread until the event, without the GIL."""
        self._call("cuEventSynchronize", event)

    def to_device(self, device: int, host: HostBuffer, nbytes: int, stream: Any) -> None:
        """Starts a copy to the device."""
        self._call("cuMemcpyHtoDAsync", device, host.pointer, nbytes, stream)

    def to_host(self, host: HostBuffer, device: int, nbytes: int, stream: Any) -> None:
        """Starts a copy from the device."""
        self._call("cuMemcpyDtoHAsync", host.pointer, device, nbytes, stream)

    def close(self) -> None:
        """Releases the context."""
        if self._context is not None:
            self._call("cuDevicePrimaryCtxRelease", self._device)
            self._context = None

    def _call(self, function: str, *arguments: Any) -> Any:
        """One driver call: every one returns a status first."""
        status, *values = getattr(self._api, function)(*arguments)
        if int(status) != 0:
            raise self._error(function, status)
        return values[0] if len(values) == 1 else tuple(values)

    def _error(self, function: str, status: Any) -> Exception:
        name = getattr(status, "name", str(status))
        _, text = self._api.cuGetErrorString(status)
        said = text.decode() if isinstance(text, bytes) else "no description"
        if name == "CUDA_ERROR_OUT_OF_MEMORY":
            return OutOfMemoryError(
                f"The device is out of memory ({function}).",
                hint="Give this device fewer blocks, or free it.",
            )
        return RunFailedError(f"{function} failed: {name}, {said}.", hint=DRIVER)


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if text.endswith(".") else f"{text}."
