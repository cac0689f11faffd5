"""Work in the background has a lower priority, and what an engine starts in it has the usual one."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from node_agent import background
from node_agent.background import NICENESS, in_background
from node_agent.jobs import Jobs

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="threads have a niceness of their own on Linux"
)


def mine() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.fixture
def usual() -> int:
    return min(mine(), 19 - NICENESS)


def test_work_in_the_background_runs_at_a_lower_priority_and_the_caller_keeps_its_own(usual: int) -> None:
    seen: list[int] = []
    in_background(lambda: seen.append(mine()), threads=1)
    assert seen == [usual + NICENESS]
    assert mine() == usual


def test_threads_that_it_starts_get_the_usual_priority(usual: int) -> None:
    if not background._may_be_lowered():
        pytest.skip("this process may not lower a niceness again: needs root or RLIMIT_NICE")
    over, seen = threading.Event(), []

    def engine() -> None:
        over.wait(10)
        seen.append(mine())

    started = threading.Thread(target=engine)
    in_background(started.start, threads=4)
    over.set()
    started.join()
    assert seen == [usual]


def test_where_its_threads_could_not_get_that_it_is_not_lowered(
    usual: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "_may_be_lowered", lambda: False)
    seen: list[int] = []
    in_background(lambda: seen.append(mine()), threads=4)
    assert seen == [usual]


def test_where_priorities_may_not_be_changed_the_work_is_done_all_the_same(
    usual: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", refuse)
    seen: list[int] = []
    in_background(lambda: seen.append(mine()), threads=1)
    assert seen == [usual]


def test_where_the_system_tells_of_no_threads_the_work_is_done_all_the_same(
    usual: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(background, "Path", lambda _: tmp_path / "absent")
    seen: list[int] = []
    in_background(lambda: seen.append(mine()), threads=1)
    assert seen == [usual]


def test_a_thread_for_jobs_may_be_one_that_yields(usual: int) -> None:
    seen: list[int] = []
    for jobs, expected in ((Jobs("usual"), usual), (Jobs("yielding", background=True), usual + NICENESS)):
        jobs.start()
        jobs.submit(lambda: seen.append(mine()))
        jobs.stop()
        assert jobs.join(10)
        assert seen.pop() == expected
