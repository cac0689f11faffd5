"""A state on three nats-servers: the server that leads is killed, then the dispatcher that does."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

import models
from defer import errors
from defer.client import Client
from defer.dispatcher.election import Lease
from defer.dispatcher.nats_link import RECORDS, Fenced, NatsLink
from defer.dispatcher.state_url import parse_state_url
from defer.local_agents import LocalAgent
from tests.defer import test_restart as restart
from tests.defer.nats_fixtures import NatsCluster, nats_cluster, needs_nats
from tests.defer.test_restart import MODEL, loads, same, two_stages, until, write_cluster
from tests.defer.test_standby import both, dispatcher, steadily

agents, expected, model = restart.agents, restart.expected, restart.model

pytestmark = [pytest.mark.integration, needs_nats]

LONG_S = 60.0
T = TypeVar("T")


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsCluster]:
    with nats_cluster(tmp_path / "nats") as running:
        yield running


def insist(action: Callable[[], T]) -> T:
    """What an action gives, once the servers have agreed on one that leads."""
    deadline = time.monotonic() + LONG_S
    while True:
        try:
            return action()
        except Fenced:  # an answer that does not change
            raise
        except errors.NotReady:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


@contextmanager
def link(nats: NatsCluster) -> Iterator[NatsLink]:
    def connected() -> NatsLink:
        made = NatsLink(parse_state_url(nats.url))
        made.start()
        return made

    made = insist(connected)
    try:
        yield made
    finally:
        made.close()


async def _leader(link: NatsLink) -> str:
    try:
        info = await link.jetstream().stream_info("DEFER_t")
    except Exception as error:  # the library has many
        raise errors.NotReady(str(error)) from error
    if info.cluster is None or not info.cluster.leader:
        raise errors.NotReady("the servers are electing")
    return info.cluster.leader


def leading_server(link: NatsLink) -> str:
    """Name of the server that leads the stream's group."""
    return insist(lambda: link.run(_leader(link), 10))


def take(link: NatsLink, holder: str) -> int:
    """Take the lease; its term."""
    revision, lease = insist(lambda: link.run(link.read_lease(), 10))
    term = lease.term + 1 if lease else 1
    link.run(link.write_lease(Lease(term, holder, "a:1"), revision), 10)
    return term


def test_records_outlive_the_leading_server_and_whoever_was_deposed_is_fenced(nats: NatsCluster) -> None:
    with link(nats) as first, link(nats) as second:
        term = insist(lambda: take(first, "one"))
        for number in range(20):
            insist(lambda at=number: first.run(first.append(f"{RECORDS}.r{at}", b"%d" % at), 10))  # type: ignore[misc]
        nats.servers[leading_server(first)].stop()
        # The lease is as it was, and its holder writes on as soon as two servers have agreed.
        insist(lambda: first.run(first.append(f"{RECORDS}.r20", b"20"), 10))
        found, lease = insist(lambda: second.run(second.read_lease(), 10))
        assert lease == Lease(term, "one", "a:1")
        assert insist(lambda: take(second, "two")) == term + 1
        with pytest.raises(Fenced):
            insist(lambda: first.run(first.append(f"{RECORDS}.r21", b"21"), 10))
        with pytest.raises(Fenced):
            insist(lambda: first.run(first.write_lease(Lease(term, "one", "a:1"), found), 10))
        entries = {each.subject: each.data for each in insist(lambda: second.run(second.records(), 20))}
        assert {f"{RECORDS}.r{at}": b"%d" % at for at in range(21)}.items() <= entries.items()
        assert f"{RECORDS}.r21" not in entries


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_leading_server_is_killed_and_then_the_leading_dispatcher(
    agents: tuple[LocalAgent, ...], model: Path, expected: Any, tmp_path: Path, nats: NatsCluster
) -> None:
    plan = two_stages(model, write_cluster(agents, tmp_path / "cluster.toml", 7600), tmp_path / "plan.json")
    words: list[object] = ["--model", model, "--plan", plan]
    sent: dict[int, tuple[bytes, Future[Any]]] = {}
    stop = threading.Event()

    def durable(addresses: str) -> None:
        with Client(addresses, timeout=LONG_S) as client:
            for seed in range(1, 10_000):
                if stop.is_set():
                    break
                name = os.urandom(16)
                sent[seed] = (
                    name,
                    client.submit(models.example_inputs(MODEL, seed=seed), durable=True, request=name),
                )
                time.sleep(0.01)
            for _, future in list(sent.values()):
                future.exception(LONG_S)

    def goes_on() -> None:
        """Durable requests that are sent from now on are answered."""
        after = max(sent)
        until(lambda: any(seed > after and each[1].done() for seed, each in list(sent.items())), LONG_S)

    with ExitStack() as stack:
        watching = stack.enter_context(link(nats))
        insist(lambda: watching.run(watching.read_lease(), 10))
        first = stack.enter_context(dispatcher(1, tmp_path, agents, nats.url, *words))
        first.says("ready", LONG_S)
        second = stack.enter_context(dispatcher(2, tmp_path, agents, nats.url, *words))
        second.says("standby", LONG_S)
        addresses = both(second, first)
        with Client(addresses, timeout=LONG_S) as client:
            before = loads(client)
        thread = threading.Thread(target=durable, args=(addresses,))
        thread.start()
        stack.callback(thread.join, LONG_S)
        stack.callback(stop.set)
        until(lambda: len(sent) > 20)
        nats.servers[leading_server(watching)].stop()
        goes_on()
        _holder(watching)  # is told once the servers have agreed
        goes_on()
        calm = max(sent)
        # Either leads: who, is for the length of the servers' election against that of the lease to say.
        leads, other = (first, second) if _holder(watching) == first.address else (second, first)
        leads.process.send_signal(signal.SIGSTOP)
        until(lambda: _holder(watching) == other.address, LONG_S)
        goes_on()
        # It wakes up deposed: its process becomes one that stands by, and nothing that it had under way is written.
        said = len(leads.said)
        leads.process.send_signal(signal.SIGCONT)
        until(lambda: any("standby" in line for line in leads.said[said:]), LONG_S)
        goes_on()
        other.end(signal.SIGKILL)
        until(lambda: _holder(watching) == leads.address, LONG_S)
        goes_on()
        stop.set()
        thread.join(LONG_S)
        assert not thread.is_alive()
        with Client(leads.address, timeout=LONG_S) as client:
            assert steadily(lambda: loads(client)) == before, "no agent has loaded anything"
            for seed, (name, future) in sent.items():
                same(future.result(0), expected(seed))
                # While the servers elected, answers were handed over that nobody could keep.
                if seed > calm:
                    same(client.recall(name), expected(seed))


def _holder(link: NatsLink) -> str:
    _, lease = insist(lambda: link.run(link.read_lease(), 10))
    return "" if lease is None else lease.address
