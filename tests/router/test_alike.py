"""Devices that are nearly alike: nothing proved of them taken for alike may be wrong of them as they are."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import router
from router import Cluster, CodecCost, Device, Link, Objective, Problem, solver
from router.alike import NEARLY, alike
from router.classes import interchangeable
from router.instance import compile_problem

FEW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def boards(seed: int, *, noise: float = 0.02, count: int = 4, blocks: int = 7) -> Problem:
    """Boards of one kind behind a home that computes nothing, each measured a little differently."""
    rng = Random(seed)

    def measured(value: float) -> float:
        return value * (1 + noise * rng.random())

    names = ["home", *(f"box-{number}" for number in range(count))]
    seconds = [rng.choice([1.0, 2.0, 3.0]) for _ in range(blocks)]
    links = [
        Link(a, b, bandwidth=measured(2.0), delay=1e-5 * rng.random()) for a in names for b in names if a != b
    ]
    table = {name: [measured(0.3)] * (blocks + 1) for name in names}
    lossy = CodecCost(
        "half", ratio=2.0, encode=table, decode=table, error=[rng.random() for _ in range(blocks + 1)]
    )
    return Problem(
        cluster=Cluster([Device(name, computes=name != "home") for name in names], links),
        source="home",
        sink="home",
        block_seconds={name: [measured(each) for each in seconds] for name in names[1:]},
        boundary_bytes=[rng.choice([2, 4, 8]) for _ in range(blocks + 1)],
        codecs=(CodecCost("raw"), lossy),
        stages_per_device=1,
    )


@given(st.integers(0, 10_000))
@FEW
def test_nothing_becomes_slower_or_smaller(seed: int) -> None:
    instance = compile_problem(boards(seed, noise=0.2))
    taken = alike(instance)
    for name in ("block", "overhead", "encode", "decode", "seconds_per_byte", "delay", "crypt", "hop_wait"):
        assert (getattr(taken, name) <= getattr(instance, name)).all()
    assert (taken.free >= instance.free).all()
    assert (taken.memory >= instance.memory).all()
    finite = np.isfinite(instance.block)
    assert (instance.block[finite] <= taken.block[finite] * (1 + NEARLY[0]) ** 2).all()
    assert (instance.seconds_per_byte <= taken.seconds_per_byte * (1 + NEARLY[0])).all()


def test_boards_of_one_kind_are_counted() -> None:
    instance = compile_problem(boards(1))
    assert max(map(len, interchangeable(instance))) == 1
    assert max(map(len, interchangeable(alike(instance)))) == 4


def test_what_differs_more_stays_apart() -> None:
    problem = boards(1)
    slower = {**problem.block_seconds, "box-0": [2 * each for each in problem.block_seconds["box-0"]]}
    instance = compile_problem(replace(problem, block_seconds=slower))
    assert sorted(map(len, interchangeable(alike(instance)))) == [1, 3]


@given(st.integers(0, 10_000))
@settings(FEW, max_examples=8)
def test_the_plan_is_near_the_best_and_the_bound_is_one(seed: int) -> None:
    """Too much work to tell the boards apart, and little to count them: as with eight boards and twenty codecs."""
    problem = boards(seed)
    goal = Objective("throughput", max_error=1.2)
    best = router.solve(problem, goal)
    instance = compile_problem(problem)
    apart, counted = (solver.make_pipeline(each).effort for each in (instance, alike(instance)))
    assert counted < apart
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solver, "EFFORT", solver.BISECTIONS * (counted + apart) / 2)
        assert router.soon(problem, goal)
        found = router.solve(problem, goal)
    assert found.bound <= best.value * (1 + 1e-9)
    assert best.value * (1 - 1e-9) <= found.value <= best.value * (1 + NEARLY[0]) ** 2
    assert found.error <= 1.2
    assert math.isclose(router.evaluate(problem, found.route).period, found.value)


def test_more_kinds_than_can_be_counted_are_left_as_they_are() -> None:
    problem = boards(3, count=70, blocks=2)
    seconds = {
        name: [each * 1.2**number for each in row]
        for number, (name, row) in enumerate(problem.block_seconds.items())
    }
    instance = compile_problem(replace(problem, block_seconds=seconds))
    assert alike(instance) is instance


@pytest.mark.parametrize(
    "goal", [Objective("latency", max_error=1.2), Objective("throughput", max_error=1.2, max_latency=60.0)]
)
def test_what_one_run_of_the_program_solves_is_solved_exactly(goal: Objective) -> None:
    """Boards are taken for alike only where telling them apart would take too many runs of the program."""
    problem = boards(5)
    instance = compile_problem(problem)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solver, "EFFORT", 2 * solver.make_pipeline(instance).effort)
        patch.setattr(solver, "alike", lambda _: pytest.fail("taken for alike"))
        router.solve(problem, goal)
