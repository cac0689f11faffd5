"""Requests that run as a batch: when, with whom, and that each gets its own result."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.batching import Batching, batchable, joined, parted, prove
from node_agent.encoding import admit, decode
from node_agent.epochs import check_load
from node_agent.errors import RequestError, RunFailedError, code_of
from node_agent.messages import NO_DEADLINE, FileRef, HopSpec, Item, Load, PeerRef, TensorHeader, TensorSpec
from node_agent.routing import Route
from node_agent.tracing import Marks
from node_agent.work import LoadedRoute, Work
from node_agent.worker import Worker

MS = 1_000_000
WIDTH = 3


def spec(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, dtype, shape)


def hop(**more: Any) -> HopSpec:
    given: dict[str, Any] = {
        "graph": FileRef("ab" * 32, 1, ".onnx"),
        "inputs": (spec("x", "n", WIDTH),),
        "outputs": (spec("y", "n", WIDTH),),
        "send": ("y",),
        "warm_up": (spec("x", 1, WIDTH),),
        "batch": (2, 4),
    }
    return HopSpec(0, PeerRef("before"), PeerRef("after"), **{**given, **more})


class Doubling:
    """A session that doubles; a run takes `base` and `each` per row on a clock of its own."""

    outputs = (spec("y", "n", WIDTH),)

    def __init__(self, base: int = 90, each: int = 10, change: Callable[[Any], Any] = lambda y: y) -> None:
        self.now, self.base, self.each, self.change = 0, base, each, change
        self.rows: list[int] = []

    def clock(self) -> int:
        return self.now

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        x = inputs["x"]
        self.rows.append(len(x))
        self.now += self.base + self.each * len(x)
        return {"y": self.change(2 * x)}

    def close(self) -> None:
        pass


class Run:
    """A worker whose thread is this one."""

    def __init__(self, session: Any, batching: Batching | None) -> None:
        self.done: list[Work] = []
        self.dropped: list[Work] = []
        self.worker = Worker("box", done=self.done.append, drop=self.dropped.append)
        self.loaded = LoadedRoute(Route(1, "m", hop()), session)
        self.loaded.batching = batching

    def put(
        self,
        number: int,
        *,
        rows: int = 1,
        remaining_ns: int = NO_DEADLINE,
        age_ns: int = 0,
        priority: int = 0,
    ) -> Work:
        array = np.full((rows, WIDTH), number, np.float32)
        header = TensorHeader("x", "float32", array.shape, "raw", array.nbytes)
        item = Item(1, number, 0, remaining_ns, (header,), "", priority)
        origin: Any = None
        work = Work(self.loaded, item, [memoryview(array).cast("B")], origin, 0, time.monotonic_ns() - age_ns)
        work.marks = Marks()
        assert admit(work, "box")
        decode(work, "box")
        self.worker.put(work)
        return work


FOUR = Batching(((1, 100), (2, 110), (4, 130)))


def test_what_waits_runs_as_one_and_each_gets_its_own() -> None:
    session = Doubling()
    test = Run(session, FOUR)
    for number in range(6):
        test.put(number)
    test.worker.turn()
    test.worker.turn()
    assert session.rows == [4, 2]
    for number, work in enumerate(test.done):
        assert work.item.request == number
        assert work.outputs is not None
        np.testing.assert_array_equal(work.outputs["y"], np.full((1, WIDTH), 2 * number))
        assert work.outputs["y"].flags.c_contiguous
    assert [work.marks.batch for work in test.done if work.marks] == [4, 4, 4, 4, 2, 2]
    assert (test.loaded.counters.runs, test.worker.progress, test.worker.started_ns) == (2, 6, 0)


def test_the_smallest_priority_runs_first_alone_and_in_batches() -> None:
    for batching in (None, FOUR):
        test = Run(Doubling(), batching)
        for number, priority in enumerate([0, 10, 1, 20, 1, 0]):
            test.put(number, priority=priority)
        while len(test.done) < 6:
            test.worker.turn()
        assert [work.item.request for work in test.done] == [2, 4, 0, 1, 5, 3]


def test_other_shapes_and_other_calls_wait_for_their_turn_in_order() -> None:
    session = Doubling()
    test = Run(session, FOUR)
    said: list[str] = []
    test.put(0)
    test.put(1, rows=2)
    test.worker.put(lambda: said.append("call"))
    test.put(2)
    test.put(3, rows=2)
    test.put(4)
    for _ in range(3):
        test.worker.turn()
    assert session.rows == [3, 4]
    assert [work.item.request for work in test.done] == [0, 2, 4, 1, 3]
    assert said == ["call"]
    assert not test.worker._ahead


def test_a_closed_route_drops_what_waited() -> None:
    test = Run(Doubling(), FOUR)
    test.put(0)
    test.put(1, rows=2)
    test.worker.turn()
    test.loaded.closed = True
    test.worker.turn()
    assert [work.item.request for work in test.dropped] == [1]


def test_a_batch_that_fails_is_run_one_by_one_and_no_batch_is_tried_again() -> None:
    class Single(Doubling):
        def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
            if len(inputs["x"]) > 1:
                raise RunFailedError("one at a time")
            return super().run(inputs)

    session = Single()
    test = Run(session, FOUR)
    for number in range(4):
        test.put(number)
    test.worker.turn()
    assert session.rows == [1, 1, 1, 1]
    assert [work.failure for work in test.done] == [None] * 4
    assert test.loaded.batching is None
    assert "one at a time" in test.loaded.batch_note


def test_outputs_that_cannot_be_parted_fail_the_batch_alone() -> None:
    test = Run(Doubling(change=lambda y: y if len(y) == 1 else y[:1]), FOUR)
    for number in range(2):
        test.put(number)
    test.worker.turn()
    assert [float(work.outputs["y"][0, 0]) for work in test.done if work.outputs] == [0.0, 2.0]


def test_who_is_too_late_already_takes_no_part() -> None:
    session = Doubling()
    test = Run(session, FOUR)
    test.put(0)
    test.put(1, remaining_ns=MS, age_ns=2 * MS)
    test.put(2)
    for _ in range(3):
        if len(test.done) < 3:
            test.worker.turn()
    failed = {work.item.request: work.failure.code for work in test.done if work.failure}
    assert failed == {1: "deadline-exceeded"}
    assert sum(session.rows) == 2


def test_nobody_joins_a_batch_whose_run_would_make_somebody_late() -> None:
    session = Doubling()
    slow = Batching(((1, 10 * MS), (4, 10_000 * MS)), 5_000 * MS)
    test = Run(session, slow)
    test.put(0, remaining_ns=1_000 * MS)
    test.put(1)
    test.worker.put(lambda: None)  # somebody who waits, so that the delay is not waited for
    test.worker.turn()
    assert session.rows == [1]


def test_the_first_waits_for_others_but_not_for_long() -> None:
    session = Doubling()
    test = Run(session, Batching(FOUR.took, 30 * MS))
    test.put(0)
    begun = time.monotonic()
    test.worker.turn()
    assert time.monotonic() - begun >= 0.02
    assert session.rows == [1]
    test.put(1)
    test.put(2)  # two is a preferred size: it starts at once, whatever the delay
    test.loaded.batching = Batching(FOUR.took, 3_600_000 * MS)
    test.worker.turn()
    assert session.rows == [1, 2]


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 10**9)), min_size=1, max_size=4))
def test_run_times_grow_with_the_batch(steps: list[tuple[int, int]]) -> None:
    took, size, lasted = [(1, steps[0][1])], 1, steps[0][1]
    for more, longer in steps:
        size, lasted = size + more, lasted + longer
        took.append((size, lasted))
    batching = Batching(tuple(took))
    every = [batching.run_ns(number) for number in range(1, batching.most + 1)]
    assert all(earlier <= later for earlier, later in pairwise(every))
    assert all(batching.run_ns(number) == lasted for number, lasted in took)


@given(st.integers(0, 10**9), st.none() | st.integers(0, 10**9), st.integers(1, 4), st.integers(0, 10**6))
def test_a_batch_starts_before_its_delay_and_its_deadline(
    arrived: int, deadline: int | None, size: int, delay: int
) -> None:
    batching = Batching(FOUR.took, delay)
    start = batching.start_by(arrived, deadline, size)
    assert start <= arrived + delay
    if deadline is not None:
        assert start + batching.run_ns(size) <= deadline
    if batching.may_grow(size, deadline, arrived):
        assert size < batching.most
        assert deadline is None or arrived + batching.run_ns(size + 1) <= deadline


def test_parts_lie_on_the_batch() -> None:
    whole = {"y": np.arange(12, dtype=np.float32).reshape(6, 2)}
    parts = parted(whole, 3)
    assert all(np.shares_memory(part["y"], whole["y"]) for part in parts)
    np.testing.assert_array_equal(joined(parts)["y"], whole["y"])
    for bad in (np.zeros(()), np.zeros((0, 2)), np.zeros((4, 2))):
        with pytest.raises(ValueError, match="of a batch of 3"):
            parted({"y": bad}, 3)


@pytest.mark.parametrize(
    "more",
    [
        {"inputs": (spec("x", 1, WIDTH),)},
        {"outputs": (spec("y", WIDTH),)},
        {"outputs": (spec("y", "m", WIDTH),)},
        {"inputs": (spec("x", "n", WIDTH), spec("scale"))},
    ],
)
def test_only_a_free_first_dimension_that_all_share_is_a_batch(more: dict[str, Any]) -> None:
    assert batchable(hop()) == ""
    assert "first dimension is not the batch" in batchable(hop(**more))
    session = Doubling()
    assert prove(session, hop(**more))[0] is None
    assert not session.rows


def test_sizes_that_pay_are_kept() -> None:
    session = Doubling()
    batching, note = prove(session, hop(batch_delay_s=0.002), session.clock)
    assert batching == Batching(((1, 100), (2, 110), (4, 130)), 2 * MS)
    assert "up to 4" in note
    linear = Doubling(base=0, each=100)
    assert prove(linear, hop(), linear.clock) == (
        None, "hop 0 does not batch: a request takes no less time in one"
    )  # fmt: skip
    assert prove(session, hop(batch=())) == (None, "")


def mean_over_the_batch(y: Any) -> Any:
    return y - y.mean(axis=0)


@pytest.mark.parametrize(
    "change", [mean_over_the_batch, lambda y: y[:1], lambda y: np.repeat(y, 2, 0)[: len(y)]]
)
def test_a_partition_whose_results_depend_on_the_batch_does_not_batch(change: Any) -> None:
    session = Doubling(change=change)
    batching, note = prove(session, hop(), session.clock)
    assert batching is None
    assert "does not batch" in note


def test_an_engine_that_refuses_a_size_does_not_batch() -> None:
    class Narrow(Doubling):
        def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
            if len(inputs["x"]) > 2:
                raise RunFailedError("no such profile")
            return super().run(inputs)

    session = Narrow()
    assert prove(session, hop(), session.clock) == (None, "hop 0 does not batch: no such profile")


@pytest.mark.parametrize(
    "more", [{"batch": (1, 2)}, {"batch": (4, 2)}, {"batch": (2, 100_000)}, {"batch_delay_s": -1.0}]
)
def test_a_load_with_impossible_batches_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as told:
        check_load(Load(1, 1, "m", (hop(**more),)), ())
    assert code_of(told.value) == "bad-load"
