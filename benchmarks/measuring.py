"""Seconds and peak memory of one call, in a process of its own."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable
from typing import Any


def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, float, int]:
    begin = time.perf_counter()
    result = function(*arguments)
    seconds = time.perf_counter() - begin
    return result, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def apart(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float, int]:
    """Run a module-level function in a fresh process; returns its result, seconds and peak resident bytes."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        outcome: tuple[Any, float, int] = pool.apply(_call, (function, arguments))
    return outcome
