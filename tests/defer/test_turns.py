"""One after the other, but nobody for long behind one that takes long."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from defer.turns import Turns


def test_the_next_begins_when_the_one_before_has_ended() -> None:
    turns, within, most = Turns(30.0), 0, 0

    def work(_: int) -> None:
        nonlocal within, most
        with turns.turn():
            within += 1
            most = max(most, within)
            within -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(64)))
    assert most == 1


def test_nobody_waits_longer_than_a_while_for_one_that_has_begun() -> None:
    turns, all_in = Turns(0.01), threading.Barrier(4)

    def work(_: int) -> None:
        with turns.turn():
            all_in.wait(10)  # none ends before all have begun

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_one_that_fails_holds_up_nobody() -> None:
    turns = Turns(30.0)
    with pytest.raises(ZeroDivisionError), turns.turn():
        1 / 0  # noqa: B018
    with turns.turn():
        pass
