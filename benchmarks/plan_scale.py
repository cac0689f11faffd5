"""How the shortest-path solver grows, and how it compares with networkx on the explicit layered graph."""

from __future__ import annotations

import time
from random import Random

import networkx as nx

from benchmarks.measuring import apart
from benchmarks.runner import Options, Outcome, Row, Target, main
from router import Cluster, CodecCost, Device, Link, Problem, solve
from router.additive import latency
from router.instance import compile_problem
from router.layers import shortest

DEGREE = 8


def problem_of(devices: int, blocks: int, codecs: int, seed: int = 0) -> Problem:
    """A random connected cluster in which every device has about eight links out, and a random chain."""
    rng = Random(seed)
    names = [f"d{k}" for k in range(devices)]
    graph = nx.random_regular_graph(DEGREE, devices, seed=seed)
    links = []
    for a, b in graph.edges:
        for u, v in ((a, b), (b, a)):
            links.append(Link(names[u], names[v], 10 ** rng.uniform(6, 9), 10 ** rng.uniform(-4, -2)))
    speed = [rng.uniform(0.2, 5) for _ in names]
    work = [rng.uniform(1e-3, 1e-2) for _ in range(blocks)]
    offered = [CodecCost("raw")]
    for number in range(codecs - 1):
        row = [rng.uniform(1e-5, 1e-3) for _ in range(blocks + 1)]
        table = dict.fromkeys(names, row)
        offered.append(CodecCost(f"codec{number}", rng.uniform(1.5, 6), table, table))
    return Problem(
        cluster=Cluster([Device(name) for name in names], links),
        source=names[0],
        sink=names[-1],
        block_seconds={name: [t * speed[k] for t in work] for k, name in enumerate(names)},
        boundary_bytes=[int(10 ** rng.uniform(3, 6)) for _ in range(blocks + 1)],
        codecs=offered,
        stages_per_device=None,
    )


def _ours(devices: int, blocks: int, codecs: int) -> tuple[float, float, bool, float, float]:
    """(seconds of the solver alone, seconds of `solve`, optimal, value, bound); the problem's making is not counted."""
    problem = problem_of(devices, blocks, codecs)
    begin = time.perf_counter()
    result = solve(problem, "latency")
    whole = time.perf_counter() - begin
    instance = compile_problem(problem)
    cost = latency(instance)
    begin = time.perf_counter()
    shortest(instance, cost)
    return time.perf_counter() - begin, whole, result.optimal, result.value, result.bound


def _networkx(devices: int, blocks: int) -> tuple[float, float]:
    """(seconds of Dijkstra alone, its value)."""
    problem = problem_of(devices, blocks, 1)
    # The plain layered graph with a number per vertex, which is the fastest form for networkx: without codecs and
    # overheads, one copy of every device per boundary says it all.
    at = {device.name: k for k, device in enumerate(problem.cluster.devices)}
    graph: nx.DiGraph[int] = nx.DiGraph()
    for i, size in enumerate(problem.boundary_bytes):
        base = i * devices
        graph.add_weighted_edges_from(
            (base + at[k.source], base + at[k.target], k.delay + size / k.bandwidth)
            for k in problem.cluster.links
        )
    for name, seconds in problem.block_seconds.items():
        graph.add_weighted_edges_from(
            (i * devices + at[name], (i + 1) * devices + at[name], t) for i, t in enumerate(seconds)
        )
    source, sink = at[problem.source], blocks * devices + at[problem.sink]
    begin = time.perf_counter()
    value = nx.dijkstra_path_length(graph, source, sink)
    return time.perf_counter() - begin, float(value)


def measure(options: Options) -> Outcome:
    """Rows per size; targets against networkx and for the largest size."""
    sizes = [(100, 100, 1), (300, 100, 1), (1000, 25, 1), (1000, 50, 1), (1000, 100, 1), (1000, 100, 4)]
    sizes += [(3000, 100, 1), (10_000, 50, 4), (10_000, 200, 4)]
    if options.quick:
        sizes = [(100, 25, 1), (100, 50, 1), (100, 50, 4)]
    rows: list[Row] = []
    facts: dict[tuple[int, int, int], tuple[float, float, float, int]] = {}
    for devices, blocks, codecs in sizes:
        with options.console.status(f"{devices} devices, {blocks} blocks, {codecs} codecs"):
            (alone, whole, optimal, value, bound), _, peak = apart(_ours, devices, blocks, codecs)
        facts[devices, blocks, codecs] = (alone, whole, value, peak)
        rows.append(
            {
                "case": f"{devices} x {blocks} x {codecs}",
                "objective": "latency",
                "value": value,
                "bound": bound,
                "optimal": optimal,
                "seconds": round(alone, 4),
                "solve seconds": round(whole, 4),
                "peak_bytes": peak,
                "us per device and block": round(alone / devices / blocks * 1e6, 3),
            }
        )
    devices, blocks = (100, 50) if options.quick else (1000, 100)
    (theirs, value), _, peak = apart(_networkx, devices, blocks)
    mine, whole, own, _ = facts[devices, blocks, 1]
    rows.append(
        {
            "case": f"{devices} x {blocks}, networkx",
            "objective": "latency",
            "value": value,
            "seconds": round(theirs, 4),
            "peak_bytes": peak,
        }
    )
    large = facts.get((10_000, 200, 4))
    targets = [
        Target("relative difference of cost to networkx", abs(own - value) / value, 1e-9, "most"),
        Target(
            "times faster than networkx Dijkstra, its construction not counted", theirs / mine, 25, "least"
        ),
        Target("seconds for 10,000 devices x 200 blocks x 4 codecs", large[1] if large else None, 60, "most"),
        Target("GiB for the same", large[3] / 2**30 if large else None, 2, "most"),
    ]
    notes = [
        "case: devices x blocks x codecs; seconds: the layered solver; solve seconds: with checks and compilation",
        f"with checks and compilation counted, it is {theirs / whole:.0f} times faster than networkx",
    ]
    return Outcome(rows, targets, notes)


if __name__ == "__main__":
    main("plan_scale", measure, __doc__)
