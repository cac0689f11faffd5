"""Candidates on a real nats-server, within one process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from defer.dispatcher.leadership import Leadership
from defer.dispatcher.state_url import parse_state_url
from tests.defer.nats_fixtures import NatsServer, nats_server, needs_nats

pytestmark = [pytest.mark.integration, needs_nats]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with nats_server(tmp_path_factory.mktemp("nats")) as running:
        yield running


@contextmanager
def candidate(server: NatsServer, name: str, address: str) -> Iterator[Leadership]:
    made = Leadership(parse_state_url(f"nats://127.0.0.1:{server.port}/{name}?lease=1s"), address)
    made.start()
    try:
        yield made
    finally:
        made.close()


def until(condition: object, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_one_leads_and_the_other_follows_a_stop_in_order(server: NatsServer) -> None:
    with candidate(server, "order", "a:1") as first:
        assert first.wait(10)
        with candidate(server, "order", "b:1") as second:
            until(lambda: second.leader == "a:1")
            assert not second.wait(1.5), "the first renews its lease"
            first.close()
            assert second.wait(10)
            assert (first.term, second.term) == (1, 2)
            assert not first.acts()


def test_one_that_falls_silent_stops_acting_before_the_other_begins(server: NatsServer) -> None:
    with candidate(server, "silent", "a:1") as first, candidate(server, "silent", "b:1") as second:
        until(lambda: first.acts() or second.acts())
        old, new = (first, second) if first.acts() else (second, first)
        assert old._turns is not None
        old._turns.cancel()  # as if its process stood still
        while not new.acts():
            assert not (old.acts() and new.acts())
            time.sleep(0.001)
        assert not old.acts()
        assert new.term == old.term + 1


def test_without_the_store_a_leader_stops_and_one_leads_when_it_is_back(tmp_path: Path) -> None:
    with nats_server(tmp_path) as server, candidate(server, "t", "a:1") as only:
        assert only.wait(10)
        lost = threading.Event()
        only.when_lost(lambda _reason: lost.set())
        server.stop()
        assert lost.wait(10)
        assert not only.acts()
        until(lambda: only.trouble)
        server.start()
        assert only.wait(20)
        assert only.term == 2
