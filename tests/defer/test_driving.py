"""Load on whatever server: how many at once, on which schedule, and what of it is reported."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from defer.driving import drive
from defer.errors import DeferError, NotReady, Overloaded


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as running:
        yield running


def test_no_more_than_the_window_is_under_way(pool: ThreadPoolExecutor) -> None:
    lock, now, most = threading.Lock(), 0, 0

    def work() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.002)
        with lock:
            now -= 1

    driven = drive(lambda: pool.submit(work), count=30, window=3)
    assert most == 3
    assert (len(driven.latencies), sum(driven.failed.values())) == (30, 0)
    assert driven.rate == pytest.approx(30 / driven.seconds)
    assert driven.quantile(0.0) >= 0.002
    assert driven.quantile(0.5) <= driven.quantile(0.99) <= driven.quantile(1.0)


def test_on_a_schedule_what_waits_to_be_sent_counts(pool: ThreadPoolExecutor) -> None:
    """One at a time and 5 ms each, asked for 1000 a second: the last one is due long before it is sent."""
    driven = drive(lambda: pool.submit(time.sleep, 0.005), count=20, window=1, rate=1000)
    assert driven.latencies[0] >= 0.005
    assert driven.latencies[-1] >= 0.005 * 20 - 0.020
    assert sum(driven.latencies) > 20 * 0.02
    slow = drive(lambda: pool.submit(lambda: None), count=5, window=4, rate=100)
    assert slow.seconds >= 4 / 100


def test_failures_are_counted_by_code() -> None:
    answers = iter([None, Overloaded("full"), None, NotReady("no")])

    def submit() -> Future[None]:
        answer = next(answers)
        if isinstance(answer, NotReady):
            raise answer
        future: Future[None] = Future()
        if answer is None:
            future.set_result(None)
        else:
            future.set_exception(answer)
        return future

    driven = drive(submit, count=4, window=2)
    assert len(driven.latencies) == 2
    assert driven.failed == {"overloaded": 1, "not-ready": 1}


def test_where_the_first_fails_no_more_are_sent() -> None:
    sent = 0

    def submit() -> Future[None]:
        nonlocal sent
        sent += 1
        future: Future[None] = Future()
        future.set_exception(DeferError("no"))
        return future

    with pytest.raises(DeferError, match="no"):
        drive(submit, count=100, window=4)
    assert sent == 1


def test_nothing_answered_has_no_latency() -> None:
    assert str(drive(lambda: Future(), count=0, window=1).quantile(0.5)) == "nan"
