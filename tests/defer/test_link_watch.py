from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from defer.dispatcher import link_watch
from defer.dispatcher.link_watch import LinkWatch
from defer.errors import AgentFault, AgentUnreachable
from node_agent.messages import MeasureLink, PeerRef

ROUTE = (("home", "a"), ("a", "b"), ("b", "c"), ("c", "home"))


class Pool:
    """Agents `a`, `b` and `c`, some of whose links carry nothing, and some of which are gone."""

    def __init__(self) -> None:
        self.broken: set[tuple[str, str]] = set()
        self.gone: set[str] = set()

    def liveness(self, name: str) -> Any:
        offer = SimpleNamespace(data_port=1, fetch_port=2)
        return SimpleNamespace(state="lost" if name in self.gone else "alive", offer=offer)

    def ask(self, name: str, message: MeasureLink, *, timeout: float) -> None:
        assert timeout > message.patience_s > 0
        if name in self.gone:
            raise AgentUnreachable("gone")
        if (name, message.peer.name) in self.broken:
            raise AgentFault("link-unreachable")


class Told:
    """What a watch says."""

    def __init__(self) -> None:
        self.links: list[frozenset[tuple[str, str]]] = []
        self.reasons: list[str] = []
        self._changed = threading.Condition()

    def changed(self, links: frozenset[tuple[str, str]]) -> None:
        with self._changed:
            self.links.append(links)
            self._changed.notify_all()

    def wait(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.links) >= count, 10)


def cluster() -> Any:
    agents = [SimpleNamespace(name=name, address="127.0.0.1:1", dials=False) for name in "abc"]
    by_name = {agent.name: agent for agent in agents}
    return SimpleNamespace(
        agents=agents, dispatcher=SimpleNamespace(device="home"), device=by_name.__getitem__
    )


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Pool:
    monkeypatch.setattr(link_watch, "AGAIN_S", 0.0)
    return Pool()


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def watch(pool: Pool, told: Told) -> Iterator[LinkWatch]:
    made = LinkWatch(pool, cluster, lambda: PeerRef("home", "tcp://127.0.0.1:1"), told.changed)  # type: ignore[arg-type]
    yield made
    made.close()


def test_a_link_that_carries_nothing_is_done_without_until_it_works_again(
    watch: LinkWatch, pool: Pool, told: Told
) -> None:
    pool.broken = {("a", "b")}
    watch.stands_still(7, ROUTE[1:], told.reasons.append)
    told.wait(1)
    assert told.links == [{("a", "b")}]
    assert told.reasons == ["nothing passes the link a → b"]
    assert (watch.missing(), watch.missing(other=True)) == ({"b"}, {"a"})
    pool.broken.clear()
    watch.look()
    told.wait(2)
    assert told.links[1] == frozenset()
    assert watch.missing() == frozenset()


def test_links_of_a_lost_device_are_not_blamed(watch: LinkWatch, pool: Pool, told: Told) -> None:
    pool.gone = {"b"}
    watch.stands_still(7, ROUTE[1:], told.reasons.append)
    watch.close()
    assert (told.links, told.reasons) == ([], [])
    assert watch.missing() == frozenset()


def test_a_route_that_goes_on_standing_still_is_tried_with_pauses(
    watch: LinkWatch, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    monkeypatch.setattr(pool, "ask", lambda name, *_, **__: tried.append(name))

    def stand_still() -> int:
        watch.stands_still(7, ROUTE[1:3], lambda _: None)
        deadline = time.monotonic() + 10
        while watch._busy and time.monotonic() < deadline:
            time.sleep(0.01)
        return len(tried)

    assert [stand_still(), stand_still()] == [2, 4]
    monkeypatch.setattr(link_watch, "AGAIN_S", 3600.0)
    assert [stand_still(), stand_still()] == [4, 4]


def test_a_route_whose_links_are_well_is_left_alone(watch: LinkWatch, told: Told) -> None:
    watch.stands_still(7, ROUTE[1:], told.reasons.append)
    watch.close()
    assert (told.links, told.reasons) == ([], [])
    watch.stands_still(7, ROUTE[1:], told.reasons.append)  # after its end nothing is tried


def test_a_device_that_computes_may_answer_late(pool: Pool, told: Told) -> None:
    busy = {"b"}
    made = LinkWatch(
        pool,  # type: ignore[arg-type]
        cluster,
        lambda: PeerRef("home", "tcp://127.0.0.1:1"),
        told.changed,
        lambda: frozenset(busy),
    )
    try:
        pool.broken = {("a", "b"), ("c", "home")}
        made.stands_still(7, ROUTE[1:], told.reasons.append)
        told.wait(1)
        assert told.links == [{("c", "home")}]
    finally:
        made.close()
