"""The solver against every route, one by one."""

from __future__ import annotations

import math

import brute
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from instances import problems

from router import NoRoute, Objective, Problem, evaluate, explain, solve
from router import additive as quantities
from router.instance import compile_problem
from router.layers import shortest
from router.reference import reference_value

FEW = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def check(problem: Problem, objective: Objective) -> None:
    expected = brute.best(problem, objective)
    try:
        found = solve(problem, objective)
    except NoRoute:
        assert expected == math.inf
        return
    assert found.optimal
    assert found.value == pytest.approx(expected, rel=1e-9, abs=1e-12)
    measured = evaluate(problem, found.route)
    assert measured.latency == found.latency
    assert math.fsum(t.seconds for t in explain(problem, found.route)) == found.latency


@FEW
@given(problems(several=True), st.sampled_from(["latency", "throughput", "cost", "energy"]))
def test_every_objective_is_the_best_of_all_routes(problem: Problem, name: str) -> None:
    check(problem, Objective(name))


@FEW
@given(
    problems(several=True),
    st.sampled_from(["latency", "throughput", "cost", "energy"]),
    st.sampled_from(["max_latency", "max_period", "max_cost", "max_energy", "max_error"]),
    st.integers(0, 60),
)
def test_bounds_hold_and_the_best_within_them_is_found(
    problem: Problem, name: str, bound: str, limit: int
) -> None:
    check(problem, Objective(name, **{bound: float(limit)}))


@FEW
@given(
    problems(),
    st.fixed_dictionaries(
        {k: st.sampled_from([0, 0.25, 0.5, 1, 3]) for k in ("latency", "period", "cost", "energy")}
    ),
)
def test_weighted_sum(problem: Problem, weights: dict[str, float]) -> None:
    check(problem, Objective("weighted", weights=weights))


@settings(FEW, max_examples=300)
@given(
    problems(memory=False),
    st.fixed_dictionaries({k: st.sampled_from([0, 0.25, 0.5, 1, 3]) for k in ("latency", "period", "cost")}),
)
def test_a_plan_and_a_true_bound_without_any_search(problem: Problem, weights: dict[str, float]) -> None:
    if not any(weights.values()):
        return
    objective = Objective("weighted", weights=weights)
    expected = brute.best(problem, objective)
    if expected == math.inf:
        return
    found = solve(problem, objective, labels=1)
    assert found.bound <= expected * (1 + 1e-9) <= found.value * (1 + 2e-9)


@FEW
@given(problems(several=True), st.sampled_from(["throughput", "cost", "energy"]))
def test_the_fastest_of_equally_good_plans(problem: Problem, name: str) -> None:
    try:
        found = solve(problem, name)
    except NoRoute:
        return
    alone = solve(problem, "latency")
    if getattr(alone, {"throughput": "period"}.get(name, name)) <= found.value:
        assert found.latency == pytest.approx(alone.latency)


@settings(FEW, max_examples=100)
@given(problems(devices=6, blocks=6, codecs=3))
def test_layers_equal_dijkstra_on_the_explicit_layered_graph(problem: Problem) -> None:
    instance = compile_problem(problem)
    for make in (quantities.latency, quantities.cost, quantities.energy, quantities.error):
        cost = make(instance)
        value, route = shortest(instance, cost)
        assert value == pytest.approx(reference_value(instance, cost), rel=1e-12, abs=1e-12)
        if route is None:
            continue
        measured = evaluate(problem, route)
        again = {
            "latency": measured.latency,
            "cost": measured.cost,
            "energy": measured.energy,
            "error": measured.error,
        }
        assert value == pytest.approx(again[make.__name__], rel=1e-9, abs=1e-12)
