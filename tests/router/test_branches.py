"""Pipelines of convex stages against every one of them."""

from __future__ import annotations

import functools
import itertools
import math
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router import DeviceKind, InvalidProblem, NoRoute, OpGraph, Tensor, split_graph


def instance(seed: int) -> tuple[OpGraph, list[DeviceKind]]:
    rng = Random(seed)
    n = rng.randint(1, 6)
    tensors = []
    for producer in range(n - 1):
        for _ in range(rng.randint(0, 2)):
            readers = [v for v in range(producer + 1, n) if rng.random() < 0.4]
            if readers:
                tensors.append(Tensor(producer, tuple(readers), float(rng.choice([0, 1, 2, 5]))))
    together = [rng.sample(range(n), 2)] if n > 2 and rng.random() < 0.3 else []
    kinds = [
        DeviceKind(
            f"kind{k}",
            rng.randint(1, 2),
            [math.inf if rng.random() < 0.05 else float(rng.choice([0, 0, 1, 3, 7])) for _ in range(n)],
            memory=rng.choice([None, 4, 8]),
            transfer=rng.choice([0.0, 1.0, 2.0]),
        )
        for k in range(rng.randint(1, 2))
    ]
    return OpGraph([float(rng.randint(0, 3)) for _ in range(n)], tensors, together), kinds


def brute(graph: OpGraph, kinds: list[DeviceKind]) -> float:
    n = len(graph.size)
    ideals = [
        frozenset(s)
        for r in range(n + 1)
        for s in itertools.combinations(range(n), r)
        if all(t.producer in s for t in graph.tensors if set(t.consumers) & set(s))
    ]

    def load(stage: frozenset[int], kind: DeviceKind) -> float:
        if kind.memory is not None and sum(graph.size[op] for op in stage) > kind.memory:
            return math.inf
        if any(0 < len(stage & set(group)) < len(set(group)) for group in graph.together):
            return math.inf
        moved = 0.0
        for t in graph.tensors:
            readers = set(t.consumers)
            if (t.producer in stage and readers - stage) or (t.producer not in stage and readers & stage):
                moved += t.seconds
        return sum(kind.seconds[op] for op in stage) + kind.transfer * moved

    @functools.cache
    def best(done: frozenset[int], left: tuple[int, ...]) -> float:
        if len(done) == n:
            return 0.0
        value = math.inf
        for then in ideals:
            if done < then:
                for k, kind in enumerate(kinds):
                    if left[k]:
                        rest = (*left[:k], left[k] - 1, *left[k + 1 :])
                        value = min(value, max(load(then - done, kind), best(then, rest)))
        return value

    return best(frozenset(), tuple(kind.count for kind in kinds))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 2**40))
def test_equal_to_every_pipeline(seed: int) -> None:
    graph, kinds = instance(seed)
    expected = brute(graph, kinds)
    if expected == math.inf:
        with pytest.raises(NoRoute):
            split_graph(graph, kinds)
        return
    plan = split_graph(graph, kinds)
    assert plan.optimal
    assert plan.value == pytest.approx(expected, abs=1e-9)
    assert sorted(plan.order) == list(range(len(graph.size)))
    place = {op: at for at, stage in enumerate(plan.stages) for op in stage.ops}
    for tensor in graph.tensors:
        assert all(place[tensor.producer] <= place[reader] for reader in tensor.consumers)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 2**40))
def test_a_choice_of_ideals_gives_a_plan_and_a_true_bound(seed: int) -> None:
    graph, kinds = instance(seed)
    expected = brute(graph, kinds)
    if expected == math.inf:
        return
    try:
        plan = split_graph(graph, kinds, ideals=1)
    except NoRoute:
        return
    assert plan.bound <= expected + 1e-9 <= plan.value + 2e-9
    assert plan.optimal == (plan.bound == plan.value)


def test_beats_every_single_order() -> None:
    # Two branches of two equal ops. Along one order some cut crosses both; two devices take a branch each.
    graph = OpGraph([1.0] * 4, [Tensor(0, (1,), 9.0), Tensor(2, (3,), 9.0)])
    plan = split_graph(graph, [DeviceKind("box", 2, [1.0] * 4)])
    assert plan.value == 2.0
    assert {stage.ops for stage in plan.stages} == {(0, 1), (2, 3)}


def test_cycles_are_refused() -> None:
    with pytest.raises(InvalidProblem, match="cycle"):
        split_graph(
            OpGraph([0.0] * 2, [Tensor(0, (1,), 1.0), Tensor(1, (0,), 1.0)]),
            [DeviceKind("box", 1, [1.0] * 2)],
        )
