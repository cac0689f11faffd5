"""The client's core: events in, lists of instructions out."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from defer import client_events as c
from defer.api import ModelInfo
from defer.client_arrays import as_arrays, check_outputs
from defer.client_core import GRACE_S, PAUSE_S, ClientCore
from defer.errors import WrongInput
from node_agent.messages import NO_DEADLINE, Rejection, Result, TensorHeader, TensorSpec

X = TensorHeader("x", "float32", (1,), "raw", 4)
Y = TensorHeader("y", "float32", (1,), "raw", 4)


def submit(name: str, deadline: float = 10, *, patient: bool = False) -> c.Submit:
    return c.Submit(name.encode().ljust(16), "m", (), (X,), (b"fx",), deadline, patient)


def connected() -> ClientCore:
    core = ClientCore("host:1")
    core.handle(c.Connected(), 0)
    return core


def sent(out: list[c.Instruction]) -> list[tuple[bytes, int]]:
    assert all(isinstance(i, c.SendInfer) for i in out)
    return [(i.infer.request.strip(), i.infer.remaining_ns) for i in out if isinstance(i, c.SendInfer)]


def test_before_the_connection_stands_requests_wait() -> None:
    core = ClientCore("host:1")
    assert core.handle(submit("a"), 0) == []
    assert core.handle(submit("b", math.inf), 1) == []
    assert sent(core.handle(c.Connected(), 2)) == [(b"a", 8 * 10**9), (b"b", NO_DEADLINE)]


def test_a_result_resolves_once() -> None:
    core = connected()
    core.handle(submit("a"), 0)
    result = c.ResultArrived(Result(b"a".ljust(16), (Y,)), (b"fy",))
    assert core.handle(result, 1) == [c.Resolve(b"a".ljust(16), (Y,), (b"fy",))]
    assert core.handle(result, 1) == []
    assert core.late == 1
    assert core.unanswered == 0


def test_after_a_broken_connection_the_same_ids_are_sent_again_with_the_time_that_is_left() -> None:
    core = connected()
    core.handle(submit("a"), 0)
    core.handle(submit("b", 20), 0)
    core.handle(c.ResultArrived(Result(b"a".ljust(16), ()), ()), 1)
    assert core.handle(c.Disconnected(), 2) == []
    assert core.handle(submit("c"), 3) == []
    assert sent(core.handle(c.Connected(), 5)) == [(b"b", 15 * 10**9), (b"c", 5 * 10**9)]


def test_deadlines_say_who_did_not_answer() -> None:
    core = connected()
    core.handle(submit("a", 1), 0)
    assert core.next_wake() == 1 + GRACE_S
    assert core.handle(c.Tick(), 1.1) == []
    (fail,) = core.handle(c.Tick(), 1.3)
    assert isinstance(fail, c.Fail)
    assert (fail.code, fail.message) == (
        "deadline-exceeded",
        "the dispatcher at host:1 did not answer within 1 s",
    )
    assert "--timeout" in fail.hint
    core.handle(submit("b", 31), 11)
    assert core.next_wake() == 31 + GRACE_S, "however long it was given"
    core.handle(submit("c", 31.5), 31.5)
    core.handle(c.ResultArrived(Result(b"c".ljust(16), ()), ()), 32.5)
    (fail,) = core.handle(c.Tick(), 33)
    assert isinstance(fail, c.Fail)
    assert "did not answer within 20 s; it is alive" in fail.message
    assert core.next_wake() == math.inf
    fresh = ClientCore("host:1")
    fresh.handle(submit("a", 1), 0)
    assert fresh.next_wake() == 1
    (fail,) = fresh.handle(c.Tick(), 1)
    assert isinstance(fail, c.Fail)
    assert (fail.code, "nobody answers there" in fail.message) == ("dispatcher-unreachable", True)


def test_a_timeout_too_short_to_connect_says_so_and_blames_no_dispatcher() -> None:
    fresh = ClientCore("host:1")
    fresh.handle(submit("a", 0.001), 0.005)  # looking up the signature has taken all of it
    (fail,) = fresh.handle(c.Tick(), 0.005)
    assert isinstance(fail, c.Fail)
    assert (fail.code, "-" in fail.message) == ("deadline-exceeded", False)


@pytest.mark.parametrize(
    ("given", "told"), [(0.05, "it was given 0.05 s; "), (3600, "it was given 3600 s; "), (math.inf, "")]
)
def test_a_deadline_that_passed_is_told_as_it_was_given_and_with_what_to_do(given: float, told: str) -> None:
    core = connected()
    # Looking up the signature took a part of it.
    core.handle(msgspec.structs.replace(submit("a", 1.03), timeout=given), 1)
    late = Rejection(b"a".ljust(16), "deadline-exceeded", "no result of model 'm' before its deadline")
    (fail,) = core.handle(c.RejectionArrived(late), 1.4)
    assert isinstance(fail, c.Fail)
    assert fail.hint == f"{told}`timeout` in Python and --timeout on the command line give a request longer"


def test_a_recalled_requests_own_deadline_is_not_mixed_up_with_the_wait_for_its_answer() -> None:
    core = connected()
    core.handle(msgspec.structs.replace(submit("a", 20), recall=True, timeout=20), 0)
    late = Rejection(
        b"a".ljust(16), "deadline-exceeded", "no result before its deadline, 20 ms after it arrived"
    )
    (fail,) = core.handle(c.RejectionArrived(late), 1)
    assert isinstance(fail, c.Fail)
    assert "20 s" not in fail.hint
    assert "the request itself" in fail.hint


def test_other_rejections_are_told_without_a_word_on_timeouts() -> None:
    core = connected()
    core.handle(submit("a", 5), 0)
    (fail,) = core.handle(c.RejectionArrived(Rejection(b"a".ljust(16), "wrong-input", "no")), 1)
    assert isinstance(fail, c.Fail)
    assert fail.hint == ""


def test_a_lost_connection_is_named_when_the_deadline_passes() -> None:
    core = connected()
    core.handle(submit("a", 1), 0)
    core.handle(c.Disconnected(), 0.5)
    assert core.handle(c.Tick(), core.next_wake()) == []
    (fail,) = core.handle(c.Tick(), core.next_wake())
    assert isinstance(fail, c.Fail)
    assert "connection was lost" in fail.message


def test_without_a_connection_a_request_waits_no_longer_than_was_allowed() -> None:
    core = ClientCore("host:1", absence_s=5)
    core.handle(submit("a", 60), 0)
    assert core.next_wake() == 5
    (fail,) = core.handle(c.Tick(), 5)
    assert isinstance(fail, c.Fail)
    assert (fail.code, "within 5 s" in fail.message) == ("dispatcher-unreachable", True)
    core.handle(c.Connected(), 6)
    core.handle(submit("b", 60), 7)
    core.handle(c.Disconnected(), 20)
    core.handle(c.Disconnected(), 22)  # another attempt that failed
    assert core.handle(c.Tick(), core.next_wake()) == []
    assert core.next_wake() == 25
    core.handle(submit("c", 60), 23)
    (fail,) = core.handle(c.Tick(), 25)
    assert isinstance(fail, c.Fail)
    assert fail.request.strip() == b"b"
    assert sent(core.handle(c.Connected(), 26)) == [(b"c", 34 * 10**9)]


def test_overload_fails_at_once_or_is_tried_again_with_growing_pauses() -> None:
    core = connected()
    core.handle(submit("a"), 0)
    busy = c.RejectionArrived(Rejection(b"a".ljust(16), "overloaded", "full"))
    assert core.handle(busy, 0) == [c.Fail(b"a".ljust(16), "overloaded", "full")]
    core.handle(submit("a", patient=True), 0)
    pauses, now = [], 0.0
    for _ in range(3):
        assert core.handle(busy, now) == []
        pauses.append(core.next_wake() - now)
        now = core.next_wake()
        assert sent(core.handle(c.Tick(), now)) == [(b"a", int((10 - now) * 1e9))]
    assert pauses == pytest.approx([PAUSE_S, 2 * PAUSE_S, 4 * PAUSE_S])


def test_a_paused_request_goes_as_soon_as_another_has_its_answer() -> None:
    core = connected()
    core.handle(submit("a", patient=True), 0)
    core.handle(submit("b", patient=True), 0)
    core.handle(c.RejectionArrived(Rejection(b"b".ljust(16), "overloaded", "full")), 0)
    resolve, again = core.handle(c.ResultArrived(Result(b"a".ljust(16), ()), ()), 0.001)
    assert isinstance(resolve, c.Resolve)
    assert sent([again]) == [(b"b", int(9.999 * 1e9))]
    assert core.next_wake() <= 10 + GRACE_S


def test_other_rejections_fail_even_patient_requests() -> None:
    core = connected()
    core.handle(submit("a", patient=True), 0)
    (fail,) = core.handle(c.RejectionArrived(Rejection(b"a".ljust(16), "not-ready", "soon")), 0)
    assert isinstance(fail, c.Fail)
    assert core.handle(c.RejectionArrived(Rejection(b"z" * 16, "not-ready", "soon")), 0) == []


def test_giving_up_reaches_the_dispatcher_but_for_what_was_only_recalled() -> None:
    core = connected()
    plain = submit("plain")
    durable = msgspec.structs.replace(submit("durable"), durable=True)
    recalled = msgspec.structs.replace(submit("recalled"), recall=True)
    for each in (plain, durable, recalled):
        core.handle(each, 0)
    assert core.handle(c.GivenUp(plain.request), 1) == [c.SendGiveUp(plain.request)]
    assert core.handle(c.GivenUp(durable.request), 1) == [c.SendGiveUp(durable.request)]
    assert core.handle(c.GivenUp(recalled.request), 1) == []


def test_a_durable_request_given_up_without_a_connection_is_told_with_the_next() -> None:
    core = connected()
    durable = msgspec.structs.replace(submit("durable"), durable=True)
    core.handle(durable, 0)
    core.handle(submit("plain"), 0)
    core.handle(c.Disconnected(), 1)
    assert core.handle(c.GivenUp(durable.request), 2) == []
    assert core.handle(c.GivenUp(b"plain".ljust(16)), 2) == []
    assert core.handle(c.Connected(), 3) == [c.SendGiveUp(durable.request)]
    core.handle(c.Disconnected(), 4)
    assert core.handle(c.Connected(), 5) == []


def test_refusal_and_closing_end_everything() -> None:
    core = connected()
    core.handle(submit("a"), 0)
    core.handle(submit("b"), 0)
    assert [
        i.code for i in core.handle(c.Refused("protocol-mismatch", "old"), 0) if isinstance(i, c.Fail)
    ] == ["protocol-mismatch"] * 2
    core.handle(submit("c"), 0)
    (fail,) = core.handle(c.Closed(), 0)
    assert isinstance(fail, c.Fail)
    assert fail.code == "cancelled"


MODEL = ModelInfo(
    "m",
    "ready",
    inputs=(
        TensorSpec("p", "float32", ("N", 2)),
        TensorSpec("q", "int64", ("N",)),
        TensorSpec("h", "bfloat16", ()),
    ),
    outputs=(TensorSpec("y", "float32", ("N",)),),
)


def test_arrays_come_in_the_models_order_and_types() -> None:
    given = {"h": np.uint16(3), "q": [1, 2], "p": np.zeros((2, 2), np.float32).T}
    arrays = as_arrays(given, MODEL)
    assert list(arrays) == ["p", "q", "h"]
    assert [array.dtype.name for array in arrays.values()] == ["float32", "int64", "uint16"]
    assert arrays["h"].shape == ()
    assert arrays["p"].flags.c_contiguous


def test_one_array_for_a_model_with_several_inputs() -> None:
    with pytest.raises(WrongInput, match="has 3 inputs, one array was given"):
        as_arrays(np.zeros(3), MODEL)


def test_dimensions_of_one_name_must_agree() -> None:
    given = {"p": np.zeros((2, 2), np.float32), "q": np.zeros(3, np.int64), "h": np.uint16(0)}
    with pytest.raises(WrongInput, match="'N' is 2 in input 'p' and 3 in input 'q'"):
        as_arrays(given, MODEL)


def test_outputs_must_exist() -> None:
    assert check_outputs(["y"], MODEL) == ("y",)
    with pytest.raises(WrongInput, match="no output 'w'; its outputs are y"):
        check_outputs(["w"], MODEL)
