"""Which requests are taken for lost on the way: not those that a slow link or stage still has."""

from __future__ import annotations

import math

import pytest

from defer.dispatcher import events as e
from defer.dispatcher.core import DispatcherCore
from defer.dispatcher.overdue import EVERY_S, LEAST_S, Overdue
from node_agent.messages import NO_DEADLINE, Credit, Infer, Item, TensorHeader, TensorSpec


@pytest.fixture
def watch() -> Overdue:
    watch = Overdue()
    watch.open(1, ("a", "b"), predicted=0.05)
    return watch


def lost(watch: Overdue, now: float) -> list[int]:
    return [number for _, numbers in watch.lost(now) for number in numbers]


def test_nothing_under_way_wakes_nobody(watch: Overdue) -> None:
    assert watch.next_look() == math.inf
    watch.sent(1, 7, 5.0)
    assert watch.next_look() == 5.0 + EVERY_S
    watch.left(1, 7)
    assert watch.next_look() == math.inf


def test_idle_devices_for_longer_than_a_link_takes(watch: Overdue) -> None:
    watch.sent(1, 7, 5.0)
    watch.quiet = {"a": 1.0, "b": 5.2}
    assert lost(watch, 5.1 + LEAST_S) == []
    assert lost(watch, 5.4 + LEAST_S) == [7]


def test_a_busy_device_or_one_that_is_not_heard_may_have_it(watch: Overdue) -> None:
    watch.sent(1, 7, 5.0)
    watch.quiet = {"a": 1.0}
    assert lost(watch, 60.0) == []


def test_each_time_that_it_is_sent_again_patience_doubles(watch: Overdue) -> None:
    watch.quiet = {"a": 0.0, "b": 0.0}
    now, waits = 0.0, []
    for _ in range(4):
        watch.sent(1, 7, now)
        begun = now
        while not lost(watch, now):
            now += 0.1
        waits.append(now - begun)
        watch.left(1, 7)
    assert waits == pytest.approx([LEAST_S, 2 * LEAST_S, 4 * LEAST_S, 8 * LEAST_S], abs=0.2)
    watch.ended(7)


def test_one_that_was_overtaken_is_lost_though_the_devices_are_busy(watch: Overdue) -> None:
    for number in (1, 2, 3):
        watch.sent(1, number, number / 10)
    watch.back(1, 2, 0.5)
    watch.left(1, 2)
    assert lost(watch, 0.6) == []
    assert lost(watch, 0.6 + LEAST_S) == []
    assert lost(watch, 0.9 + 2 * LEAST_S) == [1]


def test_slow_answers_and_large_requests_make_patient(watch: Overdue) -> None:
    watch.sent(1, 1, 0.0)
    watch.back(1, 1, 5.0)
    watch.left(1, 1)
    watch.sent(1, 2, 6.0)
    watch.sent(1, 3, 6.0, scale=3.0)
    watch.quiet = {"a": 6.0, "b": 6.0}
    assert lost(watch, 15.0) == []
    assert lost(watch, 17.0) == [2]
    watch.left(1, 2)
    assert lost(watch, 35.0) == []
    assert lost(watch, 37.0) == [3]


def test_the_core_sends_them_again_and_delivers_one_answer() -> None:
    core = DispatcherCore()
    specs = (TensorSpec("x", "uint8", (4,)),)
    header = (TensorHeader("x", "uint8", (4,), "raw", 4),)
    core.handle(e.RouteLoaded(e.Route("m", 1, specs, specs, "L", 2, ("a", "b"))), 0)
    core.handle(e.RouteReady(1), 0)
    core.handle(e.LinkUp("L"), 0)
    core.handle(e.CreditArrived("L", Credit(9, 99)), 0)
    core.handle(e.DevicesQuiet({"a": 0.0, "b": 0.0}), 0)
    for name in (b"r", b"s"):
        core.handle(e.InferArrived(b"c", Infer(name.ljust(16), "m", NO_DEADLINE, header), ("f",)), 0)
    again = core.handle(e.Tick(), 2 * LEAST_S)
    assert [each.item.request for each in again if isinstance(each, e.SendItem)] == [1, 2]
    assert core.counters.replayed == 2
    result = e.ItemReturned(Item(1, 1, 2, NO_DEADLINE, header), ("f",))
    assert [type(each) for each in core.handle(result, 1)] == [e.Deliver]
    assert core.handle(result, 1) == []


def test_a_route_from_which_nothing_comes_back_stands_still_whatever_its_devices_do(watch: Overdue) -> None:
    assert watch.still(100.0) == []
    watch.sent(1, 7, 5.0)
    watch.sent(1, 8, 5.3)
    assert watch.still(4.9 + LEAST_S) == []
    assert watch.still(5.1 + LEAST_S) == [1]
    watch.back(1, 7, 5.5)
    watch.left(1, 7)
    assert watch.still(6.4) == []  # twice as long as the slowest one took
    assert watch.still(6.6) == [1]
    watch.back(1, 8, 6.5)
    watch.left(1, 8)
    assert watch.still(60.0) == []  # nothing is under way
    watch.sent(1, 9, 60.0)
    assert watch.still(60.1) == []


def test_sending_again_does_not_hide_that_a_route_stands_still(watch: Overdue) -> None:
    watch.sent(1, 7, 5.0)
    watch.left(1, 7)
    watch.sent(1, 7, 5.4)
    assert watch.still(5.5) == [1]
