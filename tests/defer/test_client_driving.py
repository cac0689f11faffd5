"""A thread that waits for its only request drives the connection itself, and whatever comes between spoils nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from benchmarks.ports import free_ports
from defer import errors
from defer.client import Client
from defer.client_session import Session
from defer.socket_loop import SocketLoop

pytestmark = pytest.mark.integration


def x(value: float = 1) -> np.ndarray:
    return np.full((1, 4), value, np.float32)


def doubled(client: Client, value: float, **more: Any) -> bool:
    return float(client.infer(x(value), **more)["y"][0, 0]) == 2 * value


def session_of(client: Client) -> Session:
    session = client._requests._session
    assert session is not None
    return session


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.001)


@contextmanager
def driving(server: Any) -> Iterator[Client]:
    """A client whose next request is driven by its caller."""
    with Client(server.address, timeout=20) as client:
        for value in range(5):
            assert doubled(client, value)
        until(lambda: session_of(client)._loop._lead is None)
        yield client


@contextmanager
def alarms(handler: Callable[..., Any]) -> Iterator[Callable[[float], None]]:
    """Calls `handler` in this thread after so many seconds, wherever it is."""
    before = signal.signal(signal.SIGALRM, handler)
    try:
        yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)  # type: ignore[func-returns-value]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_caller_that_is_alone_drives_the_connection(server: Any) -> None:
    with driving(server) as client:
        server.stages[0].hold = True
        answers: list[bool] = []
        caller = threading.Thread(target=lambda: answers.append(doubled(client, 7)))
        caller.start()
        until(lambda: len(server.stages[0].seen) == 6)
        lead = session_of(client)._loop._lead
        assert lead is not None
        assert lead.thread == caller.ident
        server.stages[0].hold = False
        caller.join(10)
        assert answers == [True]


def test_others_get_their_turn_while_somebody_drives(server: Any) -> None:
    with driving(server) as client:
        server.stages[0].hold = True
        answers: list[bool] = []
        caller = threading.Thread(target=lambda: answers.append(doubled(client, 7)))
        caller.start()
        until(lambda: len(server.stages[0].seen) == 6)
        future = client.submit(x(8))
        until(lambda: len(server.stages[0].seen) == 7)
        server.stages[0].hold = False
        assert float(future.result(10)["y"][0, 0]) == 16
        caller.join(10)
        assert answers == [True]


def test_threads_that_infer_and_submit_at_once(server: Any) -> None:
    wrong: list[object] = []
    with driving(server) as client:

        def run(value: int) -> None:
            for turn in range(60):
                if turn % 20 == 10:
                    time.sleep(0.005 * value)  # now one is alone, now several are there
                if value % 3 == 2:
                    got = float(client.submit(x(value)).result(10)["y"][0, 0]) == 2 * value
                else:
                    got = doubled(client, value)
                if not got:
                    wrong.append(value)

        threads = [threading.Thread(target=run, args=(value,)) for value in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in threads)
        assert doubled(client, 9)
    assert not wrong


def test_closing_ends_a_request_whose_caller_drives(server: Any) -> None:
    with driving(server) as client:
        server.stages[0].hold = True
        caught: list[BaseException] = []

        def call() -> None:
            try:
                client.infer(x())
            except errors.Cancelled as error:
                caught.append(error)

        caller = threading.Thread(target=call)
        caller.start()
        until(lambda: len(server.stages[0].seen) == 6)
        client.close()
        caller.join(10)
        assert caught


def test_a_deadline_passes_while_the_caller_drives(server: Any) -> None:
    with driving(server) as client:
        server.stages[0].hold = True
        with pytest.raises(errors.DeadlineExceeded, match="did not come back"):
            client.infer(x(), timeout=0.1)
        server.stages[0].hold = False
        assert doubled(client, 3)


def test_a_dispatcher_that_is_restarted_answers_who_drives(make_server: Callable[..., Any]) -> None:
    port = free_ports(2)
    first = make_server(None, port, port + 1)
    first.serve(first.stage())
    with driving(first) as client:
        first.stages[0].hold = True
        answers: list[bool] = []
        caller = threading.Thread(target=lambda: answers.append(doubled(client, 7)))
        caller.start()
        until(lambda: len(first.stages[0].seen) == 6)
        first.stop()
        first.stages.clear()
        make_server(None, port, port + 1, serving=True)
        caller.join(20)
        assert answers == [True]
        assert all(doubled(client, value) for value in range(5))


def test_a_connection_that_breaks_while_nobody_drives_comes_back(make_server: Callable[..., Any]) -> None:
    port = free_ports(2)
    first = make_server(None, port, port + 1)
    first.serve(first.stage())
    with driving(first) as client:
        first.stop()
        first.stages.clear()
        make_server(None, port, port + 1, serving=True)
        assert all(doubled(client, value) for value in range(5))


def values(results: Any) -> list[float]:
    return [float(outputs["y"][0, 0]) for outputs in results]


@pytest.mark.parametrize("ordered", [False, True])
def test_a_map_drives_the_connection_itself(server: Any, ordered: bool) -> None:
    with driving(server) as client:
        server.stages[0].hold = True
        got: list[float] = []
        caller = threading.Thread(
            target=lambda: got.extend(
                values(client.map([x(n) for n in range(20)], window=8, ordered=ordered))
            )
        )
        caller.start()
        until(lambda: len(server.stages[0].seen) == 5 + 8)
        until(lambda: (lead := session_of(client)._loop._lead) is not None and lead.thread == caller.ident)
        server.stages[0].hold = False
        caller.join(10)
        assert sorted(got) == [2 * n for n in range(20)]


def test_the_connection_is_never_left_alone_while_a_map_waits(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[int] = []
    rest = SocketLoop._rest
    with Client(server.address, timeout=20) as client:
        assert doubled(client, 1)

        def watched(loop: SocketLoop) -> None:
            left.append(len(session_of(client).futures))
            rest(loop)

        monkeypatch.setattr(SocketLoop, "_rest", watched)
        for _ in range(3):
            values = client.map((x(value) for value in range(30)), window=4)
            assert [float(answer["y"][0, 0]) for answer in values] == [2.0 * value for value in range(30)]
        until(lambda: doubled(client, 1) and left)
    assert not any(left)


CHILD = """
import os, sys, warnings
import numpy as np
from defer.client import Client
warnings.simplefilter("ignore")  # later Pythons warn of a fork beside threads
x = np.ones((1, 4), np.float32)
with Client(sys.argv[1], timeout=20) as client:
    for _ in range(5):
        client.infer(x)
    if (child := os.fork()) == 0:
        os._exit(0 if client.infer(x, timeout=10)["y"][0, 0] == 2 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert client.infer(x)["y"][0, 0] == 2
"""


def test_a_child_of_a_fork_has_a_connection_of_its_own(server: Any) -> None:
    subprocess.run([sys.executable, "-c", CHILD, server.address], check=True, timeout=60)


def test_a_map_among_other_requests(server: Any) -> None:
    wrong: list[object] = []
    with driving(server) as client:

        def run(number: int) -> None:
            for turn in range(6):
                if number % 2:
                    got = values(client.map((x(n) for n in range(30)), window=5, ordered=number == 1))
                    if sorted(got) != [2.0 * n for n in range(30)]:
                        wrong.append(got)
                elif not all(doubled(client, turn * n) for n in range(10)):
                    wrong.append(turn)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in threads)
        for got in client.map((x(n) for n in range(10)), window=4):
            assert doubled(client, float(got["y"][0, 0]))  # in the middle of a map of the same thread
    assert not wrong


def test_a_map_whose_results_are_not_taken_is_looked_after(server: Any) -> None:
    with driving(server) as client:
        server.stages[0].hold = True
        results = client.map((x(n) for n in range(8)), window=4, timeout=0.5)
        with pytest.raises(errors.DeadlineExceeded):
            next(results)
        server.stages[0].hold = False
        results = client.map((x(n) for n in range(8)), window=4)
        assert values([next(results)]) == [0]
        time.sleep(0.6)  # longer than the thread leaves the connection alone
        until(lambda: session_of(client).futures == {})
        assert values(results) == [2 * n for n in range(1, 8)]
        results = client.map((x(n) for n in range(8)), window=4)
        next(results)
        results.close()
        assert doubled(client, 3)


def test_a_map_goes_on_after_a_restart_and_ends_with_its_client(make_server: Callable[..., Any]) -> None:
    port = free_ports(2)
    first = make_server(None, port, port + 1)
    first.serve(first.stage())
    with driving(first) as client:
        results = client.map((x(n) for n in range(40)), window=4)
        assert values([next(results)]) == [0]
        first.stop()
        first.stages.clear()
        second = make_server(None, port, port + 1, serving=True)
        assert values(next(results) for _ in range(30)) == [2 * n for n in range(1, 31)]
        second.stages[0].hold = True
        closer = threading.Timer(0.2, client.close)
        closer.start()
        with pytest.raises(errors.Cancelled):
            values(results)
        closer.join()


class Interrupted(BaseException):
    """Not one that anybody handles, as KeyboardInterrupt."""


def interrupt(*_: object) -> None:
    raise Interrupted


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # it may come inside a `__del__`
@pytest.mark.parametrize("most", [0.0004, 0.004])
def test_an_interrupt_anywhere_spoils_one_request_alone(server: Any, most: float) -> None:
    spoiled = 0
    pauses = np.random.default_rng(0).uniform(0.00002, most, 150)
    with driving(server) as client, alarms(interrupt) as after:
        for number, pause in enumerate(pauses):
            try:
                after(float(pause))
                for _ in range(3):
                    assert doubled(client, number)
                after(0)
            except Interrupted:
                spoiled += 1
                if number % 3 == 0:
                    assert doubled(client, -number)
        after(0)
        assert doubled(client, 1)
        assert float(client.submit(x(2)).result(10)["y"][0, 0]) == 4
    assert spoiled > 20


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_anywhere_in_a_map_ends_that_alone(server: Any) -> None:
    spoiled = 0
    with driving(server) as client, alarms(interrupt) as after:
        for number, pause in enumerate(np.random.default_rng(1).uniform(0.00002, 0.006, 100)):
            results = client.map((x(n) for n in range(12)), window=4, ordered=number % 2 == 0)
            try:
                after(float(pause))
                for _ in results:
                    pass
                after(0)
            except Interrupted:
                spoiled += 1
                results.close()
            if number % 3 == 0:
                assert doubled(client, number)
        after(0)
        assert sorted(values(client.map((x(n) for n in range(12)), window=4))) == [2 * n for n in range(12)]
    assert spoiled > 20


def test_an_interrupt_in_the_middle_of_a_message_opens_a_new_connection(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with driving(server) as client:
        session = session_of(client)
        socket = session._line.socket
        real = session._feed

        def cut(event: Any) -> None:
            import zmq

            socket.send(b"half of a message", zmq.SNDMORE)
            monkeypatch.setattr(session, "_feed", real)
            raise Interrupted

        monkeypatch.setattr(session, "_feed", cut)
        with pytest.raises(Interrupted):
            client.infer(x())
        assert doubled(client, 4)
        assert session._line.socket is not socket


def test_a_signals_handler_cannot_wait_in_the_middle_of_a_request(server: Any) -> None:
    caught: list[BaseException] = []
    with driving(server) as client:
        server.stages[0].hold = True

        def handle(*_: object) -> None:
            try:
                client.infer(x())
            except errors.UsageError as error:
                caught.append(error)
            server.stages[0].hold = False

        with alarms(handle) as after:
            after(0.1)
            assert doubled(client, 5)
        assert "in the middle of another request" in str(caught[0])


def test_a_signals_handler_may_close_the_client(server: Any) -> None:
    with driving(server) as client:
        server.stages[0].hold = True
        thread = session_of(client)._loop._thread
        assert thread is not None
        with alarms(lambda *_: client.close()) as after:
            after(0.1)
            with pytest.raises(errors.Cancelled):
                client.infer(x())
        thread.join(10)
        assert not thread.is_alive()


def test_a_failure_of_the_driven_loop_ends_the_request(
    server: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with driving(server) as client:

        def fail(*_: object) -> None:
            raise KeyError("broken")

        monkeypatch.setattr(session_of(client)._core, "handle", fail)
        for _ in range(2):
            with pytest.raises(errors.Internal, match="broken"):
                client.infer(x())
    assert "the thread defer-client failed" in caplog.text
