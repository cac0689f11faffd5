"""The thread that owns sockets: no command is left waiting, and nothing is left open."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import pytest

from defer.socket_loop import SocketLoop

pytestmark = pytest.mark.integration


def make(**more: Callable[..., object]) -> SocketLoop:
    given: dict[str, Callable[..., object]] = {
        "opened": lambda: None,
        "next_wake": lambda: math.inf,
        "turned": lambda: None,
        "closed": lambda: None,
    }
    return SocketLoop("loop-under-test", **(given | more))  # type: ignore[arg-type]


def test_commands_of_many_threads_all_run_though_nothing_else_wakes_the_loop() -> None:
    loop = make()
    loop.start()
    late: list[int] = []

    def ask(number: int) -> None:
        for _ in range(400):
            future: Future[None] = Future()
            loop.enqueue(lambda future=future: future.set_result(None))  # type: ignore[misc]
            try:
                future.result(5)
            except TimeoutError:
                late.append(number)
                return

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    loop.close()
    assert not late


def test_a_byte_that_comes_while_the_thread_wakes_is_not_lost() -> None:
    """A command put in between the two steps of waking must still run, and so must the one after it."""
    loop = make()
    loop.start()
    ran: list[str] = []
    real = loop._wake_read

    class Between:
        """The socket pair's reading end, with another thread acting just before and just after a read."""

        def recv(self, size: int) -> bytes:
            loop.enqueue(lambda: ran.append("before"))
            data = real.recv(size)
            loop.enqueue(lambda: ran.append("after"))
            return data

        def close(self) -> None:
            real.close()

    loop._wake_read = Between()  # type: ignore[assignment]
    loop.enqueue(lambda: ran.append("first"))
    wait_for(lambda: "after" in ran)
    loop._wake_read = real
    loop.enqueue(lambda: ran.append("last"))
    wait_for(lambda: "last" in ran)
    loop.close()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_an_error_while_opening_is_the_starters() -> None:
    def fail() -> None:
        raise OSError("no")

    loop = make(opened=fail)
    with pytest.raises(OSError, match="no"):
        loop.start()
    assert not loop.running


def test_a_crash_is_told(caplog: pytest.LogCaptureFixture) -> None:
    told: list[BaseException] = []

    def fail() -> None:
        raise ValueError("broken")

    loop = make(on_crash=told.append)
    loop.start()
    loop.enqueue(fail)
    wait_for(lambda: bool(told))
    assert "broken" in str(told[0])
    loop.close()
    assert "the thread loop-under-test failed" in caplog.text


def test_what_was_put_before_a_crash_still_runs_and_nothing_is_taken_after_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ran: list[str] = []
    both_wait = threading.Event()

    def fail() -> None:
        both_wait.wait(5)
        raise ValueError("broken")

    def fail_again() -> None:
        raise KeyError("broken too")

    loop = make(closed=lambda: ran.append("closed"))
    loop.start()
    assert loop.enqueue(fail)
    assert loop.enqueue(fail_again)
    assert loop.enqueue(lambda: ran.append("left"))
    both_wait.set()
    wait_for(lambda: not loop.running and "closed" in ran)
    assert ran == ["left", "closed"]
    assert not loop.enqueue(lambda: ran.append("late"))
    loop.close()
    assert ran == ["left", "closed"]
    assert "a command of the thread loop-under-test failed at its end" in caplog.text


def test_a_command_that_comes_as_the_thread_ends_runs_or_is_refused() -> None:
    for _ in range(50):
        loop = make()
        loop.start()
        taken, ran, go = 0, [], threading.Event()

        def close(loop: SocketLoop = loop, go: threading.Event = go) -> None:
            go.wait(5)
            loop.close()

        closer = threading.Thread(target=close)
        closer.start()
        go.set()
        while loop.enqueue(lambda ran=ran: ran.append(1)):  # type: ignore[misc]
            taken += 1
        closer.join()
        assert len(ran) == taken


def test_it_wakes_at_its_time() -> None:
    turns: list[float] = []
    at = time.monotonic() + 0.05
    loop = make(
        next_wake=lambda: at if not turns or turns[-1] < at else math.inf,
        turned=lambda: turns.append(time.monotonic()),
    )
    loop.start()
    wait_for(lambda: bool(turns) and turns[-1] >= at)
    loop.close()


def test_closing_runs_what_waits() -> None:
    ran: list[int] = []
    loop = make(closed=lambda: ran.append(-1))
    loop.start()
    for number in range(5):
        loop.enqueue(lambda number=number: ran.append(number))  # type: ignore[misc]
    loop.close()
    loop.close()
    assert ran == [0, 1, 2, 3, 4, -1]
