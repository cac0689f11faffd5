"""Whether a route keeps every limit, and why a problem can have none that does."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from router.errors import NoRoute
from router.instance import Instance
from router.problem import Objective
from router.route import Evaluation, Route

SLACK = 1 + 1e-9


def within(value: float, limit: float) -> bool:
    """Whether a sum of floats keeps a limit, rounding aside."""
    return value <= limit * SLACK


def size(nbytes: float) -> str:
    """Bytes as a person reads them."""
    if not math.isfinite(nbytes):
        return "no limit"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(nbytes) < 1024 or unit == "GiB":
            return f"{nbytes:.4g} {unit}"
        nbytes /= 1024
    raise AssertionError


def amount(name: str, value: float) -> str:
    """A bounded quantity as a person reads it: seconds, joules, money, or an error."""
    if name in ("latency", "period"):
        return f"{value:.4g} s" if value >= 1 else f"{value * 1e3:.4g} ms"
    return f"{value:.4g} J" if name == "energy" else f"{value:.4g}"


def counted(number: float, noun: str) -> str:
    """How many of something, as a person reads it."""
    text = f"{number:,.0f}"
    return f"{text} {noun}" + ("" if text == "1" else "s")


def broken(instance: Instance, objective: Objective, route: Route, evaluation: Evaluation) -> NoRoute | None:
    """The first limit that a route breaks, as the error to raise, or None."""
    problem = instance.problem
    for stage in route.stages:
        times = instance.block[instance.index[stage.device], stage.start : stage.stop]
        if np.isinf(times).any():
            block = stage.start + int(np.flatnonzero(np.isinf(times))[0])
            return NoRoute(
                f"device {stage.device!r} cannot or must not run block {block}",
                limit="pins" if stage.device in problem.block_seconds else "block",
                hint="give the block to another device",
            )
    for name, needed in evaluation.memory.items():
        memory = instance.memory[instance.index[name]]
        if needed > memory:
            blocks = ", ".join(f"[{s.start}, {s.stop})" for s in route.stages if s.device == name)
            return NoRoute(
                f"blocks {blocks} need {size(needed)} on device {name!r}, which has {size(memory)}",
                limit="memory",
                hint="give the device fewer blocks",
            )
    if problem.max_stages is not None and len(route.stages) > problem.max_stages:
        return NoRoute(f"{len(route.stages)} stages, at most {problem.max_stages} allowed", limit="stages")
    device, count = Counter(stage.device for stage in route.stages).most_common(1)[0]
    if problem.stages_per_device is not None and count > problem.stages_per_device:
        return NoRoute(
            f"device {device!r} holds {count} stages, at most {problem.stages_per_device} allowed per device",
            limit="stages",
        )
    for transfer in route.transfers:
        if banned := set(transfer.path) & set(problem.pins.banned):
            return NoRoute(
                f"device {min(banned)!r} is banned, yet boundary {transfer.boundary} crosses it", limit="pins"
            )
    if not math.isfinite(evaluation.latency):
        return NoRoute("a device on the route cannot encode or decode with the codec chosen", limit="block")
    bounds = {
        "latency": (evaluation.latency, objective.max_latency),
        "period": (evaluation.period, objective.max_period),
        "cost": (evaluation.cost, objective.max_cost),
        "energy": (evaluation.energy, objective.max_energy),
        "error": (evaluation.error, objective.max_error),
    }
    for name, (value, limit) in bounds.items():
        if not within(value, limit):
            return NoRoute(
                f"{name} {amount(name, value)} is above the bound of {amount(name, limit)}", limit=name
            )
    return None
