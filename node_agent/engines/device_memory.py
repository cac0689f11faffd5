"""What a GPU beside the CPU can hold: an agent offers no more than that where stages are to run there."""

from __future__ import annotations

from collections.abc import Iterable

from node_agent.engines.cuda import Cuda
from node_agent.errors import AgentError
from node_agent.messages import AUTO_ENGINE, EngineInfo

ON_CUDA = frozenset({"tensorrt", "onnxruntime-tensorrt", "onnxruntime-cuda"})
"""Engines that keep weights in the memory of a CUDA device."""


def device_memory(engines: Iterable[EngineInfo], asked: str) -> int | None:
    """Bytes of the first CUDA device's own memory; None where no stage would need it, or it is the CPU's.

    Args:
        engines: What can run here and what cannot.
        asked: The agent's engine; `auto` for whichever is fastest.
    """
    present = {info.name for info in engines if not info.missing}
    if not present & (ON_CUDA if asked == AUTO_ENGINE else ON_CUDA & {asked}):
        return None
    try:
        cuda = Cuda()
        try:
            device = cuda.info()
        finally:
            cuda.close()
    except AgentError:
        return None  # without bindings nothing is known; the operator can say it
    return None if device.integrated else device.memory_bytes
