"""SEIFER's setting: random wireless clusters, memory limits, and only the transfers count.

N nodes uniform in a square of 150 m, every two joined at log2(1 + 283230 / d²) Mbit/s; a node holds one partition;
the bottleneck is the slowest transfer between partitions. The lower bound is the planner's own; the ratio that SEIFER
reports is to (largest transfer of the plan) / (largest bandwidth).
"""

from __future__ import annotations

import itertools
import math
import resource
import time
from functools import cache
from random import Random

from benchmarks.runner import Cell, Options, Outcome, Row, Target
from router import Cluster, Device, Link, NoRoute, Problem, solve

PUBLISHED = {"resnet50": 1.268, "vgg16": 1.198, "densenet121": 1.004, "mobilenet_v2": 1.0, "vgg19": 1.0}
MIB = 2**20
NODES = (5, 10, 20, 35, 50)
MEMORY = (64, 128, 256, 512)
TIGHT = (8, 16, 32)


@cache
def chain_of(model: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(bytes per block, bytes per boundary) of a network of the zoo, at its own cut points."""
    import models
    import partitioner

    chain = partitioner.coarsen(partitioner.analyze(models.build(model)), 120)
    weights = tuple(block.weight_bytes for block in chain.blocks)
    return weights, tuple(boundary.nbytes for boundary in chain.boundaries)


def cluster_of(nodes: int, memory: int, seed: int) -> Cluster:
    """One random cluster, with a source and a sink that cost nothing."""
    rng = Random(seed)
    places = [(rng.uniform(0, 150), rng.uniform(0, 150)) for _ in range(nodes)]
    names = [f"n{k}" for k in range(nodes)]
    links = []
    for a in range(nodes):
        for b in range(nodes):
            if a != b:
                square = max(math.dist(places[a], places[b]) ** 2, 1e-6)
                links.append(Link(names[a], names[b], math.log2(1 + 283230 / square) * 1e6 / 8))
    links += [Link("in", name, math.inf) for name in names] + [Link(name, "out", math.inf) for name in names]
    ends = [Device("in", computes=False), Device("out", computes=False)]
    return Cluster(ends + [Device(name, memory=memory * MIB) for name in names], links)


def measure(options: Options) -> Outcome:
    """Two rows per network: at SEIFER's memory sizes, and at smaller ones that force many partitions."""
    names = ["mobilenet_v2"] if options.quick else list(PUBLISHED)
    seeds = 1 if options.quick else 5
    rows: list[Row] = []
    targets = []
    for model in names:
        judged = False
        for label, memory in (("64-512 MiB", MEMORY), ("8-32 MiB", TIGHT)):
            with options.console.status(f"{model}, {label}"):
                row, ratio = _row(model, memory, seeds)
            rows.append({"case": f"{model}, {label}", **row, "published": PUBLISHED[model]})
            if ratio is not None and not judged:  # at SEIFER's sizes, unless the model fits one node of them
                judged = True
                name = f"{model}, {label}: mean ratio as SEIFER reports it"
                targets.append(Target(name, ratio, PUBLISHED[model] * (1 + 1e-9), "most"))
    notes = [
        "one node: the model fits one node and nothing is sent; impossible: a block alone, or the model, is too large",
        "least, mean, worst: bottleneck / the planner's own lower bound; where they are 1 the plan is proved optimal",
    ]
    return Outcome(rows, targets, notes)


def _row(model: str, memories: tuple[int, ...], seeds: int) -> tuple[dict[str, Cell], float | None]:
    weights, sizes = chain_of(model)
    ratios, theirs, stages = [], [], []
    proved = impossible = single = 0
    begin = time.perf_counter()
    for nodes, memory, seed in itertools.product(NODES, memories, range(seeds)):
        cluster = cluster_of(nodes, memory, seed)
        free = {d.name: [0.0] * len(weights) for d in cluster.devices if d.computes}
        try:
            best = solve(Problem(cluster, "in", "out", free, sizes, weights), "throughput")
        except NoRoute:
            impossible += 1
            continue
        stages.append(len(best.route.stages))
        if stages[-1] == 1:
            single += 1
            continue
        proved += best.optimal
        ratios.append(best.value / best.bound)
        fastest = max(k.bandwidth for k in cluster.links if math.isfinite(k.bandwidth))
        largest = max(sizes[t.boundary] for t in best.route.transfers[1:-1])
        theirs.append(best.value / (largest / fastest))
    row: dict[str, Cell] = {
        "objective": "throughput",
        "bound": 1.0,
        "planned": len(ratios),
        "one node": single,
    }
    row |= {"impossible": impossible, "optimal": proved, "most stages": max(stages, default=0)}
    mean = None
    if ratios:
        mean = sum(theirs) / len(theirs)
        row |= {"least": min(ratios), "mean": sum(ratios) / len(ratios), "worst": max(ratios)}
    row |= {"mean as SEIFER": mean, "seconds": round(time.perf_counter() - begin, 1)}
    row["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return row, mean
