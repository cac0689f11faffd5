"""Capacity, replicas, several jobs, online routing."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import brute
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from instances import problems
from scipy.optimize import linprog

from router import (
    Cluster,
    Device,
    InvalidProblem,
    Job,
    Link,
    Load,
    NoRoute,
    Objective,
    Pins,
    Problem,
    Route,
    admit,
    capacity,
    plan_jobs,
    solve,
    solve_replicated,
)
from router.evaluation import measure
from router.instance import compile_problem
from router.limits import broken
from router.online import at_random, drift_plus_penalty, make_table, shortest_path
from router.simulation import Traffic, arrivals, simulate
from router.workload import mix_load, work_of

FEW = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def mesh(names: list[str], **options: float) -> list[Link]:
    return [
        Link(a, b, **{"bandwidth": 1e6, "delay": 0.001, **options}) for a in names for b in names if a != b
    ]


def three() -> Problem:
    names = ["server", "a", "b", "c"]
    cluster = Cluster([Device("server", computes=False)] + [Device(n) for n in names[1:]], mesh(names))
    return Problem(
        cluster,
        "server",
        "server",
        {"a": [0.01, 0.01], "b": [0.02, 0.02], "c": [0.04, 0.01]},
        [1000, 2000, 10],
    )


def test_capacity_by_hand() -> None:
    # a runs block 0 (100/s), c block 1 (100/s), b both (25/s): every device is busy all the time.
    found = capacity([Job("one", three())])
    assert found.exact
    assert found.factor == pytest.approx(125.0)
    assert capacity([Job("x", three()), Job("y", three(), 3.0)]).factor == pytest.approx(125 / 4)


@FEW
@given(problems(memory=False, several=True))
def test_capacity_equals_the_program_over_every_route(problem: Problem) -> None:
    problem = replace(problem, max_stages=None, stages_per_device=None)
    instance = compile_problem(problem)
    routes = [route for route in brute.routes(problem) if np.isfinite(work_of(instance, route)).all()]
    if not routes:
        with pytest.raises(NoRoute):
            capacity([Job("job", problem)])
        return
    work = np.stack([work_of(instance, route) for route in routes], axis=1)
    if (work.max(axis=0) == 0).any():
        return  # a route that keeps nothing busy carries any rate
    best = linprog(-np.ones(len(routes)), A_ub=work, b_ub=instance.free)
    found = capacity([Job("job", problem)])
    assert found.exact
    assert found.factor == pytest.approx(-best.fun, rel=1e-6)
    assert math.fsum(share.fraction for share in found.mixes[0]) == pytest.approx(1.0)
    assert mix_load(instance, found.mixes[0]).max() == pytest.approx(1 / found.factor, rel=1e-6)


def test_replica_lowers_the_period() -> None:
    names = ["server", "a", "b", "c"]
    cluster = Cluster([Device("server", computes=False)] + [Device(n) for n in names[1:]], mesh(names))
    problem = Problem(cluster, "server", "server", {n: [0.01, 0.08] for n in "abc"}, [100, 100, 100])
    assert solve(problem, "throughput").period == pytest.approx(0.08)
    found = solve_replicated(problem)
    assert found.period == pytest.approx(0.03)  # every device runs the whole model
    assert found.optimal
    tight = replace(
        problem,
        block_memory=[60, 50],
        cluster=replace(cluster, devices=[cluster.devices[0]] + [Device(n, memory=100) for n in "abc"]),
    )
    found = solve_replicated(tight)
    assert found.period == pytest.approx(0.04)  # one device for block 0, two for block 1
    assert found.optimal
    assert len(found.shares) == 2


@settings(FEW, max_examples=30)
@given(problems(devices=4, blocks=3))
def test_replicas_are_never_worse_and_keep_memory(problem: Problem) -> None:
    try:
        single = solve(problem, "throughput")
        found = solve_replicated(problem)
    except (NoRoute, InvalidProblem):
        return
    assert found.bound <= found.value <= single.value * (1 + 1e-9)
    instance = compile_problem(problem)
    assert mix_load(instance, found.shares).max() == pytest.approx(found.value)
    held: dict[str, set[tuple[int, int]]] = {}
    for stage in itertools.chain.from_iterable(share.route.stages for share in found.shares):
        held.setdefault(stage.device, set()).add((stage.start, stage.stop))
        assert instance.stage_bytes[stage.start, stage.stop] <= instance.memory[instance.index[stage.device]]
    assert all(len(stages) == 1 for stages in held.values())


def least_mix(problem: Problem, objective: Objective) -> float:
    """The least period of any mix: every cut, every stage of every device, every route that keeps the bounds."""
    instance = compile_problem(problem)
    each_alone = replace(objective, max_period=math.inf)
    by_cuts: dict[tuple[int, ...], list[Route]] = {}
    for route in brute.routes(problem):
        measured = measure(instance, route)
        if math.isfinite(measured.latency) and broken(instance, each_alone, route, measured) is None:
            by_cuts.setdefault(tuple(stage.start for stage in route.stages), []).append(route)
    least = math.inf
    names = [device.name for device in problem.cluster.devices]
    for cuts, routes in by_cuts.items():
        for choice in itertools.product(cuts, repeat=len(names)):
            held = dict(zip(names, choice, strict=True))
            mine = [r for r in routes if all(held[stage.device] == stage.start for stage in r.stages)]
            if mine:
                work = np.stack([work_of(instance, route) for route in mine], axis=1)
                best = linprog(
                    -np.ones(len(mine)), A_ub=work, b_ub=instance.free, bounds=(0, 1e9), method="highs"
                )
                least = min(least, 1 / -best.fun)
    return least


BOUNDS = st.sampled_from([math.inf, math.inf, 4.0, 12.0, 30.0])


@settings(FEW, max_examples=120)
@given(
    problems(devices=3, blocks=3), BOUNDS, BOUNDS, st.sampled_from([math.inf, 0.0, 1.0]), st.integers(0, 3)
)
def test_replicas_within_bounds_equal_the_best_of_all_mixes(
    problem: Problem, latency: float, cost: float, error: float, tied: int
) -> None:
    objective = Objective("throughput", max_latency=latency, max_cost=10 * cost, max_error=error)
    computing = [device.name for device in problem.cluster.devices if device.computes]
    if tied == 1 and computing:
        problem = replace(problem, pins=Pins(blocks={0: computing[-1]}))
    elif tied == 2 and computing:
        problem = replace(problem, pins=Pins(forbidden=((problem.blocks - 1, computing[0]),)))
    try:
        least = least_mix(problem, objective)
    except InvalidProblem:
        return
    if least < 1e-6:  # nothing is ever busy
        return
    try:
        found = solve_replicated(problem, objective)
    except InvalidProblem:
        return
    except NoRoute:
        found = None
    if found is None or math.isinf(least):
        assert found is None
        assert math.isinf(least)
        return
    assert found.value == pytest.approx(least, rel=1e-6)
    assert found.bound == pytest.approx(least, rel=1e-6)
    instance = compile_problem(problem)
    for share in found.shares:
        assert broken(instance, objective, share.route, measure(instance, share.route)) is None


def test_a_mix_may_be_fast_enough_where_no_route_is() -> None:
    problem = replace(three(), block_seconds={name: [0.01, 0.08] for name in "abc"})
    with pytest.raises(NoRoute):
        solve(problem, Objective("throughput", max_period=0.05))
    found = solve_replicated(problem, Objective("throughput", max_period=0.05))
    assert found.period == pytest.approx(0.03)
    with pytest.raises(NoRoute, match="period") as caught:
        solve_replicated(problem, Objective("throughput", max_period=0.02))
    assert caught.value.limit == "period"
    with pytest.raises(NoRoute) as caught:
        solve_replicated(problem, Objective("throughput", max_period=0.05, max_latency=1e-6))
    assert caught.value.limit == "latency"


def test_two_jobs_share_a_cluster() -> None:
    jobs = [Job("x", three(), 20.0), Job("y", three(), 20.0)]
    plan = plan_jobs(jobs)
    instance = compile_problem(three())
    total = sum(job.rate * work_of(instance, s.route) for job, s in zip(jobs, plan.solutions, strict=True))
    assert float(total.max()) == pytest.approx(plan.utilisation)
    assert plan.bound <= plan.utilisation < 1
    assert all(s.latency > solve(three()).latency for s in plan.solutions)  # waits are part of it


def test_admission_says_no() -> None:
    assert admit([Job("x", three(), 100.0)]) == pytest.approx(1.25)
    with pytest.raises(NoRoute, match="used up: device") as caught:
        admit([Job("x", three(), 100.0), Job("y", three(), 100.0)])
    assert caught.value.limit == "capacity"
    with pytest.raises(InvalidProblem):
        admit([Job("x", three(), 0.0)])


def test_simulation_of_one_server_is_m_d_1() -> None:
    cluster = Cluster(
        [Device("server", computes=False), Device("a")], mesh(["server", "a"], bandwidth=math.inf, delay=0)
    )
    problem = Problem(cluster, "server", "server", {"a": [1.0]}, [1, 1])
    table = make_table(problem, [solve(problem).route])
    report = simulate([table], [Traffic(0.5)], shortest_path(), requests=40_000, seed=1)
    assert report.mean == pytest.approx(1 + 0.5 / (2 * 0.5), rel=0.03)  # Pollaczek-Khinchine
    assert abs(report.growth) < 1e-3
    over = simulate([table], [Traffic(1.25)], shortest_path(), requests=20_000, seed=1)
    assert over.growth == pytest.approx(0.2, rel=0.2)  # a fifth of the arrivals stays


def test_simulation_repeats_and_bursts_keep_their_rate() -> None:
    assert arrivals([Traffic(2.0, 4.0)], 50, 3) == arrivals([Traffic(2.0, 4.0)], 50, 3)
    many = arrivals([Traffic(2.0, 4.0), Traffic(1.0)], 60_000, 3)
    assert len(many) / many[-1][0] == pytest.approx(3.0, rel=0.03)


def test_drift_plus_penalty_carries_what_one_route_cannot() -> None:
    problem = three()
    routes = [share.route for share in capacity([Job("x", problem)]).mixes[0]]
    routes.append(solve(problem).route)
    table = make_table(problem, routes)
    load = [Traffic(112.0)]  # 90 % of what all routes together carry; the fastest route alone carries 50
    ours = simulate([table], load, drift_plus_penalty(), requests=20_000, seed=5)
    fixed = simulate([table], load, shortest_path(), requests=20_000, seed=5)
    blind = simulate([table], load, at_random(1), requests=20_000, seed=5)
    assert ours.growth < 0.01 < fixed.growth
    assert ours.p99 < blind.p99


@FEW
@given(problems(several=True), st.floats(0.1, 0.9))
def test_work_agrees_with_the_period(problem: Problem, busy: float) -> None:
    problem = replace(problem, load=Load(device_busy={"d0": busy}), pins=Pins())
    try:
        found = solve(problem, "throughput")
    except NoRoute:
        return
    instance = compile_problem(problem)
    assert float((work_of(instance, found.route) / instance.free).max()) == pytest.approx(found.period)
