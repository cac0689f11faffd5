"""The order in which things wait: by priority, in order of arrival, and nobody for ever."""

from __future__ import annotations

import threading
from queue import Empty

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.line import PASSED, Line, Waiting


def taken(line: Line[str]) -> str:
    first = line.first()
    assert line.take() == first
    return first


def test_by_priority_and_then_by_arrival() -> None:
    line: Line[str] = Line()
    for entry, priority in (("a", 10), ("b", 10), ("urgent", 1), ("late", 20), ("also urgent", 1)):
        line.put(entry, priority)
    assert list(line) == ["a", "b", "urgent", "late", "also urgent"]
    assert [taken(line) for _ in range(len(line))] == ["urgent", "also urgent", "a", "b", "late"]
    assert not line


def test_nothing_passes_a_call() -> None:
    line: Line[str] = Line()
    line.put("a", 10)
    line.put("call", None)
    line.put("b", 10)
    line.put("urgent", 1)
    line.put("another call", None)
    line.put("c", 1)
    assert [taken(line) for _ in range(len(line))] == ["a", "call", "urgent", "b", "another call", "c"]


def test_what_came_first_is_not_passed_for_ever() -> None:
    line: Line[str] = Line()
    line.put("patient", 10)
    order = []
    for _ in range(3 * PASSED):
        line.put("urgent", 1)
        line.put("urgent", 1)
        order.append(taken(line))
    assert order.index("patient") == PASSED


Step = st.one_of(st.integers(1, 4), st.just(-1))


@given(st.lists(Step, max_size=120))
def test_everything_goes_once_and_within_its_bound(steps: list[int]) -> None:
    """A number puts an entry of that priority, −1 takes one; at the end all are taken."""
    line: Line[int] = Line()
    waiting: dict[int, tuple[int, int]] = {}  # priority; takes until it must have gone
    takes = count = 0
    for step in [*steps, *[-1] * len(steps)]:
        if step > 0:
            count += 1
            waiting[count] = step, takes + (len(waiting) + 1) * (PASSED + 1)
            line.put(count, step)
        elif waiting:
            takes += 1
            number = line.first()
            assert line.take() == number
            priority, latest = waiting.pop(number)
            assert takes <= latest
            best = min((each[0] for each in waiting.values()), default=priority)
            # Either none that waits comes before it, or it is the one that came first of all.
            assert priority <= best or number < min(waiting)
            assert not any(other < number and each[0] <= priority for other, each in waiting.items())
    assert not waiting
    assert not line


def test_between_threads() -> None:
    waiting: Waiting[int] = Waiting()
    assert waiting.empty()
    with pytest.raises(Empty):
        waiting.get_nowait()
    with pytest.raises(Empty):
        waiting.get(timeout=0.001)
    thread = threading.Thread(target=lambda: [waiting.put(number, 10) for number in range(1000)])
    thread.start()
    assert [waiting.get(timeout=10) for _ in range(1000)] == list(range(1000))
    thread.join()
    waiting.put(1, 10)
    waiting.put(2, 1)
    assert (waiting.get(), waiting.get_nowait()) == (2, 1)
