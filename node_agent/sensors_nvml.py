"""NVIDIA GPUs by NVML, through NVIDIA's `nvidia-ml-py` (https://docs.nvidia.com/deploy/nvml-api/). It is optional.

A Jetson's NVML answers only some questions; each is asked by itself, and what it does not answer is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

INSTALL = 'pip install "defer-edge[sensors]"'


class Nvml:
    """The GPUs of this machine.

    Attributes:
        missing: Why there are none, as a sentence; empty if NVML works.
    """

    def __init__(self, library: Any | None = None) -> None:
        self.missing = ""
        self._library = library
        self._handles: list[Any] = []
        self._open()

    def _open(self) -> None:
        if self._library is None:
            try:
                import pynvml
            except ImportError:
                self.missing = f"NVML's bindings are not installed ({INSTALL})."
                return
            self._library = pynvml
        library = self._library
        try:
            library.nvmlInit()
            count = library.nvmlDeviceGetCount()
            self._handles = [library.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
        except library.NVMLError as error:
            self.missing = f"NVML cannot be used: {error}."

    def read(self) -> dict[str, float]:
        """Readings by name, as `gpu0.memory_used_bytes`; SI units, °C, utilisation 0 to 1."""
        found: dict[str, float] = {}
        for index, handle in enumerate(self._handles):
            for name, value in self._ask(handle):
                found[f"gpu{index}.{name}"] = value
        return found

    def names(self) -> list[str]:
        """What the GPUs are called."""
        return [str(value) for handle in self._handles for value in self._try(self._name, handle)]

    def driver(self) -> str:
        """Version of the driver; empty if it does not say."""
        found = self._try(lambda library, _: library.nvmlSystemGetDriverVersion(), None)
        return str(found[0]) if found else ""

    def close(self) -> None:
        """Lets the library go."""
        if self._library is not None and self._handles:
            self._handles = []
            self._try(lambda library, _: library.nvmlShutdown(), None)

    def _ask(self, handle: Any) -> Iterator[tuple[str, float]]:
        for memory in self._try(lambda library, gpu: library.nvmlDeviceGetMemoryInfo(gpu), handle):
            yield "memory_total_bytes", float(memory.total)
            yield "memory_used_bytes", float(memory.used)
        for rates in self._try(lambda library, gpu: library.nvmlDeviceGetUtilizationRates(gpu), handle):
            yield "utilization", rates.gpu / 100
        for degrees in self._try(
            lambda library, gpu: library.nvmlDeviceGetTemperature(gpu, library.NVML_TEMPERATURE_GPU), handle
        ):
            yield "temperature_c", float(degrees)
        for milliwatts in self._try(lambda library, gpu: library.nvmlDeviceGetPowerUsage(gpu), handle):
            yield "power_w", milliwatts / 1000
        for millijoules in self._try(
            lambda library, gpu: library.nvmlDeviceGetTotalEnergyConsumption(gpu), handle
        ):
            yield "energy_j", millijoules / 1000

    @staticmethod
    def _name(library: Any, handle: Any) -> Any:
        name = library.nvmlDeviceGetName(handle)
        return name.decode() if isinstance(name, bytes) else name

    def _try(self, question: Callable[[Any, Any], Any], handle: Any) -> list[Any]:
        """The answer as a list of one, empty if this device does not answer that question."""
        if self._library is None or self.missing:
            return []
        try:
            return [question(self._library, handle)]
        except self._library.NVMLError:
            return []
