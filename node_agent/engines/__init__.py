"""The engines that an agent can run, by name; each is imported only when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from node_agent.engines.base import Engine, Partition, takes_blocks
from node_agent.engines.fallback import FALLBACK
from node_agent.errors import EngineMissingError
from node_agent.messages import AUTO_ENGINE, EngineInfo

REFERENCE = "onnxruntime-cpu"
"""Right by definition: others are compared with it, and it takes over where they fail."""

TENSORRT = "tensorrt"
"""Its parser takes a graph whole or not at all; what it lacks runs beside it, see `node_agent.engines.in_parts`."""

_PROVIDERS = "node_agent.engines.onnxruntime_providers"
_KNOWN: dict[str, str] = {
    TENSORRT: "node_agent.engines.tensorrt_native:TensorRt",
    "onnxruntime-tensorrt": f"{_PROVIDERS}:tensorrt",
    "onnxruntime-cuda": f"{_PROVIDERS}:cuda",
    "onnxruntime-migraphx": f"{_PROVIDERS}:migraphx",
    "onnxruntime-rocm": f"{_PROVIDERS}:rocm",
    "onnxruntime-openvino": f"{_PROVIDERS}:openvino",
    "onnxruntime-coreml": f"{_PROVIDERS}:coreml",
    REFERENCE: "node_agent.engines.onnxruntime_cpu:OnnxRuntimeCpu",
}
"""Class by name; of two that are equally fast the earlier is taken."""


def register(name: str, target: str) -> None:
    """Adds an engine, or puts another in the place of one.

    Args:
        name: What `--engine` and `Load.engine` call it.
        target: `package.module:Class`; the class takes no arguments and follows `Engine`.
    """
    _KNOWN[name] = target


def names() -> tuple[str, ...]:
    """All engine names."""
    return tuple(_KNOWN)


def engine_named(name: str) -> Engine:
    """The engine called `name`, which leaves a partition that it cannot run to the reference engine.

    `auto` tries what is installed on each partition and takes the fastest that is right; where only one engine
    is installed, there is nothing to try.

    Raises:
        EngineMissingError: There is none of that name, or none is installed.
    """
    if name == AUTO_ENGINE:
        return _automatic()
    if name not in _KNOWN:
        raise EngineMissingError(
            f"Engine {name!r} is unknown.", hint=f"This build has: {', '.join((AUTO_ENGINE, *_KNOWN))}."
        )
    engine = _make(name)
    if name == REFERENCE or _info(REFERENCE).missing:
        return engine
    from node_agent.engines.choice import WithFallback

    return WithFallback(name, engine, REFERENCE, _make(REFERENCE))


def channel_block_of(name: str) -> int:
    """Channels per block in which an engine computes convolutions, and so may hand their tensors over; 0: plain only."""
    able = takes_blocks(_make(name))
    return able.channel_block() if able is not None else 0


def options_of(name: str, options: Mapping[str, str]) -> dict[str, str]:
    """What an engine is told of a device's options, which may be meant for one engine (`ENGINE.OPTION`).

    Args:
        name: The engine; `auto` is told all, and gives each engine its own.
        options: By name. Those without an engine are for whichever runs.
    """
    if name == AUTO_ENGINE:
        return dict(options)
    others = {key for key in options if "." in key and key.partition(".")[0] in _KNOWN}
    own = {key.removeprefix(f"{name}."): options[key] for key in others if key.startswith(f"{name}.")}
    told = {key: value for key, value in options.items() if key not in others} | own
    if name == REFERENCE:  # nothing stands behind it, so it is not asked whether something may
        told.pop(FALLBACK, None)
    return told


def unsupported(name: str, ran_on: str, partition: Partition) -> str:
    """Why an engine that compiles cannot run a partition, in its own words; empty where it can, or none would.

    Args:
        name: The engine that was asked for, or `auto`.
        ran_on: The one that the partition runs on; what runs needs no question.
        partition: The partition.
    """
    asked = TENSORRT if name == AUTO_ENGINE else name
    if asked != TENSORRT or ran_on == TENSORRT:
        return ""
    question = getattr(_make(asked), "unsupported", None)
    return str(question(partition)) if question is not None else ""


def cuts(name: str, options: Mapping[str, str]) -> bool:
    """Whether an engine that compiles runs what it can of a partition, and leaves only the rest to another.

    Args:
        name: The engine that was asked for, or `auto`.
        options: Its own, by name.
    """
    from node_agent.engines.segments import available

    said = options.get("parts", options.get(f"{TENSORRT}.parts", "yes"))
    return name in (AUTO_ENGINE, TENSORRT) and said != "no" and available()


def _make(name: str) -> Engine:
    module, _, attribute = _KNOWN[name].partition(":")
    engine: Engine = getattr(importlib.import_module(module), attribute)()
    return engine


def _info(name: str) -> EngineInfo:
    """What an engine says of itself. A vendor's library may raise anything: that engine is missing, no other."""
    try:
        return _make(name).info()
    except Exception as error:
        said = " ".join(str(error).split())
        return EngineInfo(
            name, missing=f"It broke when it was asked: {type(error).__name__}: {said}. Install it again."
        )


def _automatic() -> Engine:
    made = {name: _make(name) for name in _KNOWN}
    missing = {name: _info(name).missing for name in made}
    installed = {name: engine for name, engine in made.items() if not missing[name]}
    if not installed:
        raise EngineMissingError("No engine is installed here.", hint=missing[REFERENCE])
    if len(installed) == 1:
        return next(iter(installed.values()))
    from node_agent.engines.choice import Fastest

    # Without the reference the most preferred of the others has to be believed.
    reference = REFERENCE if REFERENCE in installed else next(iter(installed))
    return Fastest(installed, reference, known=names())


def inventory(preferred: str = AUTO_ENGINE) -> tuple[EngineInfo, ...]:
    """What can run here and what cannot and why; `preferred` first, then what is installed."""
    found = [_info(name) for name in _KNOWN]

    def rank(info: EngineInfo) -> tuple[bool, bool, bool]:
        # Of those that are missing the reference comes first: it is the one to install.
        return info.name != preferred, bool(info.missing), bool(info.missing) and info.name != REFERENCE

    return tuple(sorted(found, key=rank))
