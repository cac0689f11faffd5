"""Agents as processes on loopback: partitions run, relays forward, what is wrong is answered."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import zmq

from node_agent import messages as m
from node_agent.flow import Window
from tests.node_agent.harness import (
    CONTROL,
    ENCODER,
    AgentProcess,
    ControlLink,
    Driver,
    affine,
    arrays_of,
    identity,
    ref,
    reshaped,
    spec,
    spin,
)

pytestmark = pytest.mark.integration

Start = Callable[..., AgentProcess]


def hop(number: int, previous: m.PeerRef, following: m.PeerRef, **more: Any) -> m.HopSpec:
    return m.HopSpec(number, previous, following, **more)


def one_stage(
    driver: Driver, start_agent: Start, graph: bytes, *arguments: str, **more: Any
) -> tuple[AgentProcess, ControlLink, Any]:
    """An agent that runs `graph` between the driver's two ends as epoch 1, hop 0."""
    agent = start_agent("one", *arguments)
    link = driver.control(agent)
    link.ship(graph)
    answer = link.load(1, hop(0, m.PeerRef("test"), driver.peer, graph=ref(graph), **more))
    assert isinstance(answer, m.Loaded), answer
    socket, _ = driver.dial(agent.data)
    return agent, link, socket


@dataclass
class Chain:
    agents: list[AgentProcess]
    links: list[ControlLink]
    first: Any
    weights: list[np.ndarray]

    def expected(self, x: np.ndarray) -> np.ndarray:
        for w in self.weights:
            x = np.maximum(x @ w, 0)
        return x


@pytest.fixture
def chain(driver: Driver, start_agent: Start) -> Chain:
    """Stage, relay, stage: driver → a → r → b → driver, with LZ4 between."""
    a, r, b = (start_agent(name) for name in "arb")
    (g1, w1), (g2, w2) = affine("x", "h1", 64, 1), affine("h1", "y", 64, 2)
    links = [driver.control(agent) for agent in (a, r, b)]
    links[0].ship(g1)
    links[2].ship(g2)
    one = {"inputs": (spec("x", "n", 64),), "outputs": (spec("h1", "n", 64),)}
    two = {"inputs": (spec("h1", "n", 64),), "outputs": (spec("y", "n", 64),)}
    peer = m.PeerRef
    hops = [
        hop(0, peer("test"), peer("r", r.data), graph=ref(g1), send=("h1", "x"), codec="lz4", **one),
        hop(1, peer("a"), peer("b", b.data)),
        hop(2, peer("r"), driver.peer, graph=ref(g2), send=("y", "x"), **two),
    ]
    for link, each in zip(links, hops, strict=True):
        answer = link.load(1, each)
        assert isinstance(answer, m.Loaded), answer
    first, answers = driver.dial(a.data)
    window = Window()
    assert answers == [m.Greeting(1, 1, "a", inline=True), m.Credit(window.items, window.nbytes)]
    return Chain([a, r, b], links, first, [w1, w2])


def test_two_stages_and_a_relay_give_the_whole_models_result(driver: Driver, chain: Chain) -> None:
    random = np.random.default_rng(0)
    for request in range(20):
        # Rows from 1 to 2000: the smaller go by the copying path, the larger by shared frames.
        x = random.standard_normal((1 + 105 * request, 64)).astype(np.float32)
        driver.send(chain.first, 1, request, 0, {"x": x})
        header, frames = driver.result()
        got = arrays_of(header, frames) if header.tensors[0].codec == "raw" else {}
        assert (header.epoch, header.request, header.hop, header.trace) == (1, request, 3, "00-trace")
        np.testing.assert_allclose(got["y"], chain.expected(x), atol=1e-4)
        assert [tensor.name for tensor in header.tensors] == ["y", "x"]
        np.testing.assert_array_equal(got["x"], x)
    status = [link.ask(m.StatusRequest) for link in chain.links]
    assert [one.hops[0].kind for one in status] == ["run", "relay", "run"]
    assert [one.hops[0].items for one in status] == [20, 20, 20]
    assert [one.hops[0].queued for one in status] == [0, 0, 0]
    assert all(one.hops[0].bytes_in > 0 and one.hops[0].bytes_out > 0 for one in status)


def test_items_of_another_epoch_are_dropped_and_their_credit_comes_back(driver: Driver, chain: Chain) -> None:
    x = np.ones((1, 64), np.float32)
    window = Window()
    for request in range(window.items):
        driver.send(chain.first, 7, request, 0, {"x": x})
    credit = [driver.header(chain.first) for _ in range(4)]
    assert sum(one.items for one in credit) == window.items
    assert sum(one.nbytes for one in credit) == window.items * x.nbytes
    driver.send(chain.first, 1, 99, 0, {"x": x})
    assert driver.result()[0].request == 99
    assert chain.links[0].ask(m.StatusRequest).stale == window.items


def test_an_expired_deadline_comes_back_as_a_failure(driver: Driver, chain: Chain) -> None:
    driver.send(chain.first, 1, 5, 0, {"x": np.ones((1, 64), np.float32)}, remaining=1)
    failure, _ = driver.result()
    assert (failure.code, failure.where, failure.hop, failure.request) == ("deadline-exceeded", "a", 3, 5)


def test_remaining_time_shrinks_by_what_each_hop_took(driver: Driver, chain: Chain) -> None:
    granted = 60_000_000_000
    driver.send(chain.first, 1, 5, 0, {"x": np.ones((1, 64), np.float32)}, remaining=granted)
    item, _ = driver.result()
    assert 0 < item.remaining_ns < granted


def test_wrong_tensors_come_back_as_a_failure(driver: Driver, chain: Chain) -> None:
    wrong = [
        {"z": np.ones((1, 64), np.float32)},
        {"x": np.ones((1, 63), np.float32)},
        {"x": np.ones((1, 64), np.float64)},
    ]
    for request, arrays in enumerate(wrong):
        driver.send(chain.first, 1, request, 0, arrays)
        failure, _ = driver.result()
        assert (failure.code, failure.where, failure.request) == ("wrong-input", "a", request)


def test_a_failing_run_comes_back_with_the_engines_words(driver: Driver, start_agent: Start) -> None:
    inputs = (spec("x", "n"), spec("shape", 2, dtype="int64"))
    _, link, socket = one_stage(
        driver, start_agent, reshaped(), inputs=inputs, outputs=(spec("y", "a", "b"),), send=("y",)
    )
    x = np.ones(6, np.float32)
    driver.send(socket, 1, 1, 0, {"x": x, "shape": np.array([4, 4])})
    failure, _ = driver.result()
    assert (failure.code, failure.where) == ("run-failed", "one")
    assert "eshape" in failure.message
    driver.send(socket, 1, 2, 0, {"x": x, "shape": np.array([2, 3])})
    header, frames = driver.result()
    assert arrays_of(header, frames)["y"].shape == (2, 3)
    assert link.ask(m.StatusRequest).hops[0].failures == 1


def test_never_more_is_under_way_than_the_credit_allows(driver: Driver, start_agent: Start) -> None:
    """With nobody to take results the agent takes exactly one window in, and goes on when credit comes."""
    _, link, socket = one_stage(
        driver, start_agent, identity(), inputs=(spec("x", "n"),), outputs=(spec("y", "n"),), send=("y",)
    )
    window = Window()
    x = np.ones(4, np.float32)
    for request in range(window.items):
        driver.send(socket, 1, request, 0, {"x": x})
    beat = link.beat(lambda beat: beat.progress == window.items)
    assert beat.queued == window.items
    driver.send(socket, 1, 1000, 0, {"x": x})
    refusal = driver.header(socket)
    assert isinstance(refusal, m.Refusal)
    assert refusal.code == "flow-violation"
    requests = [driver.result()[0].request for _ in range(window.items)]
    # Each once; their order is nobody's promise: a run that became short may overtake one in the run thread.
    assert sorted(requests) == list(range(window.items))
    link.beat(lambda beat: beat.queued == 0)


def test_an_item_larger_than_the_whole_window_passes(driver: Driver, start_agent: Start) -> None:
    _, _, socket = one_stage(
        driver, start_agent, identity(), inputs=(spec("x", "n"),), outputs=(spec("y", "n"),), send=("y",)
    )
    x = np.arange(Window().nbytes // 4 + 1000, dtype=np.float32)
    for request in range(2):
        driver.send(socket, 1, request, 0, {"x": x})
        header, frames = driver.result()
        np.testing.assert_array_equal(arrays_of(header, frames)["y"], x)
        credit = driver.header(socket)
        assert (credit.items, credit.nbytes) == (1, x.nbytes)


def test_a_hang_shows_in_the_heartbeats_and_does_not_stop_them(driver: Driver, start_agent: Start) -> None:
    agent, link, socket = one_stage(
        driver,
        start_agent,
        spin(),
        inputs=(spec("n", dtype="int64"),),
        outputs=(spec("y", 64, 64),),
        send=("y",),
    )
    driver.send(socket, 1, 1, 0, {"n": np.array(1 << 40)})
    beat = link.beat(lambda beat: beat.item_age_s > 0.5)
    assert (beat.progress, beat.queued) == (0, 1)
    assert isinstance(link.ask(m.StatusRequest), m.AgentStatus)
    agent.process.send_signal(signal.SIGTERM)
    link.beat(lambda beat: beat.state == "draining")
    code, _ = agent.end(signal.SIGINT)
    assert code == 128 + signal.SIGINT


def test_a_cancelled_item_is_not_run_and_whoever_is_next_is_told(driver: Driver, start_agent: Start) -> None:
    _, link, socket = one_stage(
        driver,
        start_agent,
        spin(),
        inputs=(spec("n", dtype="int64"),),
        outputs=(spec("y", 64, 64),),
        send=("y",),
    )
    driver.send(socket, 1, 0, 0, {"n": np.array(5_000)})
    assert driver.result()[0].request == 0  # so that the connection stands, and runs are known to be long
    driver.send(socket, 1, 1, 0, {"n": np.array(200_000)})
    driver.send(socket, 1, 2, 0, {"n": np.array(1 << 40)})  # would run for ever
    driver.send(socket, 1, 3, 0, {"n": np.array(1)})
    link.beat(lambda beat: beat.queued == 3)
    for request in (2, 9):  # 9 was never here
        socket.send(ENCODER.encode(m.Cancel(1, request, 0)))
    socket.send(ENCODER.encode(m.Cancel(7, 2, 0)))  # of an epoch that is not loaded: heard by nobody
    heard = [driver.result()[0] for _ in range(5)]
    assert {header for header in heard if isinstance(header, m.Cancel)} == {
        m.Cancel(1, 2, 1),
        m.Cancel(1, 9, 1),
    }
    first, second, third = (header for header in heard if not isinstance(header, m.Cancel))
    assert (type(first), first.request) == (m.Item, 1)
    assert (type(second), second.request, second.code) == (m.Failure, 2, "cancelled")
    assert (type(third), third.request) == (m.Item, 3)
    link.beat(lambda beat: beat.queued == 0)


def test_a_peer_that_comes_back_gets_what_waited(driver: Driver, start_agent: Start) -> None:
    _, link, socket = one_stage(
        driver, start_agent, identity(), inputs=(spec("x", "n"),), outputs=(spec("y", "n"),), send=("y",)
    )
    driver.send(socket, 1, 1, 0, {"x": np.ones(1, np.float32)})
    assert driver.result()[0].request == 1
    port = int(driver.endpoint.rsplit(":", 1)[1])
    driver.results.close(0)
    time.sleep(0.2)
    for request in (2, 3):
        driver.send(socket, 1, request, 0, {"x": np.ones(1, np.float32)})
    link.beat(lambda beat: beat.progress == 3)
    driver.results = driver.socket(zmq.ROUTER)
    deadline = time.monotonic() + 10
    while True:
        try:
            driver.results.bind(f"tcp://127.0.0.1:{port}")
            break
        except zmq.ZMQError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert {driver.result()[0].request for _ in range(2)} <= {2, 3}


def test_an_agent_behind_nat_dials_for_orders_items_and_results(driver: Driver, start_agent: Start) -> None:
    """Nothing dials the agent: control to the dispatcher's api, items from its fetch port, results to its data-in."""
    api = driver.socket(zmq.ROUTER)
    port = api.bind_to_random_port("tcp://127.0.0.1")
    agent = start_agent("nat", "--dial", f"tcp://127.0.0.1:{port}")
    who, first = api.recv_multipart() if api.poll(10_000) else (b"", b"")
    link = ControlLink(api, who)
    hello = CONTROL.decode(first)
    assert (hello.name, hello.role, hello.boot) == ("nat", "agent", agent.ready["boot"])
    assert hello.register.engines[0].name == "onnxruntime-cpu"
    link.say(m.Welcome(hello.id, 1, "test", "boot"))
    link.beat(lambda beat: beat.boot == hello.boot)
    graph = identity()
    link.ship(graph)
    answer = link.load(
        3,
        hop(
            4,
            m.PeerRef("test", driver.fetch_endpoint),
            driver.peer,
            graph=ref(graph),
            inputs=(spec("x", "n"),),
            outputs=(spec("y", "n"),),
            send=("y",),
        ),
    )
    assert isinstance(answer, m.Loaded), answer
    assert driver.fetch.poll(10_000)
    fetcher, greeting = driver.fetch.recv_multipart()
    assert greeting == ENCODER.encode(m.Greeting(1, 1, "nat", inline=True))
    driver.fetch.send_multipart([fetcher, ENCODER.encode(m.Greeting(1, 1, "test"))])
    assert driver.fetch.poll(10_000)
    assert driver.header(driver.fetch) == m.Credit(Window().items, Window().nbytes)
    x = np.arange(50_000, dtype=np.float32)
    tensor = m.TensorHeader("x", "float32", x.shape, "raw", x.nbytes)
    item = ENCODER.encode(m.Item(3, 8, 4, -1, (tensor,)))
    driver.fetch.send_multipart([fetcher, item, x.tobytes()])
    header, frames = driver.result()
    assert (header.request, header.hop) == (8, 5)
    np.testing.assert_array_equal(arrays_of(header, frames)["y"], x)


def test_a_peer_may_fetch_results(driver: Driver, start_agent: Start) -> None:
    """The next hop sits behind NAT: it dials the fetch port, also before and after items wait for it."""
    agent = start_agent("one")
    link = driver.control(agent)
    link.load(1, hop(0, m.PeerRef("test"), m.PeerRef("nat")))
    socket, _ = driver.dial(agent.data)
    driver.send(socket, 1, 1, 0, {"x": np.ones(3, np.float32)})
    link.beat(lambda beat: beat.queued == 1)
    for request in (1, 2):
        fetch = driver.socket(zmq.DEALER)
        fetch.connect(agent.fetch)
        fetch.send(ENCODER.encode(m.Greeting(1, 1, "nat")))
        assert isinstance(driver.header(fetch), m.Greeting)
        # One credit: the next item waits for the next connection instead of leaving into a closing one.
        fetch.send(ENCODER.encode(m.Credit(1, 10_000)))
        item = driver.header(fetch)
        assert (item.request, item.hop) == (request, 1)
        fetch.close(0)
        driver.send(socket, 1, request + 1, 0, {"x": np.ones(3, np.float32)})


def test_unloading_drops_what_waits_and_gives_its_credit_back(driver: Driver, start_agent: Start) -> None:
    agent = start_agent("one")
    link = driver.control(agent)
    link.load(1, hop(0, m.PeerRef("test"), m.PeerRef("nobody")))
    socket, _ = driver.dial(agent.data)
    for request in range(8):
        driver.send(socket, 1, request, 0, {"x": np.ones(3, np.float32)})
    link.beat(lambda beat: beat.queued == 8)
    assert isinstance(link.ask(m.Unload, 1), m.Done)
    assert driver.header(socket).items == 8
    beat = link.beat(lambda beat: not beat.epochs)
    assert beat.queued == 0
    assert isinstance(link.ask(m.Unload, 1), m.Done)


def test_links_are_measured_on_sockets_of_their_own(driver: Driver, start_agent: Start) -> None:
    a, b = start_agent("a"), start_agent("b")
    link = driver.control(a)
    measured = link.ask(m.MeasureLink, m.PeerRef("b", b.data), nbytes=1 << 20, budget_s=0.2)
    assert measured.bandwidth > 1e6
    assert 0 < measured.delay < 1
    fault = link.ask(m.MeasureLink, m.PeerRef("b"))
    assert fault.code == "cannot-probe"


def test_epochs_change_under_load_and_every_item_is_accounted_for(driver: Driver, start_agent: Start) -> None:
    """Short runs are done in the receive thread: unloading must not take a partition away under one."""
    graph = identity()
    tensors = {"inputs": (spec("x", "n"),), "outputs": (spec("y", "n"),), "send": ("y",)}
    agent, link, socket = one_stage(driver, start_agent, graph, **tensors)
    request = 0
    for epoch in range(2, 12):
        assert isinstance(
            link.load(epoch, hop(0, m.PeerRef("test"), driver.peer, graph=ref(graph), **tensors)), m.Loaded
        )
        for _ in range(30):
            driver.send(socket, epoch - 1, request, 0, {"x": np.full(10, request, np.float32)})
            header, frames = driver.result()
            assert header.request == request
            assert arrays_of(header, frames)["y"][0] == request
            request += 1
        for number in range(10):
            driver.send(socket, epoch - 1, request + number, 0, {"x": np.ones(10, np.float32)})
        assert isinstance(link.ask(m.Unload, epoch - 1), m.Done)
        came = 0
        while driver.results.poll(300):
            header, _ = driver.result()
            assert request <= header.request < request + 10
            came += 1
        request += 10
        assert came <= 10
        assert link.beat(lambda beat: beat.queued == 0).epochs == (epoch,)
    assert agent.end() == (0, "")


def test_agents_on_ipv6_and_ipv4_reach_each_other(driver: Driver, start_agent: Start) -> None:
    if not has_ipv6():
        pytest.skip("this machine has no IPv6 loopback")
    six, four = start_agent("six", "--listen", "[::1]:0"), start_agent("four")
    assert six.control.startswith("tcp://[::1]:")
    links = {agent.name: driver.control(agent) for agent in (six, four)}
    # four → six by data-in, six → four by fetch: both ways of dialling, to both kinds of address.
    hops = {
        "four": (
            hop(0, m.PeerRef("test"), m.PeerRef("six", six.data)),
            hop(2, m.PeerRef("six", six.fetch), driver.peer),
        ),
        "six": (hop(1, m.PeerRef("four"), m.PeerRef("four")),),
    }
    for name, link in links.items():
        answer = link.load(1, *hops[name])
        assert isinstance(answer, m.Loaded), answer
    measured = links["four"].ask(m.MeasureLink, m.PeerRef("six", six.data), nbytes=1 << 16, budget_s=0.1)
    assert isinstance(measured, m.LinkMeasured), measured
    first, _ = driver.dial(four.data)
    x = np.arange(5, dtype=np.float32)
    driver.send(first, 1, 9, 0, {"x": x})
    header, frames = driver.result()
    assert (header.request, header.hop) == (9, 3)
    np.testing.assert_array_equal(arrays_of(header, frames)["x"], x)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
