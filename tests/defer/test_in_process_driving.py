"""A thread that waits for an answer of its own dispatcher drives the sockets where it is alone, else harms nobody."""

from __future__ import annotations

import ctypes
import gc
import math
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from defer import errors
from defer.client import Client
from defer.dispatcher import events as e
from defer.dispatcher import shell as dispatcher_shell
from node_agent.messages import Greeting, Probe, Rejection
from tests.defer.in_process_fixtures import here, until, x

pytestmark = pytest.mark.integration


def doubled(client: Client, value: float, **more: Any) -> bool:
    return float(client.infer(x(value), **more)["y"][0, 0]) == 2 * value


def led_by(server: Any) -> int | None:
    lead = server.shell._loop._lead
    return lead.thread if lead is not None else None


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as running:
        yield running


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is waited for who sent something lately."""
    monkeypatch.setattr(dispatcher_shell, "COMPANY_S", 0.0)
    monkeypatch.setattr(dispatcher_shell, "PROBED_S", 0.0)


@contextmanager
def driving(server: Any, pool: ThreadPoolExecutor) -> Iterator[tuple[Client, Future[bool]]]:
    """A client, and the request, of 7, with which a thread drives the sockets while the stage keeps it."""
    server.shell._loop._rest_s = 5.0  # a busy machine is slower than its usual rest
    with here(server) as client:
        for _ in range(20):  # something of the request before may still come
            until(lambda: pool.submit(doubled, client, 1).result(10) and led_by(server) is None)
            server.stages[0].hold = True
            asking = pool.submit(doubled, client, 7)
            until(lambda: under_way(server) == 1)
            if led_by(server) not in (None, server.shell._loop._thread.ident):
                break
            server.stages[0].hold = False
            assert asking.result(10)
        else:
            pytest.fail("nobody drives")
        yield client, asking
        server.stages[0].hold = False


def throw(thread: int | None, kind: type[BaseException]) -> None:
    """Has a thread raise something, wherever it is."""
    raised = ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread or 0), ctypes.py_object(kind))
    assert raised == 1


def under_way(server: Any) -> int:
    """Looked at from here, as asking the data thread would have the driver leave."""
    return len(server.shell._core.requests)


@pytest.mark.usefixtures("alone")
def test_a_thread_that_is_alone_drives(server: Any, pool: ThreadPoolExecutor) -> None:
    with driving(server, pool) as (client, asking):
        server.stages[0].hold = False
        assert asking.result(10)
        assert all(pool.submit(doubled, client, value).result(10) for value in range(50))


@pytest.mark.usefixtures("alone")
def test_the_main_thread_never_does(server: Any) -> None:
    leads: set[int | None] = set()
    real = server.shell._callers.take

    def take(*args: object) -> None:
        leads.add(led_by(server))
        real(*args)

    server.shell._callers.take = take
    with here(server) as client:
        assert all(doubled(client, value) for value in range(20))
    assert leads == {server.shell._loop._thread.ident}


def test_nor_does_any_thread_shortly_after_somebody_else_sent_something(
    server: Any, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with here(server) as client, Client(server.address, timeout=10) as other:
        assert doubled(other, 3)
        for value in range(20):
            assert pool.submit(doubled, client, value).result(10)
            assert led_by(server) == server.shell._loop._thread.ident
        server.shell._alone_from = 0.0
        until(lambda: pool.submit(doubled, client, 1).result(10) and led_by(server) is None)
        assert doubled(other, 4)  # while the thread rests
        assert pool.submit(doubled, client, 5).result(10)
        until(lambda: led_by(server) == server.shell._loop._thread.ident)


@pytest.mark.usefixtures("alone")
def test_others_get_their_turn_while_somebody_drives(server: Any, pool: ThreadPoolExecutor) -> None:
    with driving(server, pool) as (client, asking), Client(server.address, timeout=10) as other:
        elsewhere = pool.submit(doubled, other, 3)
        until(lambda: under_way(server) == 2)
        future = client.submit(x(8))
        until(lambda: under_way(server) == 3)
        assert led_by(server) == server.shell._loop._thread.ident
        server.stages[0].hold = False
        assert float(future.result(10)["y"][0, 0]) == 16
        assert asking.result(10)
        assert elsewhere.result(10)


@pytest.mark.usefixtures("alone")
def test_whoever_asks_in_whatever_way_beside_others_gets_an_answer(server: Any) -> None:
    wrong: list[object] = []

    def run(client: Client, other: Client, number: int) -> None:
        draw = random.Random(number)
        for value in range(60):
            if draw.random() < 0.2:
                time.sleep(draw.random() * 0.03)  # now one is alone, now several are there
            match draw.randrange(6):
                case 0:
                    right = float(client.submit(x(value)).result(10)["y"][0, 0]) == 2 * value
                case 1:
                    right = doubled(other, value)
                case 2:
                    got = [float(each["y"][0, 0]) for each in client.map(map(x, range(4)), window=2)]
                    right = got == [0, 2, 4, 6]
                case 3:
                    given = client.submit(x(value))
                    right = given.cancel() or float(given.result(10)["y"][0, 0]) == 2 * value
                case _:
                    right = doubled(client, value)
            if not right:
                wrong.append(value)

    with here(server) as client, Client(server.address, timeout=10) as other:
        threads = [threading.Thread(target=run, args=(client, other, number)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        until(lambda: under_way(server) == 0)
    assert not wrong


@pytest.mark.usefixtures("alone")
def test_a_driven_request_keeps_its_deadline(server: Any, pool: ThreadPoolExecutor) -> None:
    with driving(server, pool) as (client, asking):
        server.stages[0].hold = False
        assert asking.result(10)
        server.stages[0].hold = True
        until(lambda: led_by(server) is None)
        with pytest.raises(errors.DeadlineExceeded, match="deadline"):
            pool.submit(doubled, client, 1, timeout=0.2).result(10)
        assert under_way(server) == 0


@pytest.mark.usefixtures("alone")
def test_a_driver_that_no_answer_comes_to_waits_no_longer_than_it_said(
    server: Any, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with driving(server, pool) as (client, asking):
        server.stages[0].hold = False
        assert asking.result(10)
        until(lambda: led_by(server) is None)
        server.stages[0].hold = True
        monkeypatch.setattr("defer.in_process_session.STALL_S", 0.1)
        # As where the dispatcher has lost its lead: it decides nothing any more.
        monkeypatch.setattr(server.shell._core, "handle", lambda *_: [])
        monkeypatch.setattr(server.shell._core, "wake", math.inf)
        began = time.monotonic()
        with pytest.raises(errors.DeadlineExceeded, match="stalled"):
            pool.submit(doubled, client, 1, timeout=0.3).result(10)
        assert time.monotonic() - began < 2  # not twice what it said, nor until something else happens


@pytest.mark.usefixtures("alone")
def test_a_refusal_comes_at_once(make_server: Callable[..., Any], pool: ThreadPoolExecutor) -> None:
    server = make_server(e.Limits(requests=1))
    server.serve(server.stage())
    with driving(server, pool) as (client, asking):
        server.stages[0].hold = False
        assert asking.result(10)
        until(lambda: led_by(server) is None)
        with pytest.raises(errors.UnknownModel):
            pool.submit(client.infer, x(), model="another").result(10)


@pytest.mark.usefixtures("alone")
def test_what_an_overload_refused_is_sent_again(
    make_server: Callable[..., Any], pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server(e.Limits(requests=2))
    server.serve(server.stage())
    server.shell._loop._rest_s = 5.0
    with here(server) as client:
        until(lambda: pool.submit(doubled, client, 1).result(10) and led_by(server) is None)
        real = server.shell._core.handle
        refused: list[int | None] = []

        def handle(event: e.Event, now: float) -> Any:
            if isinstance(event, e.InferArrived) and not refused:
                refused.append(led_by(server))
                rejection = Rejection(event.infer.request, "overloaded", "for the test")
                return [e.Reject(event.client, rejection)]
            return real(event, now)

        monkeypatch.setattr(server.shell._core, "handle", handle)
        # A request of a map is patient, but it is not driven; this one is both.
        submit = client._requests.prepare(x(3), "", (), 10.0, copy=False, patient=True)
        outputs: Any = pool.submit(client._requests.infer, submit).result(10)
        assert float(outputs["y"][0, 0]) == 6
        assert refused
        assert refused[0] not in (None, server.shell._loop._thread.ident)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("ends", ["client", "dispatcher", "data thread"])
def test_a_driver_is_told_when_what_it_asks_ends(server: Any, pool: ThreadPoolExecutor, ends: str) -> None:
    with driving(server, pool) as (client, asking):
        if ends == "client":
            client.close()
            kind: type[errors.DeferError] = errors.Cancelled
        elif ends == "dispatcher":
            server.shell.post(e.Stopped())
            kind = errors.NotReady
        else:
            server.shell.close()
            kind = errors.NotReady
        with pytest.raises(kind):
            asking.result(10)
        if ends == "client":
            until(lambda: under_way(server) == 0)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("how", ["it fails", "it is ended from outside"])
def test_where_the_work_fails_in_a_driver_all_are_told(
    server: Any, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    crashed: list[BaseException] = []
    monkeypatch.setattr(server.shell._loop, "_on_crash", crashed.append)
    with driving(server, pool) as (client, asking):
        if how == "it fails":

            def fail(*_: object) -> None:
                raise ZeroDivisionError("for the test")

            monkeypatch.setattr(server.shell._core, "handle", fail)
            server.stages[0].hold = False
            with pytest.raises(errors.NotReady):
                asking.result(10)
        else:
            # As it works: not as it waits, which spoils nothing.
            monkeypatch.setattr(server.shell._core, "handle", lambda *_: time.sleep(1) or [])
            driver = led_by(server)
            server.stages[0].hold = False  # the answer wakes it
            time.sleep(0.2)
            throw(driver, SystemExit)
            with pytest.raises(SystemExit):
                asking.result(10)
        until(lambda: crashed)
        with pytest.raises(errors.NotReady):
            client.infer(x(), timeout=5)


@pytest.mark.usefixtures("alone")
def test_nothing_keeps_a_driven_requests_tensors_when_it_has_ended(
    server: Any, pool: ThreadPoolExecutor
) -> None:
    def ask(client: Client) -> weakref.ref[np.ndarray]:
        given = x(3)
        client.infer(given)
        return weakref.ref(given)

    with driving(server, pool) as (client, asking):
        server.stages[0].hold = False
        assert asking.result(10)
        until(lambda: led_by(server) is None)
        gc.collect()
        gc.disable()
        try:
            assert pool.submit(ask, client).result(10)() is None
        finally:
            gc.enable()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("kind", [SystemExit, TimeoutError])
def test_a_driver_that_is_ended_as_it_waits_ends_its_own_request_alone(
    server: Any, pool: ThreadPoolExecutor, kind: type[BaseException]
) -> None:
    with driving(server, pool) as (client, asking), Client(server.address, timeout=10) as other:
        throw(led_by(server), kind)
        elsewhere = pool.submit(doubled, other, 3)  # it wakes the driver
        with pytest.raises(kind):
            asking.result(10)
        server.stages[0].hold = False
        assert elsewhere.result(10)
        assert pool.submit(doubled, client, 5).result(10)
        until(lambda: under_way(server) == 0)


@pytest.mark.usefixtures("alone")
def test_the_thread_goes_on_at_once_where_others_wait(server: Any, pool: ThreadPoolExecutor) -> None:
    """Also where what they asked came long before, or while somebody drove."""
    with driving(server, pool) as (client, asking), Client(server.address, timeout=10) as other:
        elsewhere = pool.submit(doubled, other, 3)
        until(lambda: under_way(server) == 2)
        assert led_by(server) != server.shell._loop._thread.ident
        client.close()
        with pytest.raises(errors.Cancelled):
            asking.result(10)
        until(lambda: led_by(server) == server.shell._loop._thread.ident)
        server.stages[0].hold = False
        assert elsewhere.result(10)


def test_a_probe_keeps_the_thread_at_its_sockets_for_a_moment_and_a_client_longer(server: Any) -> None:
    shell, begin = server.shell, time.monotonic()
    shell._alone_from = 0.0
    shell._visited(Probe(1, 0))
    assert 0.5 < shell._alone_from - begin < 3
    shell._visited(Greeting(1, 1, "client"))
    assert 9 < shell._alone_from - begin < 12
    shell._visited(Probe(1, 0))
    assert 9 < shell._alone_from - begin < 12
