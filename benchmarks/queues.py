"""Routing arriving requests over loaded stages: ours beside four other policies, in a seeded simulator."""

from __future__ import annotations

import itertools
import math
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from random import Random

import networkx as nx

from benchmarks.runner import Options, Outcome, Row, Target, main
from router import Cluster, Device, Job, Link, Problem, Route, Stage, Transfer, capacity
from router.online import (
    V_SECONDS,
    Policy,
    RouteTable,
    at_random,
    backlog_only,
    drift_plus_penalty,
    join_shortest_queue,
    make_table,
    shortest_path,
)
from router.simulation import Report, Traffic, simulate

INSTANCES = 20
LOADS = (0.5, 0.8, 0.95)
REQUESTS = 20_000
POLICIES = ("ours", "shortest path", "backlog only", "shortest queue", "random")
PATHS = 3
BOUNDED = 0.01  # slope of requests in the system per arrival; an overload of 5 % shows as 0.05
LONGER = 5
LONG = (LOADS[-1], "ours, long run")


def jobs_of(seed: int) -> list[Job]:
    """Two models on a random cluster; each of two stages is loaded on several unequal devices."""
    rng = Random(f"queues {seed}")
    count = rng.randint(5, 7)
    names = [f"d{k}" for k in range(count)]
    graph = nx.random_regular_graph(3 if count % 2 == 0 else 4, count, seed=seed)
    links = []
    for a, b in graph.edges:
        medium = f"{a}={b}" if rng.random() < 0.2 else None
        for u, v in ((a, b), (b, a)):
            links.append(Link(names[u], names[v], 10 ** rng.uniform(6.5, 8), rng.uniform(1e-4, 5e-3), medium))
    ends = [Device("in", computes=False), Device("out", computes=False)]
    entry = rng.sample(names, 2)
    links += [Link("in", name, 1e8, 1e-3) for name in entry] + [
        Link(name, "out", 1e8, 1e-3) for name in entry
    ]
    cluster = Cluster(ends + [Device(name) for name in names], links)
    speed = {name: rng.choice([1.0, 2.0, 4.0]) for name in names}
    jobs = []
    for j in range(2):
        work = [rng.uniform(0.02, 0.1) for _ in range(2)]
        holds = [set(rng.sample(names, rng.randint(2, 3))) for _ in range(2)]
        seconds = {
            name: [work[b] / speed[name] if name in holds[b] else math.inf for b in range(2)]
            for name in names
        }
        sizes = [int(10 ** rng.uniform(4.5, 5.7)), int(10 ** rng.uniform(4.5, 5.7)), 1000]
        problem = Problem(cluster, "in", "out", seconds, sizes, stages_per_device=None)
        jobs.append(Job(f"model{j}", problem, rng.uniform(0.5, 2.0)))
    return jobs


def routes_of(problem: Problem) -> list[Route]:
    """All choices of devices, each transfer over up to three fast simple paths."""
    graph = problem.cluster.graph()
    able = [
        [n for n, row in problem.block_seconds.items() if math.isfinite(row[b])]
        for b in range(problem.blocks)
    ]

    def ways(a: str, b: str, boundary: int) -> list[tuple[str, ...]]:
        if a == b:
            return [(a,)]

        def seconds(path: tuple[str, ...]) -> float:
            hops = [problem.cluster.link(*hop) for hop in itertools.pairwise(path)]
            return sum(k.delay + problem.boundary_bytes[boundary] / k.bandwidth for k in hops)

        found: list[list[str]] = list(nx.all_simple_paths(graph, a, b, cutoff=4))
        paths = [tuple(path) for path in found]
        return sorted(paths, key=seconds)[:PATHS]

    found = []
    for devices in itertools.product(*able):
        # One stage when both blocks run on one device: nothing moves between.
        edges = [0, *(b for b in range(1, problem.blocks) if devices[b] != devices[b - 1]), problem.blocks]
        stages = tuple(Stage(devices[a], a, b) for a, b in itertools.pairwise(edges))
        holders = [problem.source, *(stage.device for stage in stages), problem.sink]
        options = [ways(a, b, at) for at, (a, b) in zip(edges, itertools.pairwise(holders), strict=True)]
        for paths in itertools.product(*options):
            transfers = tuple(Transfer(at, path) for at, path in zip(edges, paths, strict=True))
            found.append(Route(stages, transfers))
    return found


def policy_of(name: str, seed: int) -> Policy:
    """A fresh policy of that name."""
    makers: dict[str, Callable[[], Policy]] = {
        "ours": lambda: drift_plus_penalty(V_SECONDS),
        "shortest path": shortest_path,
        "backlog only": backlog_only,
        "shortest queue": join_shortest_queue,
        "random": lambda: at_random(seed),
    }
    return makers[name]()


def one_instance(arguments: tuple[int, int]) -> tuple[float, dict[tuple[float, str], Report]]:
    """(capacity factor, report per load and policy) of one instance."""
    seed, requests = arguments
    jobs = jobs_of(seed)
    factor = capacity(jobs).factor
    tables: list[RouteTable] = [make_table(job.problem, routes_of(job.problem)) for job in jobs]
    reports = {}
    for load in LOADS:
        burst = 1.0 if seed % 2 == 0 else 4.0
        traffic = [Traffic(job.rate * factor * load, burst) for job in jobs]
        for name in POLICIES:
            policy = policy_of(name, seed)
            reports[load, name] = simulate(tables, traffic, policy, requests=requests, seed=seed)
    # Whether queues stay bounded shows only in the long run; `traffic` is that of the highest load.
    policy = policy_of("ours", seed)
    reports[LONG] = simulate(tables, traffic, policy, requests=LONGER * requests, seed=seed)
    return factor, reports


def _row(load: float, policy: str, reports: Sequence[Report], seconds: float) -> Row:
    """Medians over the instances; `seconds` is what an instance took in the mean, all policies and loads together."""
    return {
        "case": f"{load:.0%} load, {policy}",
        "objective": "p99",
        "mean s": statistics.median(r.mean for r in reports),
        "p99 s": statistics.median(r.p99 for r in reports),
        "requests/s": statistics.median(r.throughput for r in reports),
        "worst growth": max(r.growth for r in reports),
        "bounded": sum(r.growth <= BOUNDED for r in reports),
        # A policy decides as requests come: nothing is solved that could be proved.
        "bound": None,
        "optimal": None,
        "seconds": round(seconds, 2),
        "peak_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
    }


def measure(options: Options) -> Outcome:
    """One row per load and policy: medians over the instances."""
    count, requests = (2, 1000) if options.quick else (INSTANCES, REQUESTS)
    work = [(seed, requests) for seed in range(count)]
    with options.console.status(f"{count} instances"), get_context("spawn").Pool(2) as pool:
        begin = time.perf_counter()
        results = pool.map(one_instance, work, chunksize=1)
        seconds = (time.perf_counter() - begin) / count
        pool.close()
        pool.join()  # only then is what its processes used known
    rows: list[Row] = []
    targets = []
    for load in LOADS:
        rows += [_row(load, name, [found[load, name] for _, found in results], seconds) for name in POLICIES]
        ratios = []
        for _, found in results:
            best = min(found[load, name].p99 for name in POLICIES if name != "ours")
            ratios.append(found[load, "ours"].p99 / best)
        most = 1.05 if load == LOADS[0] else 1.0
        name = f"median p99 of ours / best other at {load:.0%} load"
        targets.append(Target(name, statistics.median(ratios), most, "most"))
    long = [found[LONG] for _, found in results]
    bounded = sum(r.growth <= BOUNDED for r in long)
    rows.append(_row(*LONG, long, seconds))
    targets.append(Target(f"instances of {count} with bounded queues at 95 % load", bounded, count, "least"))
    factors = ", ".join(f"{factor:.3g}" for factor, _ in results)
    notes = [
        f"V = {V_SECONDS} s for all instances; capacity (factor of the instance's rates, LP bound): {factors}",
        "even instances: Poisson arrivals; odd ones: bursts of 4 on average",
    ]
    return Outcome(rows, targets, notes)


if __name__ == "__main__":
    main("queues", measure, __doc__)
