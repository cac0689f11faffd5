"""The short way: what is like the item before passes in one go, everything else ends as it would on the general way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zmq

from node_agent import messages as m
from node_agent.connection import Handshake, ReceivingEnd, SendingEnd
from node_agent.encoding import admit, decode, encode
from node_agent.frames import pack_item, unpack
from node_agent.link import bind, open_socket, receive
from node_agent.routing import Route
from node_agent.short_way import ShortWay, known_from
from node_agent.work import Known, LoadedRoute, Origin, Work
from node_agent.worker import SHORT_NS, Worker

WIDTH = 32 * 1024
"""Of float32, so that frames are sent without a copy."""


class Doubles:
    """A partition whose output has the shape that a test wants."""

    outputs = (m.TensorSpec("y", "float32", ("n",)),)

    def __init__(self) -> None:
        self.make: Callable[[Any], Any] = lambda x: x * 2
        self.gave: Any = None

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        self.gave = self.make(inputs["x"])
        return {"y": self.gave}

    def close(self) -> None:
        pass


class Bench:
    """An agent's parts around the short way, and the next hop's socket."""

    def __init__(self, context: zmq.Context[Any]) -> None:
        self.next = open_socket(context, zmq.ROUTER, purpose="data")
        self.socket = open_socket(context, zmq.DEALER, purpose="data")
        self.socket.connect(f"tcp://127.0.0.1:{bind(self.next, '127.0.0.1', 0)}")
        assert self.socket.poll(5000, zmq.POLLOUT)
        self.session = Doubles()
        spec = m.HopSpec(
            3,
            m.PeerRef("p"),
            m.PeerRef("n"),
            graph=m.FileRef("ab" * 32, 1, ".onnx"),
            inputs=(m.TensorSpec("x", "float32", ("n",)),),
            outputs=self.session.outputs,
            send=("y", "skip"),
        )
        self.loaded = LoadedRoute(Route(1, "m", spec), self.session)
        self.worker = Worker("me", done=_none, drop=_none)
        self.end = SendingEnd(Handshake("me", dialled=True, state="ready"))
        self.end.window.add(m.Credit(10, 1 << 30))
        self.submitted: list[Work] = []
        self.released: list[int] = []
        self.open = True
        sender: Any = SimpleNamespace(
            open_to=lambda _: (
                SimpleNamespace(socket=self.socket, identity=None, end=self.end) if self.open else None
            ),
            submit=self.submitted.append,
        )
        self.way = ShortWay(self.worker, sender, lambda _, nbytes: self.released.append(nbytes))
        self.origin = Origin(ReceivingEnd(Handshake("me", dialled=False)), None, None)
        x = np.arange(WIDTH, dtype=np.float32)
        self.arrays = {"x": x, "skip": x + 1}
        tensors, self.frames = pack_item(self.arrays)
        self.item = m.Item(1, 7, 3, m.NO_DEADLINE, tensors)
        self.known = self.learn()

    def learn(self) -> Known:
        """By one item on the general way."""
        work = Work(self.loaded, self.item, self.frames, self.origin, 8 * WIDTH, 0)
        assert admit(work, "me")
        decode(work, "me")
        assert work.inputs is not None
        work.outputs = self.session.run(work.inputs)
        encode(work, "me")
        known = known_from(work)
        assert known is not None
        self.loaded.ran(1000)
        return known

    def take(self, **changes: Any) -> bool:
        item = self.item
        for name, value in changes.items():
            item = m.Item(
                **{**{field: getattr(item, field) for field in item.__struct_fields__}, name: value}
            )
        return self.way.take(self.loaded, self.known, item, self.frames, self.origin, 0)

    def arrived(self) -> tuple[m.Item, dict[str, Any]]:
        assert self.next.poll(5000)
        _, header, frames = receive(self.next, routed=True)
        assert isinstance(header, m.Item)
        return header, unpack(header.tensors, frames)


def _none(_: object) -> None:
    pass


@pytest.fixture
def bench() -> Iterator[Bench]:
    context: zmq.Context[Any] = zmq.Context()
    yield Bench(context)
    context.destroy(linger=0)


def test_an_item_like_the_one_before_is_run_and_sent_on(bench: Bench) -> None:
    assert bench.take()
    header, arrays = bench.arrived()
    assert (header.epoch, header.request, header.hop, header.remaining_ns) == (1, 7, 4, m.NO_DEADLINE)
    np.testing.assert_array_equal(arrays["y"], bench.arrays["x"] * 2)
    np.testing.assert_array_equal(arrays["skip"], bench.arrays["skip"])
    assert bench.released == [8 * WIDTH]
    assert (bench.end.window.items, bench.loaded.counters.items, bench.worker.progress) == (9, 1, 1)
    assert bench.worker.started_ns == 0
    assert not bench.submitted


def test_the_time_that_is_left_shrinks(bench: Bench) -> None:
    long = 1 << 62
    assert bench.take(remaining_ns=long)
    header, _ = bench.arrived()
    assert 0 < header.remaining_ns < long


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x[: WIDTH // 2],
        lambda x: x.astype(np.float64),
        lambda x: np.repeat(x, 2)[::2],
        lambda x: x.reshape(2, -1),
    ],
    ids=["shorter", "of another type", "not contiguous", "of another rank"],
)
def test_an_output_unlike_the_one_before_goes_on_by_the_general_way(bench: Bench, make: Any) -> None:
    bench.session.make = make
    assert bench.take()
    (work,) = bench.submitted
    assert work.failure is None
    assert work.outputs == {"y": bench.session.gave}
    encode(work, "me")
    assert work.encoded is not None
    np.testing.assert_array_equal(unpack(*work.encoded)["y"], bench.session.gave)
    assert not bench.released


def test_a_run_that_fails_ends_the_request(bench: Bench) -> None:
    def fail(_: Any) -> Any:
        raise ValueError("no")

    bench.session.make = fail
    assert bench.take()
    (work,) = bench.submitted
    assert work.failure is not None
    assert (work.failure.code, work.failure.hop) == ("internal", 4)
    assert bench.worker.begin(bench.loaded), "the next one may run"
    bench.worker.end(bench.loaded, 0)


def test_a_request_whose_time_runs_out_meanwhile_ends(bench: Bench) -> None:
    assert bench.take(remaining_ns=1)
    (work,) = bench.submitted
    assert work.fail_if_expired("me")
    assert work.failure is not None
    assert work.failure.code == "deadline-exceeded"


@pytest.mark.parametrize(
    "closed",
    ["no credit", "long", "never run", "another waits", "unloading", "expired", "traced"],
)
def test_what_must_take_the_general_way_is_left_alone(bench: Bench, closed: str) -> None:
    changes: dict[str, Any] = {}
    if closed == "no credit":
        bench.open = False
    elif closed in ("long", "never run"):
        bench.loaded.run_ns = SHORT_NS if closed == "long" else 0
    elif closed == "another waits":
        bench.worker.wake()
    elif closed == "unloading":
        bench.loaded.closed = True
    elif closed == "expired":
        changes = {"remaining_ns": 0}
    else:
        changes = {"trace": "00-1-2-01"}
    bench.session.gave = None
    assert not bench.take(**changes)
    assert bench.session.gave is None
    assert not bench.submitted
    assert bench.worker.started_ns == 0


@pytest.mark.parametrize("case", ["coded", "empty", "bits"])
def test_only_raw_tensors_of_plain_types_are_known(bench: Bench, case: str) -> None:
    tensors, frames = pack_item(bench.arrays)
    if case == "coded":
        tensors, frames = pack_item({name: array * 0 for name, array in bench.arrays.items()}, "lz4")
    if case == "empty":
        tensors, frames = pack_item({"x": np.ones(3, np.float32), "skip": np.ones(0, np.float32)})
    loaded = bench.loaded
    if case == "bits":
        spec = m.HopSpec(
            3,
            m.PeerRef("p"),
            m.PeerRef("n"),
            graph=m.FileRef("ab" * 32, 1, ".onnx"),
            inputs=(m.TensorSpec("x", "float32", ("n",)),),
            outputs=(m.TensorSpec("y", "bfloat16", ("n",)),),
            send=("y", "skip"),
        )
        loaded = LoadedRoute(Route(1, "m", spec), bench.session)
    work = Work(loaded, m.Item(1, 7, 3, -1, tensors), list(frames), bench.origin, 0, 0)
    work.encoded = (replace_names(tensors), list(frames))
    work.decode = (0,)
    assert known_from(work) is None


def replace_names(tensors: tuple[m.TensorHeader, ...]) -> tuple[m.TensorHeader, ...]:
    """The headers that go on, where the first tensor is the partition's output."""
    first = tensors[0]
    return (m.TensorHeader("y", first.dtype, first.shape, first.codec, first.nbytes), *tensors[1:])


def test_what_is_known_of_a_hop(bench: Bench) -> None:
    assert bench.known.inputs == (("x", 0, np.dtype("float32"), (WIDTH,)),)
    assert [made[:2] for made in bench.known.made] == [("y", -1), ("skip", 1)]
