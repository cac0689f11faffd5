"""Stands in for `cuda.bindings.driver`: host memory plays the device's. Counts what is taken and not given back."""

from __future__ import annotations

import ctypes
import enum


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_SYSTEM_DRIVER_MISMATCH = 803


class _Attributes(enum.IntEnum):
    CU_DEVICE_ATTRIBUTE_INTEGRATED = 18
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


class _StreamFlags(enum.IntEnum):
    CU_STREAM_NON_BLOCKING = 1


class _EventFlags(enum.IntEnum):
    CU_EVENT_BLOCKING_SYNC = 1
    CU_EVENT_DISABLE_TIMING = 2


class FakeDriver:
    CUdevice_attribute = _Attributes
    CUstream_flags = _StreamFlags
    CUevent_flags = _EventFlags
    CU_MEMHOSTALLOC_PORTABLE = 1
    CU_MEMHOSTALLOC_DEVICEMAP = 2

    def __init__(
        self,
        *,
        devices: int = 1,
        memory: int = 1 << 30,
        integrated: bool = False,
        init: CUresult = CUresult.CUDA_SUCCESS,
        name: str = "Fake GPU",
        capability: tuple[int, int] = (8, 7),
        driver: int = 13020,
    ) -> None:
        self._devices = devices
        self._memory = memory
        self._integrated = integrated
        self._init = init
        self._name = name
        self._capability = capability
        self._driver = driver
        self._held: dict[int, object] = {}
        self.used = 0
        self._sizes: dict[int, int] = {}
        self._next = 1000
        self.contexts = 0
        self.objects: set[int] = set()
        self.log: list[tuple[str, ...]] = []

    @property
    def left(self) -> tuple[int, int, int]:
        """Buffers, streams and events, contexts that were not given back."""
        return len(self._held), len(self.objects), self.contexts

    def cuInit(self, flags):
        return (self._init,)

    def cuDriverGetVersion(self):
        return CUresult.CUDA_SUCCESS, self._driver

    def cuDeviceGetCount(self):
        return CUresult.CUDA_SUCCESS, self._devices

    def cuDeviceGet(self, ordinal):
        return CUresult.CUDA_SUCCESS, ordinal

    def cuDeviceGetName(self, length, device):
        return CUresult.CUDA_SUCCESS, self._name.encode() + b"\0" * 8

    def cuDeviceGetAttribute(self, attribute, device):
        found = {
            _Attributes.CU_DEVICE_ATTRIBUTE_INTEGRATED: int(self._integrated),
            _Attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: self._capability[0],
            _Attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: self._capability[1],
        }
        return CUresult.CUDA_SUCCESS, found[attribute]

    def cuDeviceTotalMem(self, device):
        return CUresult.CUDA_SUCCESS, self._memory

    def cuDevicePrimaryCtxRetain(self, device):
        self.contexts += 1
        return CUresult.CUDA_SUCCESS, "context"

    def cuDevicePrimaryCtxRelease(self, device):
        self.contexts -= 1
        return (CUresult.CUDA_SUCCESS,)

    def cuCtxSetCurrent(self, context):
        return (CUresult.CUDA_SUCCESS,)

    def cuMemGetInfo(self):
        return CUresult.CUDA_SUCCESS, self._memory - self.used, self._memory

    def cuMemAlloc(self, size):
        if self.used + size > self._memory:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY, None
        self.used += size
        return CUresult.CUDA_SUCCESS, self._take(size)

    def cuMemFree(self, pointer):
        self.used -= self._sizes[pointer]
        self._drop(pointer)
        return (CUresult.CUDA_SUCCESS,)

    def cuMemHostAlloc(self, size, flags):
        return CUresult.CUDA_SUCCESS, self._take(size)

    def cuMemHostGetDevicePointer(self, pointer, flags):
        return CUresult.CUDA_SUCCESS, pointer

    def cuMemFreeHost(self, pointer):
        self._drop(pointer)
        return (CUresult.CUDA_SUCCESS,)

    def cuStreamCreate(self, flags):
        return CUresult.CUDA_SUCCESS, self._object()

    def cuStreamDestroy(self, stream):
        self.objects.remove(stream)
        return (CUresult.CUDA_SUCCESS,)

    def cuEventCreate(self, flags):
        return CUresult.CUDA_SUCCESS, self._object()

    def cuEventDestroy(self, event):
        self.objects.remove(event)
        return (CUresult.CUDA_SUCCESS,)

    def cuEventRecord(self, event, stream):
        self.log.append(("record", event, stream))
        return (CUresult.CUDA_SUCCESS,)

    def cuStreamWaitEvent(self, stream, event, flags):
        self.log.append(("wait", event, stream))
        return (CUresult.CUDA_SUCCESS,)

    def cuEventSynchronize(self, event):
        self.log.append(("synchronize", event))
        return (CUresult.CUDA_SUCCESS,)

    def cuMemcpyHtoDAsync(self, destination, source, size, stream):
        self.log.append(("to device", size, stream))
        ctypes.memmove(destination, source, size)
        return (CUresult.CUDA_SUCCESS,)

    def cuMemcpyDtoHAsync(self, destination, source, size, stream):
        self.log.append(("to host", size, stream))
        ctypes.memmove(destination, source, size)
        return (CUresult.CUDA_SUCCESS,)

    def cuGetErrorString(self, error):
        return CUresult.CUDA_SUCCESS, error.name.lower().replace("_", " ").encode()

    def _take(self, size: int) -> int:
        memory = (ctypes.c_uint8 * max(size, 1))()
        pointer = ctypes.addressof(memory)
        self._held[pointer] = memory
        self._sizes[pointer] = size
        return pointer

    def _drop(self, pointer: int) -> None:
        del self._held[pointer]

    def _object(self) -> int:
        self._next += 1
        self.objects.add(self._next)
        return self._next
