"""The dispatcher's core: events in, lists of instructions out."""

from __future__ import annotations

import math

import pytest

from defer.dispatcher import events as e
from defer.dispatcher.core import DispatcherCore
from node_agent.messages import (
    NO_DEADLINE,
    Credit,
    Failure,
    Item,
    Result,
    TensorHeader,
    TensorSpec,
)
from tests.defer.core_fixtures import (
    OUTPUTS,
    S,
    Y,
    Z,
    ask,
    back,
    infer,
    ready_core,
    refused,
    route,
    x,
)


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
