"""The engines that an agent can run, by name; each is imported only when it is asked for."""

from __future__ import annotations

import importlib

from node_agent.engines.base import Engine
from node_agent.errors import EngineMissingError
from node_agent.messages import AUTO_ENGINE, EngineInfo

_KNOWN: dict[str, str] = {"onnxruntime-cpu": "node_agent.engines.onnxruntime_cpu:OnnxRuntimeCpu"}
"""Class by name, in order of preference."""


def register(name: str, target: str) -> None:
    """Adds an engine.

    Args:
        name: What `--engine` and `Load.engine` call it.
        target: `package.module:Class`; the class takes no arguments and follows `Engine`.
    """
    _KNOWN[name] = target


def names() -> tuple[str, ...]:
    """All engine names, the preferred first."""
    return tuple(_KNOWN)


def engine_named(name: str) -> Engine:
    """The engine called `name`; `auto` is the first that is installed.

    Raises:
        EngineMissingError: There is none of that name, or none is installed.
    """
    if name == AUTO_ENGINE:
        return _first_installed()
    target = _KNOWN.get(name)
    if target is None:
        raise EngineMissingError(
            f"Engine {name!r} is unknown.", hint=f"This build has: {', '.join((AUTO_ENGINE, *_KNOWN))}."
        )
    module, _, attribute = target.partition(":")
    engine: Engine = getattr(importlib.import_module(module), attribute)()
    return engine


def _first_installed() -> Engine:
    missing = []
    for name in _KNOWN:
        engine = engine_named(name)
        info = engine.info()
        if not info.missing:
            return engine
        missing.append(info.missing)
    raise EngineMissingError("No engine is installed here.", hint=" ".join(missing))


def inventory(preferred: str = AUTO_ENGINE) -> tuple[EngineInfo, ...]:
    """What can run here and what cannot and why; `preferred` first, then what is installed."""
    found = [engine_named(name).info() for name in _KNOWN]
    return tuple(sorted(found, key=lambda info: (info.name != preferred, bool(info.missing))))
