"""Why no plan exists, in the words of the limit that forbids it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace

import networkx as nx
import numpy as np

from router import additive
from router.cluster import Cluster
from router.errors import NoRoute
from router.instance import Instance
from router.layers import Network, potentials
from router.limits import SLACK, amount, counted, size
from router.problem import Objective, Pins, Problem
from router.route import Solution

Attempt = Callable[[Problem, Objective], Solution | None]


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def check_blocks(instance: Instance) -> None:
    """Refuse a problem of which one block can run nowhere.

    Raises:
        NoRoute: names the block and the reason: no device, no way to or from the device, or no memory.
    """
    problem = instance.problem
    graph = problem.cluster.graph()
    graph.remove_nodes_from(problem.pins.banned)
    ahead = nx.descendants(graph, problem.source) | {problem.source}
    behind = nx.ancestors(graph, problem.sink) | {problem.sink}
    if problem.sink not in ahead:
        raise NoRoute(
            f"sink {problem.sink!r} cannot be reached from source {problem.source!r}",
            limit="reachability",
            hint="add a link, or lift a ban",
        )
    able = np.isfinite(instance.block)  # (n, L)
    connected = np.array([name in ahead and name in behind for name in instance.names])
    room = np.where(able & connected[:, None], instance.memory[:, None], -1.0).max(axis=0)
    # A longer stage may need less than the block alone: what waits between blocks can be large.
    least = [instance.stage_bytes[: b + 1, b + 1 :].min() for b in range(instance.blocks)]
    alone = np.array(least, float)
    for block in np.flatnonzero((room < alone) | (room < 0)).tolist():
        names = [instance.names[u] for u in np.flatnonzero(able[:, block])]
        if not names:
            raise _no_device(problem, block)
        reached = [name for name in names if connected[instance.index[name]]]
        if not reached:
            raise NoRoute(
                f"block {block} can run only on {_listed(names)}, which cannot be reached from "
                f"{problem.source!r} or cannot reach {problem.sink!r}",
                limit="reachability",
                hint="add links to and from the device",
            )
        largest = max(reached, key=lambda name: instance.memory[instance.index[name]])
        raise NoRoute(
            f"a stage with block {block} needs {size(float(alone[block]))} at least; of the devices that can run it, "
            f"{largest!r} has the most memory: {size(float(instance.memory[instance.index[largest]]))}",
            limit="memory",
            hint="cut the model finer, or add a device with more memory",
        )


def _no_device(problem: Problem, block: int) -> NoRoute:
    measured = [name for name, seconds in problem.block_seconds.items() if math.isfinite(seconds[block])]
    able = [name for name in measured if problem.cluster.device(name).computes]
    if able:
        pinned = problem.pins.blocks.get(block)
        why = f"the pin to {pinned!r}" if pinned is not None else "pins"
        return NoRoute(
            f"{why} leaves no device for block {block}; {_listed(able)} could run it",
            limit="pins",
            hint="lift a pin",
        )
    return NoRoute(
        f"no device can run block {block}", limit="block", hint="add a device whose engine has its ops"
    )


def _best(instance: Instance, name: str) -> float:
    makers = {
        "latency": additive.latency,
        "cost": additive.cost,
        "energy": additive.energy,
        "error": additive.error,
    }
    return potentials(instance, makers[name](instance), Network(instance)).start


def without_bound(objective: Objective, name: str) -> Objective:
    """The objective without one of its bounds."""
    values = {each.name: getattr(objective, each.name) for each in fields(objective)}
    return Objective(**{**values, f"max_{name}": math.inf})


def _able(instance: Instance) -> list[str]:
    """Devices that can run a block."""
    return [name for u, name in enumerate(instance.names) if np.isfinite(instance.block[u]).any()]


def _room(instance: Instance) -> float:
    """Bytes of memory of the devices that can run a block."""
    return float(sum(instance.memory[instance.index[name]] for name in _able(instance)))


def _beside(problem: Problem, instance: Instance) -> float:
    """Bytes that every stage takes beside its weights."""
    weights = np.concatenate(
        [[0.0], np.cumsum(np.broadcast_to(problem.block_memory or 0.0, instance.blocks))]
    )
    return float((instance.stage_bytes - (weights[None, :] - weights[:, None])).min())


def _roomy(problem: Problem) -> Cluster:
    """The cluster with endless memory."""
    return replace(
        problem.cluster, devices=[replace(device, memory=None) for device in problem.cluster.devices]
    )


def nothing_found(instance: Instance, objective: Objective, feasible: Attempt) -> NoRoute:
    """Explain an infeasible problem whose blocks can each run somewhere.

    Limits are lifted one at a time, in the order in which an operator would; the first that makes a plan
    possible is the one to name.

    Args:
        instance: the compiled problem.
        objective: with its bounds.
        feasible: a plan for a problem and an objective, None where there is none.
    """
    problem = instance.problem
    bounds = {
        "latency": objective.max_latency,
        "cost": objective.max_cost,
        "energy": objective.max_energy,
        "error": objective.max_error,
    }
    for name, bound in bounds.items():
        if math.isfinite(bound) and (least := _best(instance, name)) > bound * SLACK:
            return NoRoute(
                f"no plan keeps the {name} bound of {amount(name, bound)}: no route has less than {amount(name, least)}",
                limit=name,
                hint=f"allow at least {amount(name, least)}",
            )
    free = Objective("latency")
    if feasible(problem, free):
        for name in ("period", *bounds):
            lifted = without_bound(objective, name)
            if lifted != objective and feasible(problem, lifted):
                asked = amount(name, getattr(objective, f"max_{name}"))
                goal = {"period": "throughput", "error": "latency"}.get(name, name)
                best = feasible(problem, Objective(goal))  # without the other bounds
                near = ""
                if best is not None and name != "error":
                    near = f"; without other bounds {amount(name, best.value)} is possible"
                return NoRoute(
                    f"no plan keeps the {name} bound of {asked}{near}", limit=name, hint="raise the bound"
                )
        return NoRoute("no plan keeps all bounds at once", limit="period", hint="raise a bound")
    if problem.max_stages is not None and feasible(replace(problem, max_stages=None), free):
        return NoRoute(
            f"no plan with at most {counted(problem.max_stages, 'stage')} fits the memory limits and pins",
            limit="stages",
            hint="allow more stages",
        )
    if problem.pins != Pins() and feasible(replace(problem, pins=Pins()), free):
        if feasible(replace(problem, cluster=_roomy(problem)), free):
            left = sorted(set(_able(instance)))
            return NoRoute(
                f"with these pins and exclusions the blocks do not fit the memory of {_listed(left)}: "
                f"{size(float(sum(problem.block_memory)))} of weights, {size(_room(instance))} in all",
                limit="memory",
                hint="lift a pin or an exclusion, or add memory",
            )
        return NoRoute("the pins conflict with the stage limits", limit="pins", hint="lift a pin")
    needed = float(sum(problem.block_memory))
    there = _room(instance)
    if needed > there:
        return NoRoute(
            f"the model's blocks need {size(needed)} of memory; the devices that may compute have "
            f"{size(there)} together",
            limit="memory",
            hint="add a device",
        )
    if feasible(replace(problem, cluster=_roomy(problem)), free):
        return NoRoute(
            f"no assignment of contiguous blocks fits the memory of the devices: on one, all blocks take "
            f"{size(float(instance.stage_bytes[0, instance.blocks]))}; on several, {size(needed)}, and each stage "
            f"{size(_beside(problem, instance))} or more beside its weights; the devices have {size(there)} together",
            limit="memory",
            hint="cut the model finer, or add memory or devices",
        )
    if problem.stages_per_device is not None and feasible(replace(problem, stages_per_device=None), free):
        return NoRoute(
            f"no plan with at most {problem.stages_per_device} stage(s) per device leads from source to sink",
            limit="stages",
            hint="allow more stages per device",
        )
    return NoRoute(
        "no route can encode, carry and decode the tensors", limit="reachability", hint="check the codecs"
    )
