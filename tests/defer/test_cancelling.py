"""A request that its client cancels: no stage runs it, and whoever waits behind it comes sooner."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import models
from defer.async_client import AsyncClient
from defer.client import Client
from defer.dispatcher.bringup import Order
from defer.dispatcher.daemon import Daemon
from defer.errors import Cancelled
from node_agent import messages as m
from tests.defer.test_adapting import dispatcher, slow_agents

pytestmark = [pytest.mark.integration, pytest.mark.timeout(200)]

MODEL = "tiny_residual"
INPUTS = models.example_inputs(MODEL, seed=1)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """One agent whose runs take 0.4 s."""
    model = models.save(MODEL, tmp_path / "m.onnx")
    with slow_agents("a", tmp_path) as agents, dispatcher(agents, tmp_path) as daemon:
        daemon.deployments.bring_up(Order(MODEL, model), lambda _what, _fraction: None)
        (tmp_path / "a.slow").write_text("spin 0.4")
        yield daemon


def counted(daemon: Daemon) -> tuple[int, int]:
    """Runs and failures of the stage."""
    status = daemon.pool.ask("a", m.StatusRequest(0), timeout=20)
    assert isinstance(status, m.AgentStatus)
    return sum(hop.runs for hop in status.hops), sum(hop.failures for hop in status.hops)


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_a_client_cancels_is_not_run(daemon: Daemon) -> None:
    with Client(str(daemon.address)) as client:
        before, _ = counted(daemon)
        first, *others = [client.submit(INPUTS, timeout=60) for _ in range(8)]
        until(lambda: counted(daemon)[0] > before or first.done())
        last = others.pop()
        assert all(future.cancel() for future in others[1:])
        assert first.result(60)
        assert others[0].result(60)
        assert last.result(60)
        runs, failures = counted(daemon)
        assert runs - before == 3
        # Those that were at the stage ended there; the others never left the dispatcher.
        assert 1 <= failures <= 5


def test_a_durable_request_that_is_cancelled_is_recalled_as_cancelled(daemon: Daemon) -> None:
    name = b"1" * 16
    with Client(str(daemon.address)) as client:
        future = client.submit(INPUTS, timeout=60, durable=True, request=name)
        assert future.cancel()
        with pytest.raises(Cancelled, match="the client cancelled"):
            client.recall(name, timeout=60)


def test_a_task_that_is_cancelled_frees_the_stage(daemon: Daemon) -> None:
    async def scene() -> int:
        async with AsyncClient(str(daemon.address)) as client:
            await client.infer(INPUTS, timeout=60)
            before, _ = counted(daemon)
            tasks = [asyncio.create_task(client.infer(INPUTS, timeout=60)) for _ in range(6)]
            while counted(daemon)[0] == before and not tasks[0].done():
                await asyncio.sleep(0.05)
            for task in tasks[2:]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await client.infer(INPUTS, timeout=60)
            return counted(daemon)[0] - before

    assert asyncio.run(scene()) == 3
