"""The dispatcher's core: events in, lists of instructions out."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from defer.dispatcher import events as e
from defer.dispatcher import report as status
from defer.dispatcher.core import DispatcherCore
from node_agent.messages import (
    NO_DEADLINE,
    Credit,
    Failure,
    Infer,
    Item,
    Rejection,
    Result,
    TensorHeader,
    TensorSpec,
)

INPUTS = (TensorSpec("x", "float32", ("N", 4)),)
OUTPUTS = (TensorSpec("y", "float32", ("N", 2)), TensorSpec("z", "int64", ("N",)))
Y = TensorHeader("y", "float32", (1, 2), "raw", 8)
Z = TensorHeader("z", "int64", (1,), "raw", 8)
S = 10**9


def route(
    epoch: int = 1, model: str = "m", link: str = "L", devices: tuple[str, ...] = ("a", "b")
) -> e.Route:
    return e.Route(model, epoch, INPUTS, OUTPUTS, link, 2, devices)


def x(rows: int = 1) -> TensorHeader:
    return TensorHeader("x", "float32", (rows, 4), "raw", rows * 16)


def infer(
    name: str,
    *,
    model: str = "",
    left: int = 5 * S,
    tensors: tuple[TensorHeader, ...] = (),
    outputs: tuple[str, ...] = (),
    priority: int = 0,
) -> Infer:
    return Infer(name.encode().ljust(16), model, left, tensors or (x(),), outputs, priority=priority)


def ready_core(items: int = 100, limits: e.Limits | None = None) -> DispatcherCore:
    core = DispatcherCore(limits)
    core.handle(e.RouteLoaded(route()), 0)
    core.handle(e.RouteReady(1), 0)
    core.handle(e.LinkUp("L"), 0)
    if items:
        core.handle(e.CreditArrived("L", Credit(items, 1 << 20)), 0)
    return core


def ask(
    core: DispatcherCore, name: str, now: float = 0, client: bytes = b"c", **more: object
) -> list[e.Instruction]:
    return core.handle(e.InferArrived(client, infer(name, **more), ("fx",)), now)  # type: ignore[arg-type]


def back(
    core: DispatcherCore, request: int, now: float = 0, *, epoch: int = 1, hop: int = 2
) -> list[e.Instruction]:
    return core.handle(e.ItemReturned(Item(epoch, request, hop, NO_DEADLINE, (Z, Y)), ("fz", "fy")), now)


def refused(out: list[e.Instruction]) -> Rejection:
    (only,) = out
    assert isinstance(only, e.Reject)
    return only.rejection


def test_a_request_goes_out_and_its_result_comes_back_in_the_models_order() -> None:
    core = ready_core()
    assert ask(core, "r", now=1.0) == [e.SendItem("L", Item(1, 1, 0, 5 * S, (x(),)), ("fx",))]
    assert core.nbytes == 16
    result = Result(b"r".ljust(16), (Y, Z), 0.5)
    assert back(core, 1, now=1.5) == [e.Deliver(b"c", result, ("fy", "fz"))]
    assert (core.nbytes, core.requests, core.next_deadline()) == (0, {}, math.inf)


def test_only_the_wanted_outputs_are_delivered() -> None:
    core = ready_core()
    ask(core, "r", outputs=("z",))
    (deliver,) = back(core, 1)
    assert isinstance(deliver, e.Deliver)
    assert deliver.result.tensors == (Z,)
    assert deliver.frames == ("fz",)


def test_without_credit_requests_wait_in_order_and_go_when_it_comes() -> None:
    core = ready_core(items=1)
    assert len(ask(core, "a")) == 1
    assert ask(core, "b", now=1) == []
    assert ask(core, "c", now=1) == []
    sent = core.handle(e.CreditArrived("L", Credit(5, 0)), 3)
    assert [(i.item.request, i.item.remaining_ns) for i in sent if isinstance(i, e.SendItem)] == [
        (2, 3 * S),
        (3, 3 * S),
    ]


@pytest.mark.parametrize("moved", [False, True])
def test_the_highest_priority_goes_first_and_equal_ones_in_order(moved: bool) -> None:
    core = ready_core(items=0)
    given = [0, 11, 3, 10, 1, 3, 0, 12, 1]
    for number, priority in enumerate(given):
        assert ask(core, f"{number}", priority=priority) == []
    link = "L"
    if moved:  # to a route that takes the model over
        link = "M"
        core.handle(e.RouteLoaded(route(2, link=link, devices=("a",))), 0)
        core.handle(e.LinkUp(link), 0)
        core.handle(e.DeviceLost("b", "gone"), 0)
        core.handle(e.RouteReady(2), 0)
    sent = core.handle(e.CreditArrived(link, Credit(100, 1 << 20)), 0)
    order = [core.requests[i.item.request].infer.request.strip() for i in sent if isinstance(i, e.SendItem)]
    assert order == [b"4", b"8", b"2", b"5", b"0", b"3", b"6", b"1", b"7"]


def test_byte_credit_lets_one_item_larger_than_the_rest_pass_and_then_stops() -> None:
    core = ready_core(items=0)
    core.handle(e.CreditArrived("L", Credit(10, 20)), 0)
    assert len(ask(core, "a")) == 1
    assert len(ask(core, "b")) == 1
    assert ask(core, "c") == []
    assert len(core.handle(e.CreditArrived("L", Credit(0, 32)), 0)) == 1


def test_a_resend_in_flight_runs_once_and_answers_whoever_asked_last() -> None:
    core = ready_core()
    ask(core, "r", client=b"old")
    assert ask(core, "r", client=b"new") == []
    (deliver,) = back(core, 1)
    assert isinstance(deliver, e.Deliver)
    assert deliver.client == b"new"
    assert core.counters.repeated == 1


def test_a_resend_after_the_answer_gets_the_same_answer() -> None:
    core = ready_core()
    ask(core, "r")
    first = back(core, 1)
    assert ask(core, "r", now=3) == first
    ask(core, "s")
    failed = core.handle(e.FailureReturned(Failure(1, 2, 2, "run-failed", "boom", "b")), 4)
    assert ask(core, "s", now=5) == failed


def test_kept_answers_are_bounded_in_number_and_bytes() -> None:
    core = ready_core(limits=e.Limits(answers=2, answer_bytes=40, spent=1))
    for number, name in enumerate("abcd", 1):
        ask(core, name)
        back(core, number)
    assert len(core.answers) == 2
    assert core.answers.nbytes == 32
    assert isinstance(ask(core, "a")[0], e.SendItem)  # forgotten altogether
    assert isinstance(ask(core, "d")[0], e.Deliver)


@pytest.mark.parametrize("limits", [e.Limits(answer_bytes=15), e.Limits(answers=1), e.Limits(answers=0)])
def test_a_request_whose_answer_is_not_kept_does_not_run_again(limits: e.Limits) -> None:
    core = ready_core(limits=limits)
    for number, name in enumerate("ab", 1):
        ask(core, name)
        back(core, number)
    again = refused(ask(core, "a"))
    assert (again.code, "answered already" in again.message) == ("request-failed", True)


def test_a_request_that_never_fits_is_too_large_whatever_waits() -> None:
    core = ready_core(limits=e.Limits(nbytes=20))
    for _ in range(2):
        rejection = refused(ask(core, "large", tensors=(x(2),)))
        assert (rejection.code, rejection.message) == (
            "too-large",
            "the request's inputs are too large: 32 B, at most 20 B",
        )
        ask(core, "small")
    assert refused(ask(core, "second")).code == "overloaded"
    back(core, 1)
    assert isinstance(ask(core, "second")[0], e.SendItem)


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        ({"model": "other"}, "unknown-model", "deployed: m"),
        ({"tensors": (TensorHeader("q", "float32", (1, 4), "raw", 16),)}, "wrong-input", "x: float32[N, 4]"),
        ({"tensors": (x(), x())}, "wrong-input", "given twice"),
        (
            {"tensors": (TensorHeader("x", "float64", (1, 4), "raw", 32),)},
            "wrong-input",
            "element type float64",
        ),
        ({"tensors": (TensorHeader("x", "float32", (4,), "raw", 16),)}, "wrong-input", "shape [4]"),
        ({"tensors": (TensorHeader("x", "float32", (1, 5), "raw", 20),)}, "wrong-input", "shape [1, 5]"),
        ({"outputs": ("w",)}, "wrong-input", "no output 'w'"),
        ({"left": 0}, "deadline-exceeded", "after its deadline"),
    ],
)
def test_what_cannot_run_is_refused_at_once(more: dict[str, object], code: str, says: str) -> None:
    core = ready_core()
    rejection = refused(ask(core, "r", **more))
    assert rejection.code == code
    assert says in rejection.message
    assert core.requests == {}
    assert core.counters.refused[code] == 1


def test_free_dimensions_of_one_name_must_agree() -> None:
    core = DispatcherCore()
    two = (TensorSpec("p", "float32", ("N", 2)), TensorSpec("q", "float32", ("N", "M")))
    core.handle(e.RouteLoaded(e.Route("m", 1, two, OUTPUTS, "L", 1, ("a",))), 0)
    core.handle(e.RouteReady(1), 0)
    p, q = TensorHeader("p", "float32", (3, 2), "raw", 24), TensorHeader("q", "float32", (4, 9), "raw", 144)
    assert (
        "dimension 'N' is 3 in input 'p' and 4 in input 'q'"
        in refused(ask(core, "r", tensors=(p, q))).message
    )


def test_overload_is_refused_with_the_limit() -> None:
    core = ready_core(items=0, limits=e.Limits(requests=2))
    ask(core, "a")
    ask(core, "b")
    rejection = refused(ask(core, "c"))
    assert rejection.code == "overloaded"
    assert "limit 2" in rejection.message
    core = ready_core(limits=e.Limits(nbytes=40))
    ask(core, "a")
    ask(core, "b")
    assert "limit of 40" in refused(ask(core, "c")).message
    back(core, 1)
    assert isinstance(ask(core, "c")[0], e.SendItem)


def test_not_ready_says_why() -> None:
    core = DispatcherCore()
    assert refused(ask(core, "r")).message == "no model is deployed"
    core.handle(e.ModelAnnounced("m", "profiling"), 0)
    rejection = refused(ask(core, "r"))
    assert (rejection.code, rejection.message) == ("not-ready", "model 'm' is not ready: profiling")
    core.handle(e.RouteLoaded(route()), 0)
    assert refused(ask(core, "r")).code == "not-ready"


def test_of_several_models_one_must_be_named() -> None:
    core = ready_core()
    core.handle(e.RouteLoaded(route(2, "n")), 0)
    core.handle(e.RouteReady(2), 0)
    assert refused(ask(core, "r")).code == "unknown-model"
    (sent,) = ask(core, "r", model="n")
    assert isinstance(sent, e.SendItem)
    assert sent.item.epoch == 2


def test_a_canary_runs_on_a_route_that_is_not_served_yet() -> None:
    core = ready_core()
    core.handle(e.RouteLoaded(route(2)), 0)
    (sent,) = core.handle(e.InferArrived(b"", infer("k"), ("f",), 2), 0)
    assert isinstance(sent, e.SendItem)
    assert sent.item.epoch == 2
    assert isinstance(ask(core, "r")[0], e.SendItem)
    assert core.requests[2].epoch == 1


def test_deadlines_end_requests_with_what_did_not_answer() -> None:
    core = ready_core(items=1)
    ask(core, "sent", left=2 * S)
    ask(core, "waits", left=1 * S)
    assert core.ledger.next_expiry() == 1
    first = refused(core.handle(e.Tick(), 1))
    assert first.code == "deadline-exceeded"
    assert "waited for a" in first.message
    told, dropped = core.handle(e.Tick(), 2.5)
    assert "a → b" in refused([told]).message
    assert (
        "before its deadline, 2 s after it arrived" in refused([told]).message
    )  # not the 2.5 s that have passed
    assert dropped == e.CancelItems("L", 1, (1,))
    assert core.next_deadline() == math.inf
    assert back(core, 1, 3) == []
    assert core.counters.stale == 1


def test_a_request_without_deadline_ends_at_the_dispatchers_own() -> None:
    core = ready_core(limits=e.Limits(longest_s=60))
    (sent,) = ask(core, "r", left=NO_DEADLINE)
    assert isinstance(sent, e.SendItem)
    assert sent.item.remaining_ns == NO_DEADLINE
    assert core.ledger.next_expiry() == 60


def test_results_of_another_epoch_twice_or_malformed() -> None:
    core = ready_core()
    ask(core, "a")
    assert back(core, 1, epoch=7) == []
    assert back(core, 9) == []
    assert len(back(core, 1)) == 1
    assert back(core, 1) == []
    assert core.counters.stale == 3
    ask(core, "b")
    assert refused(back(core, 2, hop=1)).code == "agent-fault"
    ask(core, "c")
    short = core.handle(e.ItemReturned(Item(1, 3, 2, NO_DEADLINE, (Y,)), ("fy",)), 0)
    assert "without 'z'" in refused(short).message
    assert core.counters.failed["agent-fault"] == 2


def test_failures_name_the_device() -> None:
    core = ready_core()
    ask(core, "a")
    rejection = refused(core.handle(e.FailureReturned(Failure(1, 1, 2, "run-failed", "no kernel", "b")), 1))
    assert (rejection.code, rejection.message) == ("run-failed", "no kernel (on device 'b')")


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


def test_cancelled_requests_are_dropped_on_the_way_and_only_by_who_asked() -> None:
    core = ready_core(items=1)
    ask(core, "sent")
    ask(core, "waits")
    assert core.handle(e.CancelArrived(b"other", b"sent".ljust(16)), 1) == []
    told, dropped = core.handle(e.CancelArrived(b"c", b"sent".ljust(16)), 1)
    assert refused([told]).code == "cancelled"
    assert dropped == e.CancelItems("L", 1, (1,))
    assert refused(core.handle(e.CancelArrived(b"c", b"waits".ljust(16)), 1)).code == "cancelled"
    assert core.handle(e.CancelArrived(b"c", b"sent".ljust(16)), 1) == []
    assert (core.requests, back(core, 1, 2)) == ({}, [])


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


def test_a_peer_with_absurd_credit_is_cut_off() -> None:
    core = ready_core()
    ask(core, "a")
    (cut,) = core.handle(e.CreditArrived("L", Credit(-1, 0)), 0)
    assert isinstance(cut, e.CutLink)
    core.handle(e.LinkUp("L"), 1)
    assert len(core.handle(e.CreditArrived("L", Credit(1, 99)), 1)) == 1


def test_a_new_route_takes_over_and_the_old_one_drains() -> None:
    core = ready_core()
    ask(core, "old")
    core.handle(e.RouteLoaded(route(2, link="L2")), 0)
    core.handle(e.LinkUp("L2"), 0)
    core.handle(e.CreditArrived("L2", Credit(9, 999)), 0)
    assert core.handle(e.RouteReady(2), 0) == []
    (sent,) = ask(core, "new")
    assert isinstance(sent, e.SendItem)
    assert (sent.link, sent.item.epoch) == ("L2", 2)
    deliver, drained = back(core, 1)
    assert isinstance(deliver, e.Deliver)
    assert drained == e.Drained(1)
    assert list(core.routes.by_epoch) == [2]


def test_undeploying_drains_or_drops() -> None:
    core = ready_core(items=1)
    ask(core, "a")
    ask(core, "b")
    core.handle(e.ModelForgotten("m"), 0)
    assert core.handle(e.RouteRetired(1), 0) == []
    assert refused(ask(core, "c")).code == "not-ready"
    out = core.handle(e.RouteDropped(1, "undeployed"), 1)
    assert [type(i) for i in out] == [e.Reject, e.Reject, e.Drained]
    idle = ready_core()
    assert idle.handle(e.RouteRetired(1), 0) == [e.Drained(1)]


def test_closing_refuses_new_requests_and_finishes_old_ones() -> None:
    core = ready_core()
    ask(core, "a")
    core.handle(e.Closing(), 0)
    assert "shutting down" in refused(ask(core, "b")).message
    assert len(back(core, 1)) == 1


def test_stopping_answers_all_that_was_accepted_on_every_route() -> None:
    core = ready_core(items=2)
    core.handle(e.RouteLoaded(route(2, link="elsewhere")), 0)
    core.handle(e.InferArrived(b"", infer("canary"), ("fx",), 2), 0)
    for name in ("sent", "also", "waits"):
        ask(core, name)
    core.handle(e.RouteRetired(1), 0)
    out = core.handle(e.Stopped(), 1)
    ended = [i.rejection for i in out if isinstance(i, e.Reject)]
    assert sorted(r.request.strip() for r in ended) == [b"also", b"canary", b"sent", b"waits"]
    assert {(r.code, r.message) for r in ended} == {("not-ready", "the dispatcher is shutting down")}
    assert [i for i in out if isinstance(i, e.Drained)] == [e.Drained(1)]
    assert core.requests == {}
    assert refused(ask(core, "late")).code == "not-ready"


def test_two_routes_on_one_connection_take_turns() -> None:
    core = ready_core(items=0)
    core.handle(e.RouteLoaded(route(2, "n")), 0)
    core.handle(e.RouteReady(2), 0)
    for name in "abc":
        ask(core, name, model="m")
    ask(core, "d", model="n")
    sent = core.handle(e.CreditArrived("L", Credit(2, 999)), 0)
    assert {i.item.epoch for i in sent if isinstance(i, e.SendItem)} == {1, 2}


def test_rates_and_latencies() -> None:
    core = ready_core()
    for number in range(1, 21):
        ask(core, f"r{number}", now=number / 10)
        back(core, number, now=number / 10 + 0.05)
    traffic = core.routes[1].traffic
    assert traffic.answered == 20
    assert traffic.latency(0.5) == pytest.approx(0.05)
    assert traffic.rate(3.0) == pytest.approx(20 / 3, rel=0.1)
    assert traffic.rate(60.0) == 0


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


def test_where_the_canary_of_what_serves_already_fails_nothing_behind_it_does() -> None:
    core = ready_core()
    ask(core, "r")
    core.handle(e.DeviceLost("a", "gone", restarted=True), 1)
    core.handle(e.RouteLoaded(route(2, link="L", devices=("c",))), 2)
    core.handle(e.InferArrived(b"", infer("canary"), ("fx",), 2), 2)
    core.handle(e.RouteReady(2, the_same=True), 2)
    canary, behind = 2, 1
    (said,) = core.handle(e.FailureReturned(Failure(2, canary, 2, "run-failed", "it broke", "c")), 3)
    assert refused([said]).request == infer("canary").request
    assert core.handle(e.FailureReturned(Failure(2, behind, 2, "run-failed", "it broke", "c")), 3) == []
    core.handle(e.RouteLoaded(route(3, link="L", devices=("d",))), 4)
    out = core.handle(e.RouteReady(3, the_same=True), 4)
    assert [said.item.request for said in out if isinstance(said, e.SendItem)] == [behind]
    assert isinstance(back(core, behind, 5, epoch=3)[0], e.Deliver)


def test_a_failure_of_one_request_ends_it_alone_where_others_have_passed() -> None:
    core = ready_core()
    for name in ("one", "two", "three"):
        ask(core, name)
    back(core, 1)
    assert refused(core.handle(e.FailureReturned(Failure(1, 2, 1, "wrong-input", "no", "a")), 1))
    assert core.routes[1].state == "ready"
    assert isinstance(back(core, 3)[0], e.Deliver)
