"""Several routes of one model: each request takes the least burdened; a lost route leaves its requests to the rest."""

from __future__ import annotations

import heapq
from dataclasses import replace

import pytest

from defer.dispatcher import events as e
from defer.dispatcher.core import DispatcherCore
from node_agent.messages import NO_DEADLINE, Credit, Infer, Item, TensorHeader, TensorSpec

INPUTS = (TensorSpec("x", "float32", (1, 4)),)
OUTPUTS = (TensorSpec("y", "float32", (1, 2)),)
X, Y = TensorHeader("x", "float32", (1, 4), "raw", 16), TensorHeader("y", "float32", (1, 2), "raw", 8)


def route(epoch: int, link: str, devices: tuple[str, ...] = ("a",)) -> e.Route:
    return e.Route("m", epoch, INPUTS, OUTPUTS, link, 2, devices)


def ask(core: DispatcherCore, name: str, now: float = 0) -> list[e.Instruction]:
    infer = Infer(name.encode().ljust(16), "m", 900 * 10**9, (X,), ())
    return core.handle(e.InferArrived(b"client", infer, ("frame",)), now)


def back(core: DispatcherCore, request: int, *, epoch: int, now: float = 0) -> list[e.Instruction]:
    return core.handle(e.ItemReturned(Item(epoch, request, 2, NO_DEADLINE, (Y,)), ("frame",)), now)


def core_of(*fractions: float, items: int = 1000) -> DispatcherCore:
    """Routes 1, 2, … with links of their own; each passes device `a` and one of its own, as fast as its part says."""
    core = DispatcherCore()
    epochs = range(1, len(fractions) + 1)
    for epoch, fraction in zip(epochs, fractions, strict=True):
        made = replace(
            route(epoch, link=f"L{epoch}", devices=("a", f"b{epoch}")),
            fraction=fraction,
            latency_s=0.01,
            work=(("device a", 0.001), (f"device b{epoch}", 0.01 / fraction)),
        )
        core.handle(e.RouteLoaded(made), 0)
        core.handle(e.LinkUp(f"L{epoch}"), 0)
        core.handle(e.CreditArrived(f"L{epoch}", Credit(items, 1 << 30)), 0)
    core.handle(e.RouteReady(1, tuple(epochs)[1:]), 0)
    return core


def sent(out: list[e.Instruction]) -> list[tuple[int, int]]:
    return [(each.item.epoch, each.item.request) for each in out if isinstance(each, e.SendItem)]


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.75, 0.25), (0.5, 0.3, 0.2)])
def test_near_full_load_the_planned_parts_come_out(fractions: tuple[float, ...]) -> None:
    core = core_of(*fractions)
    period = 0.01 / 0.95  # each device could take a request of its part every 10 ms
    free = dict.fromkeys(range(1, len(fractions) + 1), 0.0)
    under_way: list[tuple[float, int, int]] = []
    most = 0
    for number in range(1000):
        now = number * period
        while under_way and under_way[0][0] <= now:
            done, epoch, request = heapq.heappop(under_way)
            back(core, request, epoch=epoch, now=done)
        for epoch, request in sent(ask(core, f"r{number}", now)):
            free[epoch] = max(free[epoch], now) + 0.01 / fractions[epoch - 1]
            heapq.heappush(under_way, (free[epoch], epoch, request))
        most = max(most, len(core.requests))
    answered = [core.routes[epoch].traffic.answered for epoch in free]
    assert answered == pytest.approx([1000 * part for part in fractions], abs=40)
    assert most < 12 * len(fractions)


@pytest.mark.parametrize("parts", [(0.5, 0.5), (0.75, 0.25), (0.9, 0.1)])
def test_one_at_a_time_takes_turns_by_the_parts(parts: tuple[float, float]) -> None:
    core = core_of(*parts)
    for number in range(1, 101):
        ((epoch, request),) = sent(ask(core, f"r{number}"))
        back(core, request, epoch=epoch)
    answered = [core.routes[epoch].traffic.answered for epoch in (1, 2)]
    assert answered == pytest.approx([100 * part for part in parts], abs=1)


def test_a_replica_that_is_slower_than_predicted_gets_fewer_requests() -> None:
    core = core_of(0.5, 0.5)
    for number in range(1, 101):
        now = number * 0.1  # seldom enough for both, if both were as fast as predicted
        for epoch, request in sent(ask(core, f"r{number}", now)):
            if epoch == 2:
                back(core, request, epoch=2, now=now + 0.01)
    assert core.routes[1].busy <= 2
    assert core.routes[2].traffic.answered >= 98


def test_an_idle_route_that_is_slower_is_left_alone_until_queues_make_it_worth_while() -> None:
    core = DispatcherCore()
    for epoch, seconds in ((1, 0.01), (2, 0.05)):
        made = replace(
            route(epoch, f"L{epoch}", (f"b{epoch}",)),
            fraction=0.5,
            latency_s=seconds,
            work=((f"device b{epoch}", seconds),),
        )
        core.handle(e.RouteLoaded(made), 0)
        core.handle(e.LinkUp(f"L{epoch}"), 0)
        core.handle(e.CreditArrived(f"L{epoch}", Credit(100, 1 << 30)), 0)
    core.handle(e.RouteReady(1, (2,)), 0)
    for number in range(10):
        ((epoch, request),) = sent(ask(core, f"slow{number}", float(number)))
        assert epoch == 1
        back(core, request, epoch=1, now=number + 0.01)
    for number in range(60):
        ask(core, f"burst{number}", 20.0)
    busy = [core.routes[epoch].busy for epoch in (1, 2)]
    assert busy[0] > busy[1] > 0


def test_models_on_other_routes_are_taken_into_account() -> None:
    core = core_of(0.5, 0.5)
    other = replace(route(3, "L1", ("b1",)), model="n", latency_s=1.0, work=(("device b1", 1.0),))
    core.handle(e.RouteLoaded(other), 0)
    core.handle(e.RouteReady(3), 0)
    infer = Infer(b"other".ljust(16), "n", 9 * 10**9, (X,), ())
    core.handle(e.InferArrived(b"client", infer, ("frame",)), 0)
    taken = [sent(ask(core, f"r{number}"))[0][0] for number in range(10)]
    assert taken == [2] * 10


def test_what_is_under_way_on_a_lost_route_moves_to_the_others() -> None:
    core = core_of(0.5, 0.5)
    under_way = [pair for number in range(6) for pair in sent(ask(core, f"r{number}"))]
    mine = [request for epoch, request in under_way if epoch == 1]
    out = core.handle(e.DeviceLost("b1", "its connection closed"), 1)
    assert sent(out) == [(2, request) for request in mine]
    assert core.counters.replayed == len(mine)
    # What comes back on the lost route is not an answer any more; on the other one it is, once.
    assert back(core, mine[0], epoch=1) == []
    (told,) = back(core, mine[0], epoch=2)
    assert isinstance(told, e.Deliver)
    # The lost route is given up, so that agents drop what is left of it; new requests go where it works.
    assert e.Drained(1) in out
    assert core.routes.serving == {"m": (2,)}
    assert sent(ask(core, "s"))[0][0] == 2


def test_what_waits_for_credit_moves_too() -> None:
    core = core_of(0.5, 0.5, items=1)
    for number in range(4):
        ask(core, f"r{number}")
    assert sorted(core.routes[1].waiting) == [3]
    core.handle(e.DeviceLost("b1", "gone"), 1)
    assert sorted(core.routes[2].waiting) == [1, 3, 4]
    assert sent(core.handle(e.CreditArrived("L2", Credit(9, 1 << 20)), 2)) == [(2, 4), (2, 1), (2, 3)]


def test_for_a_device_that_all_routes_need_requests_wait() -> None:
    core = core_of(0.5, 0.5)
    ask(core, "r")
    assert core.handle(e.DeviceLost("a", "its connection closed"), 1) == []
    assert ask(core, "s") == []
    (told,) = sent(core.handle(e.DeviceBack("a"), 2))
    assert told[1] == 2


def test_a_new_deployment_retires_every_route_of_the_old() -> None:
    core = core_of(0.5, 0.5)
    core.handle(e.RouteLoaded(route(3, link="L1")), 1)
    assert core.handle(e.RouteReady(3), 1) == [e.Drained(1), e.Drained(2)]
    assert core.routes.serving == {"m": (3,)}
