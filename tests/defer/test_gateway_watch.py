"""A gateway whose dispatcher is elsewhere, and perhaps not there."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from benchmarks import readiness
from defer.api import ModelInfo
from defer.client_requests import dialling
from defer.documents.address import Address
from defer.errors import Cancelled, DeferError, DispatcherUnreachable
from defer.gateway.backend import RemoteBackend
from defer.gateway.server import Gateway, Options
from defer.gateway.service import Service
from defer.gateway.watch import LATE_S, DispatcherWatch
from defer.local_agents import local_agents
from tests.defer.gateway_fixtures import SAME, exchange

NOBODY = DispatcherUnreachable("nobody", hint="start one")


class Dispatcher:
    """One that answers, or not."""

    def __init__(self) -> None:
        self.error: DeferError | None = None

    def ask(self) -> Sequence[ModelInfo]:
        if self.error is not None:
            raise self.error
        return (SAME,)


def test_a_watch_tells_what_it_heard_last(caplog: pytest.LogCaptureFixture) -> None:
    dispatcher = Dispatcher()
    watch = DispatcherWatch(dispatcher.ask, "host:1")
    assert (watch.running, watch.away) == (False, False)
    assert "not answered yet" in str(watch.error())
    with caplog.at_level(logging.WARNING, "defer.gateway"):
        watch.look()
        assert (watch.models, watch.problem) == ((SAME,), None)
        dispatcher.error = NOBODY
        watch.look()
        watch.look()
        assert (str(watch.error()), watch.error().hint) == ("nobody", "start one")
        dispatcher.error = None
        watch.look()
    assert watch.problem is None
    assert [record.getMessage() for record in caplog.records] == [
        "The dispatcher is away: nobody",
        "The dispatcher at host:1 is back",
    ]


def test_who_is_late_counts_as_away_until_it_answers() -> None:
    now = [0.0]
    seen: list[bool] = []

    def ask() -> Sequence[ModelInfo]:
        for _ in range(2):
            seen.append(watch.problem is None)
            now[0] += LATE_S + 0.1
        seen.append(watch.problem is None)
        return (SAME,)

    watch = DispatcherWatch(ask, "host:1", clock=lambda: now[0])
    watch.look()
    assert (seen, watch.problem) == ([False, False, False], None)  # it had not answered before
    seen.clear()
    watch.look()
    assert (seen, watch.problem) == ([True, False, False], None)


@pytest.mark.integration
def test_a_watch_says_once_that_the_dispatcher_is_there() -> None:
    told: list[int] = []
    dispatcher = Dispatcher()
    watch = DispatcherWatch(dispatcher.ask, "host:1", pause_s=0.01)
    try:
        assert watch.start(lambda: told.append(1)).wait(10)
        asked = threading.Event()
        watch._ask = lambda: asked.set() or (SAME,)  # type: ignore[func-returns-value]
        assert asked.wait(10)
    finally:
        watch.close()
    assert (told, watch.away) == ([1], False)


@pytest.mark.integration
def test_without_a_dispatcher_probes_are_answered_at_once_and_requests_refused() -> None:
    with socket.socket() as taken:  # bound and not listening: nobody else can answer there
        taken.bind(("127.0.0.1", 0))
        requests = dialling(
            f"127.0.0.1:{taken.getsockname()[1]}",
            model="",
            timeout=60,
            codec="auto",
            connect_timeout=0.3,
            absence_s=0.3,
        )
        backend = RemoteBackend(requests)
        with Gateway(Service(backend), Options(Address("127.0.0.1", 0))) as gateway:
            assert gateway.http is not None
            backend.start(lambda: None)
            status, text, _ = exchange(gateway.http, "GET", "/readyz")
            assert status == 503
            assert b"dispatcher" in text
            assert exchange(gateway.http, "GET", "/healthz")[0] == 200
            assert exchange(gateway.http, "GET", "/v2/health/ready")[0] == 400
            body: dict[str, Any] = {
                "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]
            }
            path = "/v2/models/same/infer"
            for _ in range(2):  # the second one finds the model known, and waits for a connection
                status, told, headers = exchange(gateway.http, "POST", path, body)
                assert (status, headers["retry-after"]) == (503, "1")
                assert "no dispatcher" in told["error"]
                gateway.service._infos = {"same": SAME}
                requests.served.data = Address("127.0.0.1", taken.getsockname()[1])


@pytest.mark.integration
def test_the_command_waits_for_the_dispatcher_and_says_so(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        at = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [sys.executable, "-m", "defer", "gateway", "--http", "127.0.0.1:0", "--dispatcher", at]
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=dict(os.environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stderr is not None
            assert f"waiting for the dispatcher at {at}; http on 127.0.0.1:" in process.stderr.readline()
        finally:
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, ""), err


@pytest.mark.integration
@pytest.mark.parametrize("addresses", [1, 2])
def test_a_gateway_whose_dispatcher_is_absent_ends_at_once(addresses: int) -> None:
    """Without waiting for an answer that nobody gives."""
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(addresses)]
        for each in taken:
            each.bind(("127.0.0.1", 0))
        at = ",".join(f"127.0.0.1:{each.getsockname()[1]}" for each in taken)
        requests = dialling(at, model="", timeout=60, codec="auto", connect_timeout=60, absence_s=60)
        backend = RemoteBackend(requests)
        there = backend.start(lambda: None)
        assert not there.wait(0.3)  # it is asked meanwhile
        begin = time.monotonic()
        backend.close()
        assert time.monotonic() - begin < 10
        with pytest.raises(Cancelled):
            requests.served.refresh()


@pytest.mark.integration
def test_the_probe_follows_a_dispatcher_that_was_killed(tmp_path: Path) -> None:
    """How soon, `benchmarks.readiness` measures; here it must follow at all, and the gateway must live on."""
    with (
        local_agents(["a"], tmp_path) as (agent,),
        readiness.serving(tmp_path, agent) as (dispatcher, address),
        readiness.gateway(address) as port,
    ):
        readiness.until(port, 200)
        dispatcher.kill()
        readiness.until(port, 400)
        assert readiness.probe(port, "/readyz") == 503
        assert readiness.probe(port, "/healthz") == readiness.probe(port, "/v2/health/live") == 200
