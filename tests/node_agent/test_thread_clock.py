"""A thread that works, or would, gets on; one that waits does not."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable

import pytest

from node_agent.thread_clock import ThreadClock


def clocked(turn: Callable[[], object]) -> tuple[ThreadClock, Callable[[], None]]:
    """The clock of a thread that does `turn` again and again, and what ends it."""
    stop, made = threading.Event(), threading.Event()
    clocks: list[ThreadClock] = []

    def run() -> None:
        clocks.append(ThreadClock())
        made.set()
        while not stop.is_set():
            turn()

    thread = threading.Thread(target=run)
    thread.start()
    assert made.wait(10)

    def end() -> None:
        stop.set()
        thread.join()

    return clocks[0], end


def test_work_and_wanting_to_work_are_seen() -> None:
    clock, end = clocked(lambda: hashlib.sha256(bytes(1 << 20)))
    try:
        before = clock.seconds()
        for _ in range(200):
            if clock.seconds() > before + 0.02:
                break
            threading.Event().wait(0.05)
        else:
            pytest.fail("a thread that works does not get on")
    finally:
        end()


def test_waiting_is_seen() -> None:
    never = threading.Event()
    clock, end = clocked(lambda: never.wait(0.5))
    try:
        clock.seconds()
        spent = []
        for _ in range(10):
            before = clock.seconds()
            threading.Event().wait(0.1)
            spent.append(clock.seconds() - before)
        assert sorted(spent)[5] < 0.005
    finally:
        end()


def test_a_thread_that_has_ended_tells_nothing_and_harms_nobody() -> None:
    clock, end = clocked(lambda: threading.Event().wait(0.01))
    end()
    assert clock.seconds() >= 0.0
