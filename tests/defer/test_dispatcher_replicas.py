"""Several routes of one model: requests are dealt by the plan's parts; a lost route leaves its requests to the rest."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from defer.dispatcher import events as e
from defer.dispatcher.core import DispatcherCore
from node_agent.messages import NO_DEADLINE, Credit, Infer, Item, TensorHeader, TensorSpec

INPUTS = (TensorSpec("x", "float32", (1, 4)),)
OUTPUTS = (TensorSpec("y", "float32", (1, 2)),)
X, Y = TensorHeader("x", "float32", (1, 4), "raw", 16), TensorHeader("y", "float32", (1, 2), "raw", 8)


def route(epoch: int, link: str, devices: tuple[str, ...] = ("a",)) -> e.Route:
    return e.Route("m", epoch, INPUTS, OUTPUTS, link, 2, devices)


def ask(core: DispatcherCore, name: str) -> list[e.Instruction]:
    infer = Infer(name.encode().ljust(16), "m", 9 * 10**9, (X,), ())
    return core.handle(e.InferArrived(b"client", infer, ("frame",)), 0)


def back(core: DispatcherCore, request: int, *, epoch: int) -> list[e.Instruction]:
    return core.handle(e.ItemReturned(Item(epoch, request, 2, NO_DEADLINE, (Y,)), ("frame",)), 0)


def core_of(*fractions: float, items: int = 1000) -> DispatcherCore:
    """Routes 1, 2, … with links of their own; each passes device `a` and one of its own."""
    core = DispatcherCore()
    epochs = range(1, len(fractions) + 1)
    for epoch, fraction in zip(epochs, fractions, strict=True):
        made = replace(route(epoch, link=f"L{epoch}", devices=("a", f"b{epoch}")), fraction=fraction)
        core.handle(e.RouteLoaded(made), 0)
        core.handle(e.LinkUp(f"L{epoch}"), 0)
        core.handle(e.CreditArrived(f"L{epoch}", Credit(items, 1 << 30)), 0)
    core.handle(e.RouteReady(1, tuple(epochs)[1:]), 0)
    return core


def sent(out: list[e.Instruction]) -> list[tuple[int, int]]:
    return [(each.item.epoch, each.item.request) for each in out if isinstance(each, e.SendItem)]


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.75, 0.25), (0.5, 0.3, 0.2)])
def test_a_full_pipeline_deals_the_parts(fractions: tuple[float, ...]) -> None:
    core = core_of(*fractions)
    for number in range(100):
        ask(core, f"r{number}")
    held = [core.routes[epoch].busy for epoch in range(1, len(fractions) + 1)]
    assert held == pytest.approx([100 * each for each in fractions], abs=1.5)


@pytest.mark.parametrize("parts", [(0.5, 0.5), (0.75, 0.25), (0.9, 0.1)])
def test_one_at_a_time_takes_turns_by_the_parts(parts: tuple[float, float]) -> None:
    core = core_of(*parts)
    for number in range(1, 101):
        ((epoch, request),) = sent(ask(core, f"r{number}"))
        back(core, request, epoch=epoch)
    answered = [core.routes[epoch].traffic.answered for epoch in (1, 2)]
    assert answered == pytest.approx([100 * part for part in parts], abs=1)


def test_a_replica_that_is_slow_does_not_hold_the_others_up() -> None:
    core = core_of(0.5, 0.5)
    for number in range(1, 101):
        for epoch, request in sent(ask(core, f"r{number}")):
            if epoch == 2:
                back(core, request, epoch=2)
    assert core.routes[1].busy <= 2
    assert core.routes[2].traffic.answered >= 98


@given(st.lists(st.floats(0.05, 1), min_size=2, max_size=4), st.integers(0, 60))
def test_no_route_is_burdened_before_another_is(parts: list[float], count: int) -> None:
    fractions = [part / sum(parts) for part in parts]
    core = core_of(*fractions)
    for number in range(count):
        ask(core, f"r{number}")
    busy = [core.routes[epoch].busy for epoch in range(1, len(fractions) + 1)]
    assert sum(busy) == count
    burden = [held / part for held, part in zip(busy, fractions, strict=True)]
    before = [(held - 1) / part for held, part in zip(busy, fractions, strict=True)]
    assert max(before) <= min(burden) + 1e-9


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


def test_a_device_that_all_routes_need_ends_the_requests() -> None:
    core = core_of(0.5, 0.5)
    ask(core, "r")
    (told,) = core.handle(e.DeviceLost("a", "its connection closed"), 1)
    assert isinstance(told, e.Reject)
    assert told.rejection.code == "agent-lost"
    (told,) = ask(core, "s")
    assert isinstance(told, e.Reject)
    assert told.rejection.code == "not-ready"


def test_a_new_deployment_retires_every_route_of_the_old() -> None:
    core = core_of(0.5, 0.5)
    core.handle(e.RouteLoaded(route(3, link="L1")), 1)
    assert core.handle(e.RouteReady(3), 1) == [e.Drained(1), e.Drained(2)]
    assert core.routes.serving == {"m": (3,)}
