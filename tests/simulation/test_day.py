"""A short share of the simulated day, and proof that it would find a table that grows."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from benchmarks.simulation import day
from benchmarks.simulation.seams import simulated

HOURS = 1.0


def test_an_hour_keeps_every_promise_and_no_table_grows() -> None:
    with simulated():
        played = day.Day(7, HOURS)
        ended = played.play()
    assert not ended.world.problems
    assert ended.asked > HOURS * day.REQUESTS_PER_HOUR
    assert ended.results > ended.asked / 2
    assert len(played.looks) == day.LOOKS
    last = played.looks[-1]
    assert last["dispatcher._core.answers._spent"] == day.LIMITS.spent  # what is bounded is full
    assert any(path.startswith("agent plane") for path in last)
    assert any(path.startswith("client") for path in last)


def test_a_table_that_grows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(day, "LIMITS", replace(day.LIMITS, spent=1 << 20))
    with simulated():
        ended = day.Day(7, 1.0).play()
    assert any("_spent holds" in problem for problem in ended.world.problems)


def test_what_is_held_for_a_moment_is_no_growth() -> None:
    looks = [
        Counter(
            {
                "steady": 5,
                "moment": 100 * (number == 45),
                "grows": number,
                "end.lender._free": 1024 * (1 + number // 30),
            }
        )
        for number in range(48)
    ]
    assert day.grown(looks) == ["grows holds 42, at most 23 before"]
