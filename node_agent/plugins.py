"""Engines and codecs of other packages: what is installed beside us and says so by an entry point.

    [project.entry-points."defer.engines"]
    ours = "our_package.engine:Engine"

    [project.entry-points."defer.codecs"]
    ours = "our_package.codec:Codec"

Only packages that somebody installed in this environment are looked at; no option and no message names code. What is
broken or takes a name that is ours is left out with a warning: an agent that starts without it is better than none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from node_agent import codecs, engines
from node_agent.messages import AUTO_ENGINE

ENGINES = "defer.engines"
CODECS = "defer.codecs"

log = logging.getLogger("defer.plugins")


@cache
def load() -> tuple[str, ...]:
    """Registers what is installed, once in a process; `register` tells how.

    Not done at import: looking through all that is installed takes milliseconds, which a client has no use for.
    """
    return register((*entry_points(group=ENGINES), *entry_points(group=CODECS)))


def register(found: Iterable[EntryPoint]) -> tuple[str, ...]:
    """Registers engines, which are imported when they are asked for, and codecs, which are made at once.

    Args:
        found: Entry points of the two groups.

    Returns:
        Names of those that were registered.
    """
    taken: list[str] = []
    for point in found:
        add = _engine if point.group == ENGINES else _codec
        if _tried(point, add):
            taken.append(point.name)
    return tuple(taken)


def _tried(point: EntryPoint, add: Callable[[EntryPoint], None]) -> bool:
    try:
        add(point)
    except Exception as error:  # a foreign package may raise anything
        said = " ".join(str(error).split())
        log.warning("%s %r is left out: %s: %s", point.group, point.name, type(error).__name__, said)
        return False
    return True


def _engine(point: EntryPoint) -> None:
    if point.name in (AUTO_ENGINE, *engines.names()):
        raise ValueError(f"there is an engine {point.name!r} already")
    if not point.attr:
        raise ValueError(f"{point.value!r} is not module:Class")
    engines.register(point.name, f"{point.module}:{point.attr}")


def _codec(point: EntryPoint) -> None:
    codec = point.load()()
    if codec.name != point.name:
        raise ValueError(f"the codec calls itself {codec.name!r}")
    codecs.register(codec)
