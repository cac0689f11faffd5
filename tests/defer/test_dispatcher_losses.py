"""Devices and links that go and come: what becomes of accepted requests, and which routes take over."""

from __future__ import annotations

from dataclasses import replace

import pytest

from defer.dispatcher import events as e
from defer.dispatcher import report as status
from defer.dispatcher.core import DispatcherCore
from node_agent.messages import (
    NO_DEADLINE,
    Credit,
    TensorSpec,
)
from tests.defer.core_fixtures import (
    S,
    ask,
    back,
    infer,
    ready_core,
    refused,
    route,
)


def test_while_a_device_is_lost_requests_wait_for_it() -> None:
    core = ready_core(items=1)
    ask(core, "sent")
    ask(core, "waits")
    assert core.handle(e.DeviceLost("b", "no heartbeat"), 1) == []
    assert ask(core, "new") == []
    core.handle(e.CreditArrived("L", Credit(9, 999)), 1)
    assert core.handle(e.DeviceLost("z", "unrelated"), 1) == []
    again = core.handle(e.DeviceBack("b"), 2)
    assert [i.item.request for i in again if isinstance(i, e.SendItem)] == [2, 3]
    assert len(back(core, 1, 3)) == 1


def test_what_nobody_can_hold_ends_at_its_deadline_with_the_reason() -> None:
    core = ready_core()
    ask(core, "sent", left=5 * S)
    core.handle(e.DeviceLost("b", "no heartbeat"), 1)
    core.handle(e.ModelStuck("m", "no plan holds it without 'b'"), 2)
    late = refused(ask(core, "new", now=2))
    assert (late.code, late.message) == ("not-ready", "model 'm' is not ready: no plan holds it without 'b'")
    told, _ = core.handle(e.Tick(), 5)
    assert refused([told]).code == "deadline-exceeded"
    assert "no plan holds it without 'b'" in refused([told]).message
    core.handle(e.DeviceBack("b"), 6)
    assert isinstance(ask(core, "new", now=6)[0], e.SendItem)


def test_a_plan_for_what_is_left_takes_what_was_in_flight_with_its_deadline() -> None:
    core = ready_core(items=1)
    ask(core, "sent", left=9 * S)
    ask(core, "waits", left=9 * S)
    core.handle(e.DeviceLost("b", "its connection closed"), 1)
    core.handle(e.RouteLoaded(route(2, link="M", devices=("a",))), 2)
    core.handle(e.LinkUp("M"), 2)
    core.handle(e.CreditArrived("M", Credit(9, 999)), 2)
    *items, drained = core.handle(e.RouteReady(2), 3)
    assert [
        (i.item.epoch, i.item.request, i.item.remaining_ns) for i in items if isinstance(i, e.SendItem)
    ] == [
        (2, 1, 6 * S),
        (2, 2, 6 * S),
    ]
    assert drained == e.Drained(1)
    assert back(core, 1, 4) == []
    assert len(back(core, 1, 4, epoch=2)) == 1
    assert back(core, 1, 5, epoch=2) == []


def test_a_route_that_stands_by_takes_over_at_once() -> None:
    core = ready_core()
    for epoch, devices in ((2, ("a", "c")), (3, ("c",))):
        core.handle(e.RouteLoaded(route(epoch, link="L", devices=devices)), 0)
        core.handle(e.RouteStands(epoch), 0)
    ask(core, "r")
    sent, drained, took = core.handle(e.DeviceLost("a", "its connection closed"), 1)
    assert isinstance(sent, e.SendItem)
    assert (sent.item.epoch, took, drained) == (3, e.TookOver("m", 3), e.Drained(1))
    # The other one passes the lost device as well; it takes over when that is back and this one is lost.
    core.handle(e.DeviceBack("a"), 2)
    out = core.handle(e.DeviceLost("b", "unrelated"), 3)
    assert out == []
    assert core.routes.standing == {"m": (2,)}
    core.handle(e.RouteVoid(2, "unloaded"), 4)
    assert core.handle(e.DeviceLost("c", "its connection closed"), 5) == []
    assert [state.busy for state in core.routes.by_epoch.values()] == [0, 1]


def standing_core() -> DispatcherCore:
    """Route 1 of m serves; 2 stands by, and 3 with 4 beside it, which come to less."""
    core = ready_core()
    for epoch, device in ((2, "c"), (3, "d"), (4, "e")):
        core.handle(e.RouteLoaded(route(epoch, link="L", devices=(device,))), 0)
    core.handle(e.RouteStands(2, value=2.0), 0)
    core.handle(e.RouteStands(3, (4,), 1.0), 0)
    return core


def test_of_those_that_stand_by_the_best_takes_over_with_the_routes_beside_it() -> None:
    core = standing_core()
    out = core.handle(e.DeviceLost("a", "its connection closed"), 1)
    assert e.TookOver("m", 3) in out
    assert core.routes.serving == {"m": (3, 4)}
    assert core.routes.standing == {"m": (2,)}
    # One of several routes that are lost leaves the others, and the last one what still stands by.
    assert e.TookOver("m", 2) not in core.handle(e.DeviceLost("d", "gone"), 2)
    assert e.TookOver("m", 2) in core.handle(e.DeviceLost("e", "gone"), 3)


@pytest.mark.parametrize("lost", ["d", "e"])
def test_routes_stand_by_together_or_not_at_all(lost: str) -> None:
    core = standing_core()
    core.handle(e.DeviceLost(lost, "gone", restarted=True), 1)
    core.handle(e.DeviceBack(lost), 2)
    assert core.routes.whole("m") == {2}
    assert e.TookOver("m", 2) in core.handle(e.DeviceLost("a", "its connection closed"), 3)


def test_what_becomes_able_after_the_loss_takes_over_then() -> None:
    core = ready_core()
    ask(core, "r")
    core.handle(e.RouteLoaded(route(2, link="L", devices=("c",))), 0)
    core.handle(e.RouteStands(2), 0)
    core.handle(e.DeviceLost("c", "silent"), 1)
    assert core.handle(e.DeviceLost("a", "silent"), 2) == []
    out = core.handle(e.DeviceBack("c"), 3)
    assert e.TookOver("m", 2) in out
    assert e.Drained(1) in out
    assert core.routes[2].busy == 1
    # So does what is loaded only then; what is back with all that it held needs nobody.
    core.handle(e.DeviceLost("c", "silent"), 4)
    core.handle(e.RouteLoaded(route(3, link="L", devices=("d",))), 5)
    assert e.TookOver("m", 3) in core.handle(e.RouteStands(3), 5)
    core.handle(e.RouteLoaded(route(4, link="L", devices=("d",))), 6)
    core.handle(e.DeviceLost("d", "silent"), 6)
    core.handle(e.RouteStands(4), 6)
    assert e.TookOver("m", 4) not in core.handle(e.DeviceBack("d"), 7)
    assert core.routes.serving == {"m": (3,)}


def test_what_is_not_needed_goes_unless_it_has_taken_over() -> None:
    core = standing_core()
    ask(core, "r")
    core.handle(e.DeviceLost("a", "its connection closed"), 1)
    for first, beside in ((3, (4,)), (9, ())):
        assert core.handle(e.RouteStandsDown(first, beside, "not needed"), 2) == []
    assert core.routes.serving == {"m": (3, 4)}
    assert sum(state.busy for state in core.routes.by_epoch.values()) == 1
    assert core.handle(e.RouteStandsDown(2, (), "not needed"), 3) == [e.Drained(2)]
    # One that cannot take over any more is dropped too, with those beside it, even before it was told to stand.
    for epoch in (5, 6, 7, 8):
        core.handle(e.RouteLoaded(route(epoch, link="L", devices=("f",))), 4)
    core.handle(e.RouteStands(5, (6,)), 4)
    core.handle(e.RouteVoid(5, "unloaded"), 5)
    assert core.handle(e.RouteStandsDown(5, (6,), "not needed"), 6) == [e.Drained(5), e.Drained(6)]
    assert core.handle(e.RouteStandsDown(7, (8,), "not needed"), 6) == [e.Drained(7), e.Drained(8)]
    core.handle(e.RouteStands(7, (8,)), 7)
    assert core.routes.standing == {}


def test_what_stands_by_for_a_model_that_is_replaced_goes_with_it() -> None:
    core = standing_core()
    core.handle(e.RouteLoaded(route(5, link="L", devices=("f",))), 1)
    out = core.handle(e.RouteReady(5), 1)
    assert set(out) >= {e.Drained(2), e.Drained(3), e.Drained(4)}
    assert core.routes.standing == {}
    assert e.TookOver("m", 2) not in core.handle(e.DeviceLost("f", "gone"), 2)


def test_what_stands_by_stays_when_the_same_model_is_served_by_another_plan() -> None:
    core = standing_core()
    core.handle(e.RouteLoaded(route(5, link="L", devices=("f",))), 1)
    core.handle(e.RouteReady(5, the_same=True), 1)
    assert core.routes.standing == {"m": (2, 3)}
    assert e.TookOver("m", 3) in core.handle(e.DeviceLost("f", "gone"), 2)


def test_the_counts_of_a_model_go_on_in_what_takes_over_and_start_anew_in_another_version() -> None:
    def counts() -> list[tuple[str, int, int]]:
        told = status.deployments_of(core, 9)
        return [(info.state, info.accepted, info.answered) for info in told]

    core = standing_core()
    for name in ("one", "two"):
        ask(core, name)
    back(core, 1)
    assert counts() == [("ready", 2, 1), ("standby", 0, 0), ("standby", 0, 0), ("standby", 0, 0)]
    core.handle(e.DeviceLost("a", "gone"), 1)
    assert counts() == [("ready", 2, 1), ("ready", 0, 0), ("standby", 0, 0)]
    core.handle(e.RouteLoaded(route(5, link="L", devices=("f",))), 1)
    core.handle(e.RouteReady(5, the_same=True), 1)
    # The one with the request under way drains.
    assert [state for state, *_ in counts()] == ["retired", "ready", "standby"]
    back(core, 2, epoch=3)
    assert counts()[0] == ("ready", 2, 2)
    core.handle(e.RouteLoaded(route(6, link="L", devices=("f",))), 1)
    core.handle(e.RouteReady(6), 1)
    assert counts() == [("ready", 0, 0)]


def test_a_void_route_is_not_ready_again() -> None:
    core = ready_core()
    core.handle(e.DeviceLost("b", "silent"), 1)
    core.handle(e.RouteVoid(1, "unloaded to make room"), 2)
    core.handle(e.DeviceBack("b"), 3)
    assert core.routes[1].state == "lost"


def test_requests_on_a_void_route_wait_and_a_canary_ends() -> None:
    core = ready_core()
    ask(core, "r")
    core.handle(e.RouteLoaded(route(2)), 1)
    core.handle(e.InferArrived(b"", infer("canary"), ("fx",), 2), 1)
    (told,) = core.handle(e.RouteVoid(2, "nothing passes the link a → b"), 2)
    assert refused([told]).code == "agent-lost"
    assert core.handle(e.RouteVoid(1, "nothing passes the link a → b"), 2) == []
    assert core.routes[1].busy == 1
    core.handle(e.RouteLoaded(route(3)), 3)
    core.handle(e.RouteReady(3), 3)
    assert core.routes[3].busy == 1


def test_what_is_replaced_by_a_model_of_another_shape_ends() -> None:
    core = ready_core()
    ask(core, "r")
    core.handle(e.DeviceLost("b", "gone"), 1)
    core.handle(e.RouteLoaded(replace(route(2), inputs=(TensorSpec("x", "float32", ("N", 5)),))), 2)
    told, drained = core.handle(e.RouteReady(2), 2)
    assert refused([told]).code == "request-failed"
    assert drained == e.Drained(1)


def test_a_request_at_which_device_after_device_is_lost_ends() -> None:
    core = ready_core()
    ask(core, "poison", left=NO_DEADLINE)
    for count in range(1, 9):
        out = core.handle(e.DeviceLost("b", "it hangs"), count)
        core.handle(e.DeviceBack("b"), count)
    assert "at the loss of 8 devices" in refused(out).message


def test_a_canary_on_a_lost_device_ends_at_once() -> None:
    core = DispatcherCore()
    core.handle(e.RouteLoaded(route()), 0)
    core.handle(e.InferArrived(b"", infer("c"), ("fx",), 1), 0)
    assert refused(core.handle(e.DeviceLost("a", "gone"), 1)).code == "agent-lost"


def test_what_a_restarted_agent_had_loaded_is_not_ready_again_when_it_was_only_out_of_reach_once_more() -> (
    None
):
    core = ready_core()
    core.handle(e.DeviceLost("b", "its connection closed"), 1)
    core.handle(e.DeviceLost("b", "its agent restarted", restarted=True), 2)
    core.handle(e.DeviceLost("b", "its connection closed"), 3)
    core.handle(e.DeviceBack("b"), 4)
    assert ask(core, "old") == []
    core.handle(e.RouteLoaded(route(2)), 5)
    moved, drained = core.handle(e.RouteReady(2), 5)
    assert isinstance(moved, e.SendItem)
    assert (moved.item.epoch, drained) == (2, e.Drained(1))


def test_after_a_broken_connection_requests_are_sent_again_in_order() -> None:
    core = ready_core(items=2)
    ask(core, "a")
    ask(core, "b")
    ask(core, "c")
    assert core.handle(e.LinkDown("L"), 1) == []
    assert core.handle(e.CreditArrived("L", Credit(9, 9999)), 1) == []
    core.handle(e.LinkUp("L"), 2)
    again = core.handle(e.CreditArrived("L", Credit(9, 9999)), 2)
    assert [i.item.request for i in again if isinstance(i, e.SendItem)] == [1, 2, 3]
    assert core.counters.replayed == 2
    assert len(back(core, 2, 3)) == 1


def test_when_the_connection_that_brings_results_breaks_what_is_under_way_is_sent_again() -> None:
    core = DispatcherCore()
    for epoch, last in ((1, "b"), (2, "z")):
        made = replace(route(epoch, model=f"m{epoch}", link=f"L{epoch}"), last=last)
        for event in (
            e.RouteLoaded(made),
            e.RouteReady(epoch),
            e.LinkUp(made.link),
            e.CreditArrived(made.link, Credit(3, 1 << 20)),
        ):
            core.handle(event, 0)
    ask(core, "a", model="m1")
    ask(core, "b", model="m1")
    ask(core, "c", model="m2")
    again = core.handle(e.ResultsBroke("b"), 1)
    assert [i.item.request for i in again if isinstance(i, e.SendItem)] == [1]  # credit for one more
    assert core.counters.replayed == 2
    again = core.handle(e.CreditArrived("L1", Credit(9, 0)), 1)
    assert [i.item.request for i in again if isinstance(i, e.SendItem)] == [2]
    assert len(back(core, 1, 2)) == 1
    assert back(core, 1, 2) == []  # the first run's result, late


def test_what_drains_on_a_route_whose_device_is_lost_then_moves_to_what_takes_the_models_place() -> None:
    core = ready_core()
    ask(core, "r")
    core.handle(e.RouteLoaded(route(2, link="L", devices=("a", "c"))), 1)
    core.handle(e.RouteReady(2), 1)
    # Both lose the device, and the request of the first one has nowhere to go until a third is there.
    assert core.handle(e.DeviceLost("a", "gone", restarted=True), 2) == []
    core.handle(e.RouteLoaded(route(3, link="L", devices=("c",))), 3)
    out = core.handle(e.RouteReady(3), 3)
    assert [said.item.epoch for said in out if isinstance(said, e.SendItem)] == [3]
    assert core.routes.by_epoch.keys() == {3}
