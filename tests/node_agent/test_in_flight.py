"""Several items on a device at once: what is handed over when, taken back in which order, and told to whom."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.batching import Batching
from node_agent.encoding import admit, decode
from node_agent.engines.base import overlapping
from node_agent.engines.choice import ChosenSession
from node_agent.errors import RunFailedError
from node_agent.messages import NO_DEADLINE, FileRef, HopSpec, Item, PeerRef, TensorHeader, TensorSpec
from node_agent.routing import Route
from node_agent.tracing import Marks
from node_agent.work import LoadedRoute, Work
from node_agent.worker import SHORT_NS, Worker

DEADLINE_S = 20.0
HOP = HopSpec(
    0,
    PeerRef("before"),
    PeerRef("after"),
    graph=FileRef("ab" * 32, 1, ".onnx"),
    inputs=(TensorSpec("x", "float32", (1,)),),
    outputs=(TensorSpec("y", "float32", (1,)),),
    send=("y",),
)


class Plain:
    """Doubles, one run at a time."""

    outputs = HOP.outputs

    def __init__(self, log: list[tuple[str, int]]) -> None:
        self.log = log

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        self.log.append(("run", int(inputs["x"][0])))
        return {"y": 2 * inputs["x"]}

    def close(self) -> None:
        pass


class Device(Plain):
    """Doubles, several at once. Numbers in `refuses` fail when handed over, those in `breaks` when taken back."""

    def __init__(
        self, log: list[tuple[str, int]], slots: int = 2, refuses: Any = (), breaks: Any = ()
    ) -> None:
        super().__init__(log)
        self.slots, self.refuses, self.breaks = slots, refuses, breaks
        self.held: deque[Any] = deque()
        self.most = 0

    def submit(self, inputs: Mapping[str, Any]) -> None:
        number = int(inputs["x"][0])
        self.log.append(("submit", number))
        if number in self.refuses:
            raise RunFailedError(f"no room for {number}")
        self.held.append(inputs["x"].copy())
        self.most = max(self.most, len(self.held))

    def collect(self) -> dict[str, Any]:
        x = self.held.popleft()
        self.log.append(("collect", int(x[0])))
        if int(x[0]) in self.breaks:
            raise ValueError(f"broke at {int(x[0])}")
        return {"y": 2 * x}


class Run:
    """A worker whose thread is this one."""

    def __init__(self) -> None:
        self.done: list[Work] = []
        self.dropped: list[Work] = []
        self.worker = Worker("box", done=self.done.append, drop=self.dropped.append)

    def put(self, loaded: LoadedRoute, number: int, remaining_ns: int = NO_DEADLINE) -> Work:
        work = item(loaded, number, remaining_ns)
        self.worker.put(work)
        return work

    def turns(self, count: int) -> None:
        for _ in range(count):
            self.worker.turn()

    def finish(self) -> None:
        while not self.worker._runs.empty() or self.worker._in_flight:
            self.worker.turn()

    @property
    def results(self) -> list[tuple[int, float | str]]:
        return [
            (work.item.request, work.failure.message if work.failure else float((work.outputs or {})["y"][0]))
            for work in self.done
        ]


def item(loaded: LoadedRoute, number: int, remaining_ns: int = NO_DEADLINE) -> Work:
    array = np.full((1,), number, np.float32)
    header = TensorHeader("x", "float32", array.shape, "raw", array.nbytes)
    origin: Any = None
    frames = [memoryview(array).cast("B")]
    work = Work(
        loaded, Item(1, number, 0, remaining_ns, (header,)), frames, origin, array.nbytes, time.monotonic_ns()
    )
    work.marks = Marks()
    assert admit(work, "box")
    decode(work, "box")
    return work


def route(session: Any) -> LoadedRoute:
    return LoadedRoute(Route(1, "m", HOP), session)


def test_the_next_is_handed_over_before_the_first_is_taken_back() -> None:
    log: list[tuple[str, int]] = []
    test, loaded = Run(), route(Device(log))
    for number in range(4):
        test.put(loaded, number)
    test.finish()
    s, c = "submit", "collect"
    assert log == [(s, 0), (s, 1), (c, 0), (s, 2), (c, 1), (s, 3), (c, 2), (c, 3)]
    assert test.results == [(0, 0.0), (1, 2.0), (2, 4.0), (3, 6.0)]
    assert (loaded.counters.runs, test.worker.progress, test.worker.started_ns) == (4, 4, 0)
    assert all(work.marks is not None and work.marks.run[1] >= work.marks.run[0] > 0 for work in test.done)


def test_the_age_is_that_of_the_oldest_since_it_has_the_device() -> None:
    test, loaded = Run(), route(Device([]))
    test.put(loaded, 0)
    test.put(loaded, 1)
    test.turns(1)
    first = test.worker.started_ns
    test.turns(1)
    assert test.worker.started_ns == first > 0
    test.turns(1)  # nothing waits: the oldest is taken back
    assert test.worker.started_ns > first
    assert test.worker.progress == 1
    test.turns(1)
    assert test.worker.started_ns == 0


def test_nobody_runs_a_short_item_beside_those_in_flight() -> None:
    test, loaded = Run(), route(Device([]))
    loaded.run_ns = SHORT_NS - 1
    test.put(loaded, 0)
    test.turns(1)
    assert not test.worker.begin(loaded)
    test.turns(1)
    assert test.worker.begin(loaded)
    test.worker.end(loaded, time.monotonic_ns())


def test_each_has_its_own_error_and_its_place() -> None:
    log: list[tuple[str, int]] = []
    test, loaded = Run(), route(Device(log, slots=3, refuses={1}, breaks={2}))
    for number in range(4):
        test.put(loaded, number)
    test.finish()
    assert test.results == [(0, 0.0), (1, "no room for 1"), (2, "ValueError: broke at 2"), (3, 6.0)]
    assert test.worker.started_ns == 0


def test_one_that_is_late_is_not_handed_over_and_does_not_overtake() -> None:
    log: list[tuple[str, int]] = []
    test, loaded = Run(), route(Device(log))
    test.put(loaded, 0)
    test.put(loaded, 1, remaining_ns=0)
    test.finish()
    assert [name for name, _ in log] == ["submit", "collect"]
    assert [work.item.request for work in test.done] == [0, 1]
    assert test.done[1].failure is not None
    assert test.done[1].failure.code == "deadline-exceeded"
    assert test.done[1].failure.message == "its deadline passed", "who reads it is told the device beside it"
    assert loaded.counters.runs == 1


def test_a_call_and_another_kind_of_session_wait_for_what_is_in_flight() -> None:
    log: list[tuple[str, int]] = []
    test, loaded, plain = Run(), route(Device(log)), route(Plain(log))
    test.put(loaded, 0)
    test.worker.put(lambda: log.append(("call", 0)))
    test.put(loaded, 1)
    test.put(plain, 2)
    test.finish()
    assert log == [("submit", 0), ("collect", 0), ("call", 0), ("submit", 1), ("collect", 1), ("run", 2)]
    assert [work.item.request for work in test.done] == [0, 1, 2]
    assert test.worker.started_ns == 0


def test_an_epoch_that_goes_gets_what_is_in_flight_and_drops_the_rest() -> None:
    log: list[tuple[str, int]] = []
    test, loaded = Run(), route(Device(log))
    gone: list[list[int]] = []
    for number in range(2):
        test.put(loaded, number)
    test.turns(1)
    loaded.closed = True
    test.worker.put(lambda: gone.append([work.item.request for work in test.done]))
    test.turns(2)
    assert gone == [[0]]  # nothing of the session is in use when it may be closed
    assert [work.item.request for work in test.dropped] == [1]
    assert log == [("submit", 0), ("collect", 0)]


def test_two_partitions_on_one_device_have_slots_of_their_own() -> None:
    log: list[tuple[str, int]] = []
    devices = Device(log), Device(log)
    test, routes = Run(), [route(device) for device in devices]
    for number in range(4):
        test.put(routes[number % 2], number)
    test.finish()
    assert [name for name, _ in log] == ["submit"] * 4 + ["collect"] * 4
    assert [device.most for device in devices] == [2, 2]
    assert [work.item.request for work in test.done] == [0, 1, 2, 3]


def test_batches_run_one_after_the_other() -> None:
    log: list[tuple[str, int]] = []
    test, loaded = Run(), route(Device(log))
    loaded.batching = Batching(((1, 100), (2, 110)))
    for number in range(2):
        test.put(loaded, number)
    test.turns(1)
    assert log == [("run", 0)]
    assert [work.item.request for work in test.done] == [0, 1]


@pytest.mark.parametrize("slots", [0, 1])
def test_one_slot_is_no_overlap(slots: int) -> None:
    log: list[tuple[str, int]] = []
    test, loaded = Run(), route(Device(log, slots=slots))
    test.put(loaded, 3)
    test.turns(1)
    assert log == [("run", 3)]


def test_what_chose_the_engine_offers_what_the_engine_does() -> None:
    assert overlapping(ChosenSession(Device([]), "device")) is not None
    assert overlapping(ChosenSession(Plain([]), "plain")) is None
    assert overlapping(None) is None


@given(
    slots=st.integers(2, 4),
    kinds=st.lists(st.sampled_from(["device", "other", "plain", "late", "refused", "broken"]), max_size=12),
    turns_between=st.lists(st.integers(0, 2), min_size=12, max_size=12),
)
def test_whatever_comes_when_everybody_gets_their_own_in_order(
    slots: int, kinds: list[str], turns_between: list[int]
) -> None:
    log: list[tuple[str, int]] = []
    numbers = range(len(kinds))
    device = Device(
        log,
        slots,
        refuses={n for n in numbers if kinds[n] == "refused"},
        breaks={n for n in numbers if kinds[n] == "broken"},
    )
    other = Device(log, slots)
    routes = {"plain": route(Plain(log)), "other": route(other)}
    test, first = Run(), route(device)
    for number, kind in enumerate(kinds):
        test.put(routes.get(kind, first), number, 0 if kind == "late" else NO_DEADLINE)
        for _ in range(turns_between[number]):
            if not test.worker._runs.empty() or test.worker._in_flight:
                test.worker.turn()
    test.finish()
    assert [work.item.request for work in test.done] == list(numbers)
    for work, kind in zip(test.done, kinds, strict=True):
        good = kind in ("device", "other", "plain")
        assert (work.failure is None) == good
        assert not good or float((work.outputs or {})["y"][0]) == 2 * work.item.request
    assert max(device.most, other.most) <= slots
    assert test.worker.started_ns == 0
    assert test.worker.progress == len(kinds)


def test_a_worker_of_its_own_thread() -> None:
    """Nothing of the device is taken back before the thread was free to hand the next one over."""
    log: list[tuple[str, int]] = []
    second = threading.Event()
    device = Device(log)

    class Waits(Device):
        def submit(self, inputs: Mapping[str, Any]) -> None:
            super().submit(inputs)
            if len(self.held) == 2:
                second.set()

        def collect(self) -> dict[str, Any]:
            if len(self.held) == 1 and not second.is_set():
                raise RunFailedError("taken back while the next one waited")
            return super().collect()

    device = Waits(log)
    done: SimpleQueue[Work] = SimpleQueue()
    worker = Worker("box", done=done.put, drop=done.put)
    loaded = route(device)
    for number in range(20):
        worker.put(item(loaded, number))
    worker.start()
    try:
        finished = [done.get(timeout=DEADLINE_S) for _ in range(20)]
    finally:
        worker.stop()
        assert worker.join(DEADLINE_S)
    assert [work.item.request for work in finished] == list(range(20))
    assert all(work.failure is None for work in finished)
    assert device.most == 2
