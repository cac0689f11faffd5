"""The event log: numbers without gaps, bounded, provoked events put together; and what the core's changes give."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from defer.cli.events import _show
from defer.dispatcher import events as e
from defer.dispatcher.chronicle import Chronicle
from defer.dispatcher.core import DispatcherCore
from defer.event_log import SELDOM_S, EventInfo, EventLog
from node_agent.messages import TensorSpec

SPECS = (TensorSpec("x", "float32", (1,)),)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_what_others_send_forges_no_line() -> None:
    log = EventLog(Clock())
    log.note("request-failed", "x\n2026 error: \x1b[31mall is lost\u202e µs, 3 × 4 …")
    log.note_seldom("request-failed", "x", "a\r\nb")
    texts = [event.text for event in log.since(0)]
    assert texts == ["x\\n2026 error: \\x1b[31mall is lost\\u202e µs, 3 × 4 …", "a\\r\\nb"]


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 20), st.integers(0, 70), st.integers(0, 70))
def test_readers_see_what_is_left_in_order_and_know_what_they_missed(kinds, size, after, limit):
    clock = Clock()
    log = EventLog(clock, size)
    for number in kinds:
        log.note(f"kind-{number}", "happened")
        clock.now += 1
    found = [event.seq for event in log.since(after, limit)]
    everything = range(1, len(kinds) + 1)
    kept = [seq for seq in everything if seq > len(kinds) - size and seq > after]
    assert found == (kept[-limit:] if limit else [])
    assert log.last == len(kinds)


def test_what_anybody_can_provoke_is_told_seldom_and_counted():
    clock = Clock()
    log = EventLog(clock)
    for number in range(1000):
        log.note_seldom("request-failed", "overloaded", f"number {number}")
    assert [event.count for event in log.since(0)] == [1]
    clock.now += SELDOM_S
    assert [(event.count, event.text) for event in log.since(1)] == [(999, "number 999")]
    clock.now += SELDOM_S
    assert log.since(2) == ()
    log.note_seldom("request-failed", "overloaded", "again")
    assert [event.count for event in log.since(2)] == [1]


def test_nobody_fills_the_log_with_subjects_of_his_own():
    log = EventLog(Clock())
    for number in range(500):
        log.note_seldom("request-failed", f"subject {number}", "text")
    assert log.last < 70


class Watched:
    def __init__(self) -> None:
        self.core = DispatcherCore()
        self.log = EventLog(Clock())
        self.chronicle = Chronicle(self.log)
        self.seen = 0

    def feed(self, *happened: e.Event) -> list[str]:
        for event in happened:
            self.core.handle(event, 0.0)
            self.chronicle.happened(event, self.core.routes)
        new = self.log.since(self.seen)
        self.seen = self.log.last
        return [event.kind for event in new]


def route(epoch: int, device: str) -> e.Route:
    return e.Route("m", epoch, SPECS, SPECS, f"link-{device}", 1, (device,), fraction=0.5)


def test_a_route_serves_stands_still_serves_again_and_gives_way():
    watched = Watched()
    assert watched.feed(e.ModelAnnounced("m", "planning"), e.RouteLoaded(route(1, "a"))) == []
    assert watched.feed(e.RouteReady(1)) == ["route-serves"]
    assert watched.feed(e.DeviceLost("a", "it is silent")) == ["route-lost"]
    assert "it is silent" in watched.log.since(0)[-1].text
    assert watched.feed(e.DeviceBack("a")) == ["route-serves"]
    assert watched.log.since(0)[-1].text.endswith("serves again")
    assert watched.feed(e.RouteLoaded(route(2, "b"))) == []
    assert sorted(watched.feed(e.RouteReady(2))) == ["route-drains", "route-gone", "route-serves"]


def test_a_route_among_replicas_is_given_up():
    watched = Watched()
    watched.feed(e.RouteLoaded(route(1, "a")), e.RouteLoaded(route(2, "b")), e.RouteReady(1, (2,)))
    kinds = watched.feed(e.DeviceLost("a", "it is silent"))
    assert kinds == ["route-given-up", "route-gone"]


def test_a_deployment_that_never_served_is_dropped():
    watched = Watched()
    watched.feed(e.RouteLoaded(route(1, "a")))
    assert watched.feed(e.RouteDropped(1, "the canary failed")) == ["route-dropped"]
    assert "route-serves" not in [event.kind for event in watched.log.since(0)]


def test_events_that_were_put_together_are_shown_where_they_happened(
    capsys: pytest.CaptureFixture[str],
) -> None:
    late, collected = EventInfo(1, 20.0, "deployed", "later"), EventInfo(2, 10.0, "request-failed", "before")
    _show((late, collected), 0, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == ["before", "later"]
    _show((late, collected), 0, as_json=True)
    assert [line.split('"text":"')[1][:5] for line in capsys.readouterr().out.splitlines()] == [
        "later",
        "befor",
    ]
