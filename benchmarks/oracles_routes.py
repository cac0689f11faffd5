"""Random jobs on real networks, against every route and against a MILP."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from benchmarks.every_route import EveryRoute, TooManyRoutes
from benchmarks.topologies import Topology, connected_part, largest_part
from router import Cluster, CodecCost, Device, Link, NoRoute, Objective, Problem, solve

Case = Callable[[Sequence[Topology], int], tuple[int, int, int]]
OBJECTIVES = ("latency", "throughput", "cost", "energy", "weighted")


def cluster_of(part: Topology, rng: Random, memory: bool) -> Cluster:
    """Devices with random speed, power and price; links as in the file, sometimes half duplex or encrypted."""
    devices = [
        Device(
            name,
            memory=rng.choice([None, rng.randint(4, 16) * 10**6]) if memory else None,
            computes=True,
            power=rng.uniform(1, 30),
            price=rng.uniform(0.1, 2),
            crypt_seconds_per_byte=rng.choice([0.0, 1e-9]),
        )
        for name in part.nodes
    ]
    links = []
    for a, b, speed, delay in part.links:
        half = f"{a}={b}" if rng.random() < 0.2 else None
        encrypted, joules, price = rng.random() < 0.2, rng.uniform(0, 1e-7), rng.uniform(0, 1e-9)
        forth = Link(a, b, speed, delay, half, encrypted, joules, price)
        links += [forth, replace(forth, source=b, target=a, bandwidth=speed * rng.choice([1.0, 0.5]))]
    return Cluster(devices, links)


def job(part: Topology, blocks: int, codecs: int, rng: Random, *, memory: bool = True) -> Problem:
    """A random model on a network: seconds and bytes of the order at which links and devices compete."""
    speed = {name: rng.choice([1.0, 2.0, 4.0, 8.0]) for name in part.nodes}
    work = [rng.uniform(1e-3, 30e-3) for _ in range(blocks)]
    offered = [CodecCost("raw")]
    for number in range(codecs - 1):
        ratio = [rng.uniform(1, 6) for _ in range(blocks + 1)]
        rate = rng.uniform(1e-4, 3e-3)
        table = {name: [rate * rng.uniform(0.5, 2) for _ in range(blocks + 1)] for name in part.nodes}
        offered.append(CodecCost(f"codec{number}", ratio, table, table, error=rng.choice([0.0, 1.0, 2.0])))
    return Problem(
        cluster=cluster_of(part, rng, memory),
        source=rng.choice(part.nodes),
        sink=rng.choice(part.nodes),
        block_seconds={
            name: [math.inf if rng.random() < 0.05 else t / speed[name] for t in work] for name in part.nodes
        },
        boundary_bytes=[int(10 ** rng.uniform(4, 6.7)) for _ in range(blocks + 1)],
        block_memory=[rng.randint(1, 6) * 10**6 if memory else 0 for _ in range(blocks)],
        stage_overhead={name: rng.choice([0.0, 1e-4]) for name in part.nodes},
        codecs=offered,
        max_stages=rng.choice([None, None, None, 2, 3]),
        stages_per_device=rng.choice([1, 1, None]),
    )


def objectives_of(every: EveryRoute, rng: Random) -> list[Objective]:
    """Each objective as it is, and each again under a bound that bites."""
    weights = {"latency": 1.0, "cost": rng.uniform(0, 3), "period": rng.choice([0.0, 1.0])}
    plain = [Objective(name, weights if name == "weighted" else {}) for name in OBJECTIVES]
    bounded = []
    for base in plain:
        name = rng.choice(["latency", "period", "cost", "energy", "error"])
        least = every.best(Objective("throughput" if name == "period" else name)) if name != "error" else 0.0
        if math.isfinite(least):
            limit = float(rng.randint(0, 3)) if name == "error" else least * rng.uniform(1.0, 1.6)
            bounded.append(Objective(base.name, base.weights, **{f"max_{name}": limit}))
    return plain + bounded


def agrees(problem: Problem, objective: Objective, expected: float) -> tuple[bool, bool]:
    """Whether the solver's value is the expected one, and whether it says it is optimal."""
    try:
        found = solve(problem, objective)
    except NoRoute:
        return math.isinf(expected), True
    return math.isclose(found.value, expected, rel_tol=1e-9), found.optimal


def small_case(topologies: Sequence[Topology], number: int) -> tuple[int, int, int]:
    """One case with codecs, memory and every objective: (comparisons, equal, proved)."""
    rng = Random(f"small {number}")
    while True:
        part = connected_part(rng.choice(list(topologies)), rng.randint(2, 6), rng)
        problem = job(part, rng.randint(1, 4), rng.randint(1, 3), rng)
        try:
            every = EveryRoute(problem)
        except TooManyRoutes:
            continue
        break
    results = [agrees(problem, wanted, every.best(wanted)) for wanted in objectives_of(every, rng)]
    return len(results), sum(ok for ok, _ in results), sum(int(proved) for _, proved in results)


def wide_case(topologies: Sequence[Topology], number: int) -> tuple[int, int, int]:
    """One case of latency on up to 12 nodes and 5 blocks, without codecs."""
    rng = Random(f"wide {number}")
    part = connected_part(rng.choice(list(topologies)), rng.randint(7, 12), rng)
    problem = job(part, rng.randint(2, 5), 1, rng)
    equal, proved = agrees(problem, Objective("latency"), least_latency(problem))
    return 1, int(equal), int(proved)


def many(case: Case, topologies: Sequence[Topology], count: int) -> list[tuple[int, int, int]]:
    """The first `count` cases of a kind."""
    return [case(topologies, number) for number in range(count)]


def least_latency(problem: Problem) -> float:
    """Every assignment of blocks to devices; transfers take the fastest path, which Floyd's algorithm finds."""
    names = [device.name for device in problem.cluster.devices]
    at = {name: k for k, name in enumerate(names)}
    n, blocks = len(names), problem.blocks
    way = np.full((blocks + 1, n, n), np.inf)
    for i in range(blocks + 1):
        np.fill_diagonal(way[i], 0.0)
        for link in problem.cluster.links:
            size = problem.boundary_bytes[i]
            crypt = sum(
                problem.cluster.device(end).crypt_seconds_per_byte for end in (link.source, link.target)
            )
            hop = link.delay + size / link.bandwidth + size * crypt * link.encrypted
            way[i, at[link.source], at[link.target]] = hop
        for k in range(n):
            way[i] = np.minimum(way[i], way[i][:, k, None] + way[i][None, k])
    grid = np.indices((n,) * blocks).reshape(blocks, -1)  # device of every block, every assignment
    total = way[0, at[problem.source], grid[0]] + way[blocks, grid[-1], at[problem.sink]]
    overhead = np.array([problem.stage_overhead.get(name, 0.0) for name in names])
    seconds = np.array([problem.block_seconds[name] for name in names])
    room = np.array([math.inf if d.memory is None else d.memory for d in problem.cluster.devices])
    used = np.zeros((n, grid.shape[1]))
    held = np.zeros((n, grid.shape[1]), np.int8)
    columns = np.arange(grid.shape[1])
    for i in range(blocks):
        starts = np.ones(grid.shape[1], bool) if i == 0 else grid[i] != grid[i - 1]
        total = total + seconds[grid[i], i] + starts * overhead[grid[i]]
        if i:
            total = total + way[i, grid[i - 1], grid[i]]
        used[grid[i], columns] += problem.block_memory[i]
        held[grid[i], columns] += starts
    allowed = (used <= room[:, None]).all(axis=0)
    if problem.stages_per_device is not None:
        allowed &= (held <= problem.stages_per_device).all(axis=0)
    if problem.max_stages is not None:
        allowed &= held.sum(axis=0) <= problem.max_stages
    return float(total[allowed].min()) if allowed.any() else math.inf


def whole_case(
    topology: Topology, blocks: int, number: int, limit: float
) -> dict[str, str | float | int | bool | None]:
    """Latency under memory on a whole network: ours beside HiGHS."""
    part = largest_part(topology)
    rng = Random(f"whole {topology.name} {blocks} {number}")
    problem = replace(job(part, blocks, 1, rng), stages_per_device=None, max_stages=None, stage_overhead={})
    begin = time.perf_counter()
    try:
        ours = solve(problem, "latency")
        value, optimal, bound = ours.value, ours.optimal, ours.bound
    except NoRoute:
        value, optimal, bound = math.inf, True, math.inf
    seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    theirs, solved = flow_milp(problem, limit)
    return {
        "case": f"{topology.name} {len(part.nodes)}x{blocks} #{number}",
        "objective": "latency",
        "value": value,
        "bound": bound,
        "optimal": optimal,
        "seconds": round(seconds, 3),
        "milp": theirs,
        "milp solved": solved,
        "milp seconds": round(time.perf_counter() - begin, 3),
        "ok": (not solved) or (value == theirs) or math.isclose(value, theirs, rel_tol=1e-6),
    }


def flow_milp(problem: Problem, limit: float) -> tuple[float, bool]:
    """Least latency as a flow on the layered graph with memory rows; (value, whether HiGHS proved it)."""
    names = [device.name for device in problem.cluster.devices]
    at = {name: k for k, name in enumerate(names)}
    n, blocks = len(names), problem.blocks
    tails, heads, costs, memory = [], [], [], []
    for i in range(blocks + 1):
        for link in problem.cluster.links:
            size = problem.boundary_bytes[i]
            crypt = sum(
                problem.cluster.device(end).crypt_seconds_per_byte for end in (link.source, link.target)
            )
            tails.append(i * n + at[link.source])
            heads.append(i * n + at[link.target])
            costs.append(link.delay + size / link.bandwidth + size * crypt * link.encrypted)
            memory.append((0, 0.0))
    for i in range(blocks):
        for name in names:
            if math.isfinite(seconds := problem.block_seconds[name][i]):
                tails.append(i * n + at[name])
                heads.append((i + 1) * n + at[name])
                costs.append(seconds)
                memory.append((at[name], float(problem.block_memory[i])))
    edges = len(costs)
    rows = np.concatenate([tails, heads])
    columns = np.concatenate([np.arange(edges)] * 2)
    flow = coo_array((np.repeat([1.0, -1.0], edges), (rows, columns)), shape=((blocks + 1) * n, edges))
    need = np.zeros((blocks + 1) * n)
    need[at[problem.source]] += 1
    need[blocks * n + at[problem.sink]] -= 1
    owner, weight = np.array([u for u, _ in memory]), np.array([w for _, w in memory]) / 1e6
    room = np.array([1e9 if d.memory is None else d.memory / 1e6 for d in problem.cluster.devices])
    fill = coo_array((weight, (owner, np.arange(edges))), shape=(n, edges))
    result = milp(
        np.array(costs),
        constraints=[
            LinearConstraint(flow.tocsr(), need, need),
            LinearConstraint(fill.tocsr(), np.full(n, -np.inf), room),
        ],
        integrality=np.ones(edges, np.int64),
        bounds=Bounds(0, 1),
        options={"time_limit": limit, "mip_rel_gap": 1e-9},
    )
    if result.status == 2:
        return math.inf, True
    return (float(result.fun) if result.fun is not None else math.inf), result.status == 0
