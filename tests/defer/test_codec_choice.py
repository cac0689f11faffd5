"""Codecs under an error budget on a fixed route, against every choice there is."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import router
from defer.codec_choice import choose_codecs
from defer.documents.plan import Objective


def an_instance(seed: int) -> tuple[router.Problem, router.Route]:
    """Three stages in a row with random links, sizes and codecs; raw everywhere."""
    rng = random.Random(seed)
    devices = ["home", "a", "b", "c", "end"]
    links = [
        router.Link(left, right, rng.choice([1e5, 1e6, 1e7]), 1e-3)
        for left, right in itertools.permutations(devices, 2)
    ]
    codecs = [
        router.CodecCost(
            f"c{number}",
            ratio=rng.uniform(1.5, 8),
            encode={name: [rng.uniform(0, 2e-3)] * 4 for name in devices},
            decode={name: [rng.uniform(0, 2e-3)] * 4 for name in devices},
            error=[rng.uniform(0.1, 1.0) for _ in range(4)],
        )
        for number in range(3)
    ]
    problem = router.Problem(
        cluster=router.Cluster(
            [router.Device(name, memory=None, computes=name in "abc") for name in devices], links
        ),
        source="home",
        sink="end",
        block_seconds={name: [rng.uniform(0.01, 0.1)] * 3 for name in "abc"},
        boundary_bytes=[rng.choice([1e4, 1e5]) for _ in range(4)],
        codecs=(router.RAW, *codecs),
    )
    holders = ["home", "a", "b", "c", "end"]
    transfers = tuple(
        router.Transfer(number, pair) for number, pair in enumerate(itertools.pairwise(holders))
    )
    stages = tuple(router.Stage(name, number, number + 1) for number, name in enumerate("abc"))
    return problem, router.Route(stages, transfers)


def value(problem: router.Problem, route: router.Route, objective: Objective) -> float:
    found = router.evaluate(problem, route)
    return found.latency if objective == "latency" else found.period


def every_choice(problem: router.Problem, route: router.Route, limit: float) -> list[router.Route]:
    names = [codec.name for codec in problem.codecs]
    routes = []
    for choice in itertools.product(names, repeat=len(route.transfers)):
        transfers = tuple(replace(t, codec=c) for t, c in zip(route.transfers, choice, strict=True))
        routes.append(replace(route, transfers=transfers))
    return [each for each in routes if router.evaluate(problem, each).error <= limit]


@pytest.mark.parametrize("objective", ["latency", "throughput"])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32), limit=st.sampled_from([0.0, 0.3, 0.8, 1.5, 9.0]))
def test_the_budget_is_kept_and_the_choice_is_near_the_best(
    objective: Objective, seed: int, limit: float
) -> None:
    problem, route = an_instance(seed)
    chosen = choose_codecs(problem, route, router.Objective(objective, max_error=limit))
    assert chosen is not None
    assert router.evaluate(problem, chosen).error <= limit
    assert [t.path for t in chosen.transfers] == [t.path for t in route.transfers]
    best = min(value(problem, each, objective) for each in every_choice(problem, route, limit))
    assert best <= value(problem, chosen, objective) <= 1.5 * best
    if limit in (0.0, 9.0):
        assert value(problem, chosen, objective) == pytest.approx(best)


def test_too_many_errors_are_given_up_first_where_they_buy_least() -> None:
    problem, route = an_instance(3)
    loud = replace(route, transfers=tuple(replace(t, codec="c1") for t in route.transfers))
    everything = router.evaluate(problem, loud).error
    chosen = choose_codecs(problem, loud, router.Objective(max_error=everything / 2))
    assert chosen is not None
    assert router.evaluate(problem, chosen).error <= everything / 2


def test_none_where_nothing_is_accurate_enough() -> None:
    problem, route = an_instance(1)
    only = replace(problem, codecs=problem.codecs[1:])
    coded = replace(route, transfers=tuple(replace(t, codec="c0") for t in route.transfers))
    assert choose_codecs(only, coded, router.Objective(max_error=0.01)) is None
    assert choose_codecs(only, coded, router.Objective()) is not None
