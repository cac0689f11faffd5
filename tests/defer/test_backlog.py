"""The dispatcher's virtual queues: near the truth whether predictions hold or not; the choice is the router's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from defer.dispatcher.backlog import Backlog
from router.online import RouteTable, drift_plus_penalty

SECONDS = st.floats(0.001, 1.0)


def test_work_drains_as_time_passes() -> None:
    backlog = Backlog()
    backlog.open(1, 2.0, (("a", 0.5), ("b", 1.0)))
    backlog.accepted(1, 1, 10.0)
    backlog.accepted(1, 2, 10.0)
    assert backlog.waits(10.0) == {"a": 1.0, "b": 2.0}
    assert backlog.waits(10.5) == {"a": 0.5, "b": 1.5}
    assert backlog.waits(11.5)["b"] == 0.5


def test_an_answer_that_comes_early_frees_what_it_was_thought_to_keep_busy() -> None:
    backlog = Backlog()
    backlog.open(1, 1.0, (("a", 1.0),))
    for number in range(3):
        backlog.accepted(1, number, 0.0)
    backlog.ended(1, 0)
    backlog.ended(1, 1)
    assert backlog.waits(0.1)["a"] == 1.0
    backlog.ended(1, 2)
    assert backlog.waits(0.2).get("a", 0.0) == 0.0


def test_a_device_that_is_slower_than_predicted_is_not_taken_for_idle() -> None:
    backlog = Backlog()
    backlog.open(1, 0.1, (("a", 0.1),))
    for number in range(5):
        backlog.accepted(1, number, 0.0)
    assert backlog.waits(60.0)["a"] == pytest.approx(0.5)


def test_routes_share_the_queues_of_what_they_share() -> None:
    backlog = Backlog()
    backlog.open(1, 0.1, (("a", 0.1),))
    backlog.open(2, 0.3, (("a", 0.1), ("b", 0.2)))
    backlog.accepted(2, 1, 0.0)
    assert backlog.waits(0.0) == pytest.approx({"a": 0.1, "b": 0.2})
    backlog.close(2)
    assert backlog.waits(0.0).get("a", 0.0) == 0.0


@given(
    st.lists(st.tuples(st.sampled_from("ap"), st.integers(0, 2), SECONDS), max_size=60),
    st.lists(st.tuples(SECONDS, SECONDS, SECONDS), min_size=3, max_size=3),
)
def test_no_queue_is_negative_or_above_what_is_unanswered(
    steps: list[tuple[str, int, float]], work: list[tuple[float, float, float]]
) -> None:
    backlog = Backlog()
    for epoch, row in enumerate(work):
        backlog.open(epoch, sum(row), tuple(zip("abc", row, strict=True)))
    now, held = 0.0, [list[int]() for _ in work]
    for number, (what, epoch, seconds) in enumerate(steps):
        now += seconds
        if what == "a":
            backlog.accepted(epoch, number, now)
            held[epoch].append(number)
        elif held[epoch]:
            backlog.ended(epoch, held[epoch].pop(0))
        waits = backlog.waits(now)
        for at, name in enumerate("abc"):
            most = sum(len(each) * row[at] for each, row in zip(held, work, strict=True))
            assert 0 <= waits.get(name, 0.0) <= most + 1e-9


@given(
    st.lists(st.tuples(SECONDS, SECONDS, SECONDS, SECONDS), min_size=2, max_size=5),
    st.lists(st.integers(0, 4), max_size=12),
    st.floats(0, 1),
)
def test_the_choice_is_that_of_the_routers_policy(
    rows: list[tuple[float, float, float, float]], taken: list[int], v: float
) -> None:
    backlog = Backlog()
    for epoch, (latency, *work) in enumerate(rows):
        backlog.open(epoch, latency, tuple(zip("abc", work, strict=True)))
    for number, epoch in enumerate(taken):
        backlog.accepted(epoch % len(rows), number, 0.0)
    waits = backlog.waits(0.0)
    scores = [backlog.score(epoch, waits, v) for epoch in range(len(rows))]
    work = np.array([row[1:] for row in rows])
    table = RouteTable((), (), np.array([row[0] for row in rows]), work, np.ones_like(work))
    queues = np.array([waits.get(name, 0.0) for name in "abc"])
    chosen = drift_plus_penalty(v)(table, queues, queues)
    assert scores[chosen] == pytest.approx(min(scores))
