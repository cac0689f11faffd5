"""When a canary is due, and what it says of a model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from defer.dispatcher.pulse import LEAST_S, PATIENCE, Pulse, patience


def test_a_route_that_answers_gets_none_and_a_silent_one_gets_one() -> None:
    pulse = Pulse(10.0)
    assert pulse.due({1: 5, 2: 0}, 0.0) == []
    assert pulse.due({1: 6, 2: 0}, 9.0) == []
    assert pulse.due({1: 7, 2: 0}, 10.0) == [2]
    assert pulse.due({1: 8, 2: 0}, 19.0) == []  # it is under way
    assert not pulse.passed(2, 19.5)
    assert pulse.due({1: 9, 2: 1}, 29.0) == []
    assert pulse.failing([1, 2]) == ""


def test_the_first_requests_after_a_pause_are_waited_for_once() -> None:
    pulse = Pulse(10.0)
    pulse.due({1: 5}, 0.0)
    assert pulse.due({1: 5}, 9.9, busy=[1]) == []
    assert pulse.due({1: 5}, 12.0) == []  # they failed, which proves nothing, and more come
    assert pulse.due({1: 5}, 14.0, busy=[1]) == []
    assert pulse.due({1: 5}, 19.9, busy=[1]) == [1]
    pulse.passed(1, 20.5)
    assert pulse.due({1: 6}, 21.0, busy=[1]) == []
    assert pulse.due({1: 7}, 29.0) == []
    assert pulse.due({1: 7}, 39.0, busy=[1]) == []
    assert pulse.due({1: 7}, 49.0, busy=[1]) == [1]


def test_what_fails_is_tried_again_and_a_client_that_is_answered_proves_it_too() -> None:
    pulse = Pulse(10.0)
    pulse.due({1: 0}, 0.0)
    assert pulse.due({1: 0}, 10.0) == [1]
    assert pulse.failed(1, 15.0, "deadline-exceeded", "late")
    assert pulse.failing([1]) == "late"
    assert pulse.due({1: 0}, 25.0) == [1]
    assert not pulse.failed(1, 26.0, "run-failed", "broken")
    assert pulse.failing([1]) == "broken"
    assert pulse.due({1: 1}, 27.0) == []
    assert pulse.failing([1]) == ""
    assert pulse.due({1: 1}, 37.0) == [1]
    pulse.failed(1, 38.0, "run-failed", "broken")
    assert pulse.due({1: 1}, 48.0) == [1]
    assert pulse.passed(1, 48.1)
    assert pulse.failing([1]) == ""


def test_a_model_fails_where_all_its_routes_do() -> None:
    pulse = Pulse(1.0)
    pulse.due({1: 0, 2: 0}, 0.0)
    assert pulse.due({1: 0, 2: 0}, 1.0) == [1, 2]
    pulse.failed(1, 1.1, "run-failed", "one")
    assert pulse.failing([1, 2]) == ""
    pulse.failed(2, 1.1, "overloaded", "two")
    assert pulse.failing([1, 2]) == ""  # it was not let in: that says nothing
    assert pulse.due({1: 0, 2: 0}, 2.1) == [1, 2]
    pulse.failed(2, 2.2, "run-failed", "two")
    assert pulse.failing([1, 2]) == "one"
    assert pulse.failing([]) == pulse.failing([7]) == ""


def test_a_route_that_is_gone_is_forgotten() -> None:
    pulse = Pulse(1.0)
    pulse.due({1: 0}, 0.0)
    assert pulse.due({1: 0}, 1.0) == [1]
    assert pulse.due({}, 1.5) == []
    assert not pulse.failed(1, 2.0, "run-failed", "gone")
    assert not pulse.passed(1, 2.0)


@given(st.lists(st.tuples(st.floats(0.0, 5.0), st.booleans(), st.booleans()), max_size=60))
def test_there_is_one_at_a_time_and_none_too_often(steps: list[tuple[float, bool, bool]]) -> None:
    pulse, now, count, sent, under_way = Pulse(3.0), 0.0, 0, [], False
    for gap, answers, ends in steps:
        now += gap
        count += answers
        due = pulse.due({1: count}, now)
        assert not (due and (under_way or answers))
        if due:
            assert not sent or now >= sent[-1] + 3.0
            sent.append(now)
        under_way = under_way or bool(due)
        if ends and under_way:
            pulse.passed(1, now)
            under_way = False


def test_patience_follows_the_first_canary() -> None:
    assert patience(0.0) == LEAST_S
    assert patience(60.0) == 60 * PATIENCE
