"""A bell ends one wait, and no exception of a signal's handler leaves it so that nobody can ring it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from defer.bell import Bell


class Interrupted(BaseException):
    pass


def test_a_ring_ends_the_next_wait_and_no_other() -> None:
    bell = Bell()
    assert not bell.wait(0)
    bell.ring()
    bell.ring()
    assert bell.wait(0)
    assert not bell.wait(0.001)


def test_a_ring_ends_the_wait_under_way() -> None:
    bell, heard = Bell(), []
    waiting = threading.Thread(target=lambda: heard.append(bell.wait(10)))
    waiting.start()
    bell.ring()
    waiting.join()
    assert heard == [True]


@pytest.fixture
def alarms() -> Iterator[None]:
    def interrupt(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("alarms")
def test_interrupted_anywhere_it_can_be_rung_and_heard_by_others() -> None:
    bell, stop = Bell(), threading.Event()

    def other() -> None:
        while not stop.is_set():
            bell.wait(0.001)

    listening = threading.Thread(target=other)
    listening.start()
    interrupted = 0
    for number in range(2000):
        try:
            signal.setitimer(signal.ITIMER_REAL, 1e-5 + 1e-8 * number)
            for _ in range(200):
                bell.ring()
            signal.setitimer(signal.ITIMER_REAL, 0)
        except Interrupted:
            interrupted += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    stop.set()
    listening.join(10)
    assert not listening.is_alive()
    assert interrupted
    bell.ring()
    assert bell.wait(0)
