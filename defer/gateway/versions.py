"""Versions of a model in the protocol's terms: `resnet` and `2` for what the dispatcher calls `resnet@2`. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from defer.api import ModelInfo

ONE = "1"
"""The version of a model that was deployed without one."""

AT = "@"

Infos = Mapping[str, ModelInfo]
"""Models by the dispatcher's names: deployments, and names that stand for one of several versions."""


def find(infos: Infos, name: str, version: str) -> ModelInfo | None:
    """What a request for this model and version runs on; None where there is none.

    Args:
        infos: What is served.
        name: The model's name.
        version: Its version; empty for the one that requests take, or that the dispatcher chooses while one is tried.
    """
    alone = infos.get(name)
    if not version:
        return alone
    exact = infos.get(f"{name}{AT}{version}")
    if exact is not None:
        return exact
    return alone if alone is not None and version == version_of(alone) else None


def version_of(info: ModelInfo) -> str:
    """The version of a deployment; of a name that stands for several, the stable one."""
    return deployment_of(info).partition(AT)[2] or ONE


def name_of(info: ModelInfo) -> str:
    """A deployment's name without its version."""
    return info.version_of or info.name


def deployment_of(info: ModelInfo) -> str:
    """The deployment that is meant, where a name stands for several: the stable one."""
    return info.stable or info.name


def versions(infos: Infos, name: str) -> list[ModelInfo]:
    """Every version of a model, by version; a model without versions is one."""
    found = {version_of(info): info for info in infos.values() if info.version_of == name}
    alone = infos.get(name)
    if alone is not None:
        found.setdefault(version_of(alone), alone)
    return [found[version] for version in sorted(found, key=lambda text: (len(text), text))]


def every(infos: Infos) -> list[ModelInfo]:
    """Every version of every model, by name and version."""
    names = sorted({name_of(info) for info in infos.values()})
    return [info for name in names for info in versions(infos, name)]
