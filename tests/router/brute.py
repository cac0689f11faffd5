"""Every route of a tiny problem, one by one, through the public `evaluate`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import networkx as nx

from router import Objective, Problem, Route, Stage, Transfer
from router.evaluation import measure, objective_value
from router.instance import compile_problem
from router.limits import broken


def compositions(blocks: int) -> Iterator[list[int]]:
    for cuts in itertools.product([False, True], repeat=blocks - 1):
        yield [0, *(i + 1 for i, cut in enumerate(cuts) if cut), blocks]


def routes(problem: Problem) -> Iterator[Route]:
    graph = problem.cluster.graph()
    graph.remove_nodes_from(problem.pins.banned)
    names = [d.name for d in problem.cluster.devices if d.name in graph]
    paths = {
        (a, b): [tuple(p) for p in nx.all_simple_paths(graph, a, b)] for a in names for b in names if a != b
    }
    codecs = [codec.name for codec in problem.codecs]
    for edges in compositions(problem.blocks):
        count = len(edges) - 1
        if problem.max_stages is not None and count > problem.max_stages:
            continue
        for devices in itertools.product(names, repeat=count):
            if any(a == b for a, b in itertools.pairwise(devices)):
                continue
            limit = problem.stages_per_device
            if limit is not None and any(devices.count(name) > limit for name in devices):
                continue
            stages = tuple(
                Stage(d, a, b) for d, (a, b) in zip(devices, itertools.pairwise(edges), strict=True)
            )
            holders = [problem.source, *devices, problem.sink]
            options = []
            for boundary, (a, b) in zip(edges, itertools.pairwise(holders), strict=True):
                if a == b:
                    options.append([Transfer(boundary, (a,))])
                else:
                    options.append([Transfer(boundary, p, c) for p in paths[a, b] for c in codecs])
            for transfers in itertools.product(*options):
                yield Route(stages, transfers)


def best(problem: Problem, objective: Objective) -> float:
    """Least value of any route within the limits, inf when there is none."""
    instance = compile_problem(problem)
    least = float("inf")
    for route in routes(problem):
        measured = measure(instance, route)
        if measured.latency == float("inf") or broken(instance, objective, route, measured) is not None:
            continue
        least = min(least, objective_value(objective, measured))
    return least
