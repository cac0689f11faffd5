"""Requests of the dispatcher's own process: through no socket, from any thread, and none is lost or waits for ever."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from defer import errors
from defer.client import AsyncClient, Client
from defer.client_core import pause_s
from defer.dispatcher import events as e
from tests.defer.in_process_fixtures import here, requests_to, until, x

pytestmark = pytest.mark.integration


def first(outputs: dict[str, np.ndarray]) -> float:
    return float(outputs["y"][0, 0])


def holding(make_server: Callable[..., Any]) -> tuple[Any, Any]:
    """A server, and its stage, which keeps what it gets until `hold` is taken back."""
    server = make_server()
    stage = server.stage()
    stage.hold = True
    server.serve(stage)
    return server, stage


def under_way(server: Any) -> int:
    return int(server.core(lambda core: len(core.requests)))


def test_every_way_to_ask_gives_the_requests_own_answer(server: Any) -> None:
    with here(server) as client:
        for value in range(5):
            assert first(client.infer(x(value))) == 2 * value
        futures = [client.submit(x(value)) for value in range(20)]
        assert [first(each.result(10)) for each in futures] == [2 * value for value in range(20)]
        assert [first(each) for each in client.map((x(value) for value in range(50)), window=4)] == [
            2 * value for value in range(50)
        ]
        found = [first(each) for each in client.map(map(x, range(50)), window=8, ordered=False)]
        assert sorted(found) == [2 * value for value in range(50)]
        assert client.infer(x(3))["y"].flags.writeable
    assert under_way(server) == 0


def test_many_threads_and_clients_of_other_processes_beside_it(server: Any) -> None:
    wrong: list[object] = []

    def ask(client: Client, base: int) -> None:
        wrong.extend(value for value in range(base, base + 40) if first(client.infer(x(value))) != 2 * value)

    with here(server) as client, Client(server.address) as other:
        threads = [
            threading.Thread(target=ask, args=(each, 100 * n))
            for n, each in enumerate([client, client, other, other])
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert not wrong


def test_asyncio(server: Any) -> None:
    async def ask() -> list[float]:
        async with AsyncClient._over(requests_to(server)) as client:
            one = await client.infer(x(1))
            tasks = [client.submit(x(value)) for value in range(2, 10)]
            return [first(one), *[first(await task) for task in tasks]]

    assert asyncio.run(ask()) == [2 * value for value in range(1, 10)]


def test_errors_are_those_of_any_client(make_server: Callable[..., Any]) -> None:
    server = make_server()
    stage = server.stage()
    with here(server, timeout=5.0) as client:
        with pytest.raises(errors.NotReady):
            client.infer(x())
        server.serve(stage)
        with pytest.raises(errors.WrongInput):
            client.infer(x().astype(np.float64))
        with pytest.raises(errors.UnknownModel):
            client.infer(x(), model="another")
        stage.hold = True
        with pytest.raises(errors.DeadlineExceeded) as told:
            client.infer(x(), timeout=0.2)
        assert "0.2 s" in told.value.hint
        with pytest.raises(errors.DeadlineExceeded):
            client.submit(x(), timeout=0.2).result(10)
        with pytest.raises(errors.DeadlineExceeded):
            next(client.map([x()], timeout=0.2))


def test_a_cancelled_future_ends_its_request(make_server: Callable[..., Any]) -> None:
    server, _stage = holding(make_server)
    with here(server) as client:
        future = client.submit(x())
        until(lambda: under_way(server) == 1)
        assert future.cancel()
        until(lambda: under_way(server) == 0)


def test_a_map_that_is_given_up_ends_its_requests(make_server: Callable[..., Any]) -> None:
    server = make_server()
    stage = server.stage()
    server.serve(stage)
    with here(server) as client:
        results = client.map((x(value) for value in range(1000)), window=4)
        next(results)
        stage.hold = True
        results.close()  # type: ignore[attr-defined]
        stage.hold = False
        until(lambda: under_way(server) == 0)
        assert first(client.infer(x(3))) == 6


def test_a_patient_request_waits_where_the_dispatcher_is_overloaded(make_server: Callable[..., Any]) -> None:
    server = make_server(e.Limits(requests=2))
    server.serve(server.stage())
    with here(server) as client:
        assert [first(each) for each in client.map(map(x, range(40)), window=16)] == [
            2 * value for value in range(40)
        ]
    server.stages[0].hold = True
    with here(server) as client:
        futures = [client.submit(x()) for _ in range(3)]
        with pytest.raises(errors.Overloaded):
            futures[2].result(10)
        with pytest.raises((errors.Overloaded, errors.DeadlineExceeded)):
            next(client.map([x()], timeout=0.3))


@pytest.mark.parametrize("ends", ["client", "dispatcher"])
def test_whoever_waits_is_told_when_it_ends(make_server: Callable[..., Any], ends: str) -> None:
    server, _stage = holding(make_server)
    told: list[BaseException] = []

    def ask(client: Client) -> None:
        try:
            client.infer(x())
        except errors.DeferError as error:
            told.append(error)

    client = Client._over(requests_to(server))
    future = client.submit(x())
    waiting = threading.Thread(target=ask, args=(client,))
    waiting.start()
    until(lambda: under_way(server) == 2)
    if ends == "client":
        client.close()
        kind: type[errors.DeferError] = errors.Cancelled
    else:
        server.shell.post(e.Stopped())
        kind = errors.NotReady
    waiting.join(10)
    assert not waiting.is_alive()
    assert isinstance(told[0], kind)
    assert isinstance(future.exception(10), kind)
    if ends == "client":
        until(lambda: under_way(server) == 0)
        with pytest.raises(errors.Cancelled):
            client.infer(x())
    client.close()


def test_callbacks_run_in_no_thread_of_the_dispatchers(server: Any) -> None:
    with here(server) as client:
        ran: list[str] = []
        again: list[float] = []

        def ask_again(_: object) -> None:
            ran.append(threading.current_thread().name)
            again.append(first(client.infer(x(4))))

        future = client.submit(x())
        future.add_done_callback(ask_again)
        assert first(future.result(10)) == 2
        until(lambda: again)
        assert again == [8]
        assert set(ran) <= {"defer-in-process", threading.main_thread().name}


def test_who_is_interrupted_gives_its_request_up(make_server: Callable[..., Any]) -> None:
    server, stage = holding(make_server)

    class Enough(Exception):
        pass

    def enough(*_: object) -> None:
        raise Enough

    before = signal.signal(signal.SIGALRM, enough)
    try:
        with here(server) as client:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(Enough):
                client.infer(x())
            until(lambda: under_way(server) == 0)
            stage.hold = False
            assert first(client.infer(x(2))) == 4
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_two_that_wait_for_one_request_both_get_its_answer(make_server: Callable[..., Any]) -> None:
    server, stage = holding(make_server)
    name = os.urandom(16)
    with here(server) as client, here(server) as other:
        future = client.submit(x(5), request=name)
        until(lambda: under_way(server) == 1)
        same = other._requests.launch(other._requests.recall(name, 10.0))
        until(lambda: server.shell.call(lambda *_: len(server.shell._callers._waiting[name])).result(5) == 2)
        stage.hold = False
        assert first(future.result(10)) == first(same.result(10)) == 10


def test_a_child_of_the_process_is_told(server: Any) -> None:
    with here(server) as client:
        assert first(client.infer(x())) == 2
        child = os.fork()
        if child == 0:
            code = 1
            try:
                client.infer(x(), timeout=2.0)
            except errors.DeferError:
                code = 0
            finally:
                os._exit(code)
        deadline = time.monotonic() + 20
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
            assert time.monotonic() < deadline, "the child waits for ever"
            time.sleep(0.01)
        assert os.waitstatus_to_exitcode(ended[1]) == 0
        assert first(client.infer(x())) == 2


def test_whoever_asks_for_the_answer_elsewhere_takes_it_from_nobody(make_server: Callable[..., Any]) -> None:
    server, stage = holding(make_server)
    name = os.urandom(16)
    with here(server) as client, Client(server.address, timeout=10) as other:
        future = client.submit(x(5), request=name)
        until(lambda: under_way(server) == 1)
        elsewhere: list[float] = []
        asking = threading.Thread(target=lambda: elsewhere.append(first(other.recall(name))))
        asking.start()
        until(lambda: server.core(lambda core: core.ledger.named(name).client != e.HERE))
        stage.hold = False
        assert first(future.result(10)) == 10
        asking.join(10)
        assert elsewhere == [10]


def test_waiting_for_an_answer_by_its_id_has_a_deadline_of_its_own(make_server: Callable[..., Any]) -> None:
    server, stage = holding(make_server)
    name = os.urandom(16)
    with here(server) as client:
        future = client.submit(x(5), request=name)
        until(lambda: under_way(server) == 1)
        began = time.monotonic()
        with pytest.raises(errors.DeadlineExceeded):
            client.recall(name, timeout=0.1)
        assert time.monotonic() - began < 4
        stage.hold = False
        assert first(future.result(10)) == 10


def test_who_gives_up_ends_no_request_that_others_wait_for(make_server: Callable[..., Any]) -> None:
    server, stage = holding(make_server)
    name = os.urandom(16)
    with here(server) as client, here(server) as other:
        future = client.submit(x(5), request=name)
        second = other.submit(x(5), request=name)
        until(
            lambda: (
                server.shell.call(lambda *_: len(server.shell._callers._waiting.get(name, ()))).result(5) == 2
            )
        )
        assert second.cancel()
        until(lambda: server.shell.call(lambda *_: len(server.shell._callers._waiting[name])).result(5) == 1)
        stage.hold = False
        assert first(future.result(10)) == 10


def test_a_map_goes_to_its_end_where_the_client_is_closed(server: Any) -> None:
    client = Client._over(requests_to(server))
    results = client.map([x(1), x(2), x(3)], window=3, timeout=20)
    assert first(next(results)) == 2
    until(lambda: under_way(server) == 0)
    client.close()
    began = time.monotonic()
    ended: list[object] = []
    for _ in range(2):
        try:
            ended.append(first(next(results)))
        except errors.Cancelled as error:
            ended.append(error)
            break
    assert ended
    assert time.monotonic() - began < 10


def test_a_callback_that_raises_harms_no_other(server: Any) -> None:
    def leave(_: object) -> None:
        raise SystemExit

    with here(server) as client:
        future = client.submit(x(1))
        future.add_done_callback(leave)
        assert [first(client.submit(x(value)).result(10)) for value in range(3)] == [0, 2, 4]


def test_nothing_keeps_a_requests_tensors_when_it_has_ended(server: Any) -> None:
    gc.collect()
    gc.disable()
    try:
        with here(server) as client:
            client.infer(x())
            given = x(3)
            alive = weakref.ref(given)
            client.infer(given)
            del given
            until(lambda: alive() is None or len(server.core(lambda core: core.requests)) == 0)
            assert alive() is None
    finally:
        gc.enable()


def test_pauses_have_an_end() -> None:
    assert pause_s(0) < pause_s(3) <= pause_s(5000) <= 1.0
