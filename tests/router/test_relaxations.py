"""Bounds that must not exceed the best of all routes, and searches that must not claim to be better."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import brute
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from instances import problems

from router import Cluster, Device, Link, Objective, Problem, evaluate, solve, solver
from router.classes import interchangeable
from router.goal import Goal, make_goal
from router.instance import Instance, compile_problem
from router.layers import Network
from router.limits import broken
from router.pipeline import least_cost, least_period, make_pipeline
from router.search import Found, search
from router.threshold import beam_period

FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@FEW
@given(problems())
def test_period_bounds_and_routes(problem: Problem) -> None:
    instance, objective = compile_problem(problem), Objective("throughput")
    best = brute.best(problem, objective)
    pipeline = make_pipeline(instance)
    if not pipeline.groups:
        assert best == math.inf
        return
    for method in (least_period, beam_period):
        bound, routes = method(pipeline)
        assert bound <= best * (1 + 1e-9)
        for route in routes:
            measured = evaluate(problem, route)
            assert broken(instance, objective, route, measured) is None
            assert measured.period >= best * (1 - 1e-9)


@FEW
@given(problems())
def test_least_latency_under_memory_is_a_bound_and_a_route(problem: Problem) -> None:
    instance, objective = compile_problem(problem), Objective("latency")
    pipeline = make_pipeline(instance)
    best = brute.best(problem, objective)
    if not pipeline.groups:
        assert best == math.inf
        return
    goal = make_goal(instance, objective)
    assert goal.primary is not None
    bound, route = least_cost(pipeline, goal.primary)
    assert bound == pytest.approx(best, rel=1e-9) if math.isfinite(best) else route is None
    if route is not None:  # nothing but memory and stages limits latency, so the program is exact
        assert evaluate(problem, route).latency == pytest.approx(best, rel=1e-9)


@FEW
@given(problems(several=True))
def test_a_search_cut_short_still_bounds(problem: Problem) -> None:
    instance = compile_problem(problem)
    for name in ("latency", "throughput"):
        best = brute.best(problem, Objective(name))
        found = search(instance, make_goal(instance, Objective(name)), budget=1)
        assert found.bound <= best * (1 + 1e-9)
        assert found.value >= best * (1 - 1e-9)


def test_equal_boards_are_one_class() -> None:
    names = ["in", "a0", "a1", "a2", "b0", "b1"]
    devices = [Device(n, computes=n != "in") for n in names]
    links = [Link(u, v, 1e6 if u[0] == v[0] else 5e5) for u in names for v in names if u != v]
    seconds = {n: [1.0 if n[0] == "a" else 2.0] * 3 for n in names[1:]}
    problem = Problem(Cluster(devices, links), "in", "in", seconds, [1, 1, 1, 1])
    assert sorted(map(len, interchangeable(compile_problem(problem)))) == [2, 3]
    slower = [replace(k, bandwidth=1e5) if (k.source, k.target) == ("a0", "b0") else k for k in links]
    apart = replace(problem, cluster=Cluster(devices, slower))
    assert sorted(map(len, interchangeable(compile_problem(apart)))) == [1, 1, 1, 2]


@pytest.mark.parametrize("count", [12, 90])
def test_long_lines_need_the_compiled_dijkstra(count: int) -> None:
    names = [f"d{k}" for k in range(count)]
    links = [Link(a, b, 1e6, 0.5) for a, b in itertools.pairwise(names)]
    problem = Problem(
        Cluster([Device(n) for n in names], links), names[0], names[-1], {names[-1]: [1.0]}, [0, 0]
    )
    best = solve(problem)
    assert best.latency == pytest.approx(1 + 0.5 * (count - 1))
    assert best.route.transfers[0].path == tuple(names)
    assert Network(compile_problem(problem)).n == count


def test_a_large_cluster_gets_a_plan_and_a_bound() -> None:
    rng = np.random.default_rng(3)
    names = [f"d{k}" for k in range(24)]
    links = [Link(a, b, float(rng.uniform(1e6, 1e8))) for a in names for b in names if a != b]
    links += [Link("in", n, math.inf) for n in names] + [Link(n, "in", math.inf) for n in names]
    cluster = Cluster([Device("in", computes=False)] + [Device(n, memory=400) for n in names], links)
    work = rng.uniform(0.5, 1.5, 24)
    seconds = {n: (work * rng.uniform(0.5, 2)).tolist() for n in names}
    problem = Problem(cluster, "in", "in", seconds, [1000] * 25, block_memory=[100] * 24)
    best = solve(problem, "throughput")
    assert best.bound <= best.value <= 2 * best.bound
    assert all(s.stop - s.start <= 4 for s in best.route.stages)


def test_where_little_can_be_gained_the_search_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wireless cell that carries a little less than the devices compute, or much less; the bound knows only these."""
    names = [f"d{number}" for number in range(4)]
    budgets: list[int] = []

    def noted(instance: Instance, goal: Goal, budget: int, incumbent: float) -> Found:
        budgets.append(budget)
        return search(instance, goal, budget=0, incumbent=incumbent)

    monkeypatch.setattr(solver, "search", noted)
    cluster = Cluster(
        devices=[Device("s", computes=False), *map(Device, names)],
        links=[
            Link(u, v, bandwidth=1e6, delay=1e-3, medium="air")
            for u, v in itertools.permutations(["s", *names], 2)
        ],
    )
    for nbytes in (6040, 20_000):
        problem = Problem(
            cluster=cluster,
            source="s",
            sink="s",
            block_seconds={name: [1e-2, 2e-2, 1e-2, 3e-2, 1e-2, 2e-2] for name in names},
            boundary_bytes=[nbytes] * 7,
        )
        found = solve(problem, "throughput")
        assert (found.value <= found.bound * (1 + solver.LITTLE)) is (nbytes == 6040)
    assert budgets == [solver.FEW, solver.LABELS]
