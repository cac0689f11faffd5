"""The agent's mind: events in, instructions out; no socket, thread or clock."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from node_agent import events as ev
from node_agent import messages as m
from node_agent.controllers import HELLO_AGAIN_S, PATIENCE_S, REFUSED_AGAIN_S, REMIND_S
from node_agent.core import AgentCore
from node_agent.epochs import check_peer
from node_agent.errors import RequestError, sentences
from node_agent.versions import VersionRange

HERE: ev.Connection = ("listen", b"1")
OTHER: ev.Connection = ("listen", b"2")
DIAL: ev.Connection = ("tcp://dispatcher:7600", b"")
OFFER = m.Offer(
    (m.EngineInfo("fast", "1"), m.EngineInfo("gone", missing='pip install "x"')), 1000, 1.0, 1, "f", 2, 3
)
GRAPH = m.FileRef("a" * 64, 100, ".onnx")
WEIGHT = m.FileRef("b" * 64, 500)


def a_hop(number: int = 0, **more: Any) -> m.HopSpec:
    fields: dict[str, Any] = {
        "graph": GRAPH,
        "weights": (WEIGHT,),
        "outputs": (m.TensorSpec("y", "float32", (1,)),),
        "send": ("y",),
    }
    return m.HopSpec(number, m.PeerRef("p"), m.PeerRef("n", "tcp://h:1"), **{**fields, **more})


class Mind:
    """A core with a known controller, and short words for what tests do with it."""

    def __init__(self, dials: tuple[ev.Connection, ...] = (), ours: VersionRange | None = None) -> None:
        self.core = AgentCore("me", "boot", OFFER, dials, ours or VersionRange(1, 1))
        self.now = 0.0

    def hello(self, connection: ev.Connection = HERE) -> Mind:
        self.hear(m.Hello(1, 1, 1, "boss", "dispatcher"), connection)
        return self

    def hear(
        self, message: Any, connection: ev.Connection = HERE, payload: Any = None
    ) -> list[ev.Instruction]:
        return self.do(ev.Received(connection, message, payload))

    def do(self, event: ev.Event) -> list[ev.Instruction]:
        return self.core.handle(event, self.now)

    def tick(self, queued: int = 0, age: float = 0.0) -> list[ev.Instruction]:
        return self.do(ev.Tick(ev.Gauge(7, age, queued, 9)))

    def loaded(self, epoch: int = 1) -> Mind:
        self.hear(m.Load(5, epoch, "model", (a_hop(),)))
        self.do(ev.PartitionsLoaded(epoch, 2.0, 300, "fast"))
        return self


def said(instructions: list[ev.Instruction]) -> list[Any]:
    return [each.message for each in instructions if isinstance(each, ev.Say)]


def fault_of(instructions: list[ev.Instruction]) -> str:
    (message,) = said(instructions)
    assert isinstance(message, m.Fault), message
    assert message.message
    return message.code


def test_hello_is_answered_with_the_offer() -> None:
    (say, log) = Mind().hear(m.Hello(4, 1, 1, "boss", "dispatcher"))
    assert say == ev.Say(HERE, m.Welcome(4, 1, "me", "boot", OFFER))
    assert isinstance(log, ev.Log)


@pytest.mark.parametrize(
    ("ours", "theirs", "spoken"),
    [((1, 1), (1, 2), 1), ((1, 2), (2, 3), 2), ((2, 3), (1, 2), 2), ((1, 2), (1, 1), 1), ((3, 3), (1, 9), 3)],
)
def test_neighbouring_versions_agree(ours: Any, theirs: Any, spoken: int) -> None:
    answer = said(Mind(ours=VersionRange(*ours)).hear(m.Hello(1, *theirs, "boss", "dispatcher")))[0]
    assert isinstance(answer, m.Welcome)
    assert answer.version == spoken


@pytest.mark.parametrize(
    ("ours", "theirs"), [((1, 1), (2, 3)), ((2, 3), (1, 1)), ((1, 1), (3, 2)), ((1, 1), (0, 0))]
)
def test_versions_apart_are_refused_and_told_to_the_operator(ours: Any, theirs: Any) -> None:
    mind = Mind(ours=VersionRange(*ours))
    instructions = mind.hear(m.Hello(1, *theirs, "boss", "dispatcher"))
    assert fault_of(instructions) == "incompatible-version"
    assert any(isinstance(each, ev.Log) and each.level == logging.WARNING for each in instructions)
    assert fault_of(mind.hear(m.StatusRequest(2))) == "no-hello"


def test_orders_before_hello_are_refused() -> None:
    for message in (m.Want(1, (GRAPH,)), m.Load(1, 1, "m", (a_hop(),)), m.Drain(1), m.StatusRequest(1)):
        assert fault_of(Mind().hear(message)) == "no-hello"


def test_answers_are_not_answered() -> None:
    for message in (m.Welcome(1, 1, "x", "b"), m.Taken(1, 2), m.Heartbeat("b", 1, 0, 0, "serving")):
        assert said(Mind().hello().hear(message)) == []


def test_heartbeats_go_to_every_controller_with_the_gauge() -> None:
    mind = Mind().hello().hello(OTHER).loaded()
    beat = m.Heartbeat("boot", 7, 1.5, 3, "serving", 9, (1,))
    assert mind.tick(3, 1.5) == [ev.Say(HERE, beat), ev.Say(OTHER, beat)]
    mind.do(ev.Lost(HERE))
    assert mind.tick(3, 1.5) == [ev.Say(OTHER, beat)]


def test_files_are_checked_and_stored() -> None:
    mind = Mind().hello()
    ticket = ev.Ticket(HERE, 3)
    assert mind.hear(m.Want(3, (GRAPH, WEIGHT))) == [ev.CheckFiles(ticket, (GRAPH, WEIGHT))]
    assert mind.hear(m.Chunk(3, GRAPH, 0), payload=b"x") == [ev.StoreChunk(ticket, GRAPH, 0, b"x")]
    assert mind.do(ev.Finished(ticket, m.Taken(3, 1), chunk=True)) == [ev.Say(HERE, m.Taken(3, 1))]
    assert fault_of(mind.hear(m.Chunk(3, GRAPH, 0))) == "bad-chunk"


@pytest.mark.parametrize("bad", ["../../etc/passwd", "A" * 64, "a" * 63, ""])
def test_only_content_addresses_are_files(bad: str) -> None:
    mind = Mind().hello()
    assert fault_of(mind.hear(m.Want(1, (m.FileRef(bad, 1),)))) == "invalid-file"
    assert fault_of(mind.hear(m.Want(1, (m.FileRef("a" * 64, 1, "/x"),)))) == "invalid-file"
    assert fault_of(mind.hear(m.Want(1, (m.FileRef("a" * 64, 1, ".part"),)))) == "invalid-file"
    assert fault_of(mind.hear(m.Want(1, (m.FileRef("a" * 64, -1),)))) == "invalid-file"
    assert fault_of(mind.hear(m.Chunk(1, m.FileRef(bad, 1), 0), payload=b"x")) == "invalid-file"


def test_chunks_that_wait_are_bounded_per_connection() -> None:
    mind = Mind().hello().hello(OTHER)
    for number in range(m.CHUNK_WINDOW):
        # One id for several is one more that waits all the same.
        assert isinstance(mind.hear(m.Chunk(number // 2, GRAPH, 0), payload=b"x")[0], ev.StoreChunk)
    assert fault_of(mind.hear(m.Chunk(0, GRAPH, 0), payload=b"x")) == "too-many-chunks"
    mind.do(ev.Finished(ev.Ticket(HERE, 4), m.Have(4, ())))
    assert fault_of(mind.hear(m.Chunk(99, GRAPH, 0), payload=b"x")) == "too-many-chunks"
    assert isinstance(mind.hear(m.Chunk(0, GRAPH, 0), OTHER, b"x")[0], ev.StoreChunk)
    mind.do(ev.Finished(ev.Ticket(HERE, 4), m.Taken(4, 1), chunk=True))
    assert isinstance(mind.hear(m.Chunk(99, GRAPH, 0), payload=b"x")[0], ev.StoreChunk)


def test_a_load_from_order_to_answer() -> None:
    mind = Mind().hello()
    load = m.Load(5, 1, "model", (a_hop(),))
    assert mind.hear(load) == [ev.LoadPartitions(load)]
    assert said(mind.do(ev.LoadProgressed(1, "loading", 0.5))) == [m.Progress(5, "loading", 0.5)]
    assert mind.core.loaded == ()
    answer = mind.do(ev.PartitionsLoaded(1, 2.0, 300, "fast"))
    assert answer == [ev.Install(load), ev.Say(HERE, m.Loaded(5, 1, 2.0, 300, "fast"))]
    assert mind.core.loaded == (1,)


def test_a_load_asked_twice_is_done_once() -> None:
    """The dispatcher lost its connection, or its answer, and asks again on another one."""
    mind = Mind().hello().hello(OTHER)
    mind.hear(m.Load(5, 1, "model", (a_hop(),)))
    assert mind.hear(m.Load(9, 1, "model", (a_hop(),)), OTHER) == []
    answers = mind.do(ev.PartitionsLoaded(1, 2.0, 300, "fast"))
    assert said(answers) == [m.Loaded(5, 1, 2.0, 300, "fast"), m.Loaded(9, 1, 2.0, 300, "fast")]
    assert mind.hear(m.Load(10, 1, "model", (a_hop(),))) == [ev.Say(HERE, m.Loaded(10, 1, 2.0, 300, "fast"))]
    assert fault_of(mind.hear(m.Load(11, 1, "model", (a_hop(1),)))) == "epoch-conflict"


def test_a_load_that_fails_leaves_nothing() -> None:
    mind = Mind().hello()
    mind.hear(m.Load(5, 1, "model", (a_hop(),)))
    assert said(mind.do(ev.LoadFailed(1, "load-failed", "No.", "Try."))) == [
        m.Fault(5, "load-failed", "No.", "Try.")
    ]
    assert isinstance(mind.hear(m.Load(6, 1, "model", (a_hop(),)))[0], ev.LoadPartitions)


def test_memory_is_checked_before_anything_is_loaded() -> None:
    mind = Mind().hello().loaded(1)
    other = m.FileRef("c" * 64, 100, ".onnx")
    assert isinstance(mind.hear(m.Load(6, 2, "model", (a_hop(),)))[0], ev.LoadPartitions), (
        "the same partition is shared"
    )
    answer = mind.hear(m.Load(7, 3, "model", (a_hop(graph=other, weights=(WEIGHT,)),)))
    assert fault_of(answer) == "out-of-memory"
    assert "600 B" in said(answer)[0].message
    assert "400 B of 1000 B" in said(answer)[0].message
    mind.hear(m.Unload(8, 1))
    mind.do(ev.Retired(1))
    mind.hear(m.Unload(8, 2))
    mind.do(ev.PartitionsLoaded(2, 1.0, 1, "fast"))
    assert isinstance(mind.hear(m.Load(9, 3, "model", (a_hop(graph=other),)))[0], ev.LoadPartitions)


def test_a_machine_that_does_not_say_how_much_memory_it_has_takes_loads() -> None:
    mind = Mind()
    mind.core.offer = msgspec.structs.replace(OFFER, memory_bytes=0)
    mind.hello()
    assert isinstance(mind.hear(m.Load(9, 3, "model", (a_hop(),)))[0], ev.LoadPartitions)


@pytest.mark.parametrize(
    ("load", "code"),
    [
        (m.Load(1, 0, "m", (a_hop(),)), "bad-load"),
        (m.Load(1, 1, "m", ()), "bad-load"),
        (m.Load(1, 1, "m", (a_hop(1), a_hop(1))), "bad-load"),
        (m.Load(1, 1, "m", (a_hop(-1),)), "bad-load"),
        (m.Load(1, 1, "m", (a_hop(outputs=()),)), "bad-load"),
        (m.Load(1, 1, "m", (a_hop(send=("y", "y")),)), "bad-load"),
        (m.Load(1, 1, "m", (a_hop(codec="zip"),)), "unknown-codec"),
        (m.Load(1, 1, "m", (a_hop(graph=m.FileRef("x", 1)),)), "invalid-file"),
        (m.Load(1, 1, "m", (a_hop(),), engine="slow"), "engine-missing"),
        (m.Load(1, 1, "m", (a_hop(),), engine="gone", options={"fallback": "no"}), "engine-missing"),
        (m.Load(1, 1, "m", (a_hop(),), engine="gone", options={"gone.fallback": "no"}), "engine-missing"),
        (m.Load(1, 1, "m", (a_hop(),), engine="gone", options={"fallback": "maybe"}), "load-failed"),
        (m.Load(1, 1, "m", (m.HopSpec(0, m.PeerRef(""), m.PeerRef("n")),)), "bad-peer"),
        (m.Load(1, 1, "m", (m.HopSpec(0, m.PeerRef("p", "ipc://x"), m.PeerRef("n")),)), "bad-peer"),
        (m.Load(1, 1, "m", (m.HopSpec(0, m.PeerRef("p"), m.PeerRef("n", "tcp://h")),)), "bad-peer"),
        (m.Load(1, 1, "m", (m.HopSpec(0, m.PeerRef("p"), m.PeerRef("n", "tcp://a b:1")),)), "bad-peer"),
    ],
)
def test_a_load_that_cannot_be_is_refused(load: m.Load, code: str) -> None:
    assert fault_of(Mind().hello().hear(load)) == code


def test_an_unload_from_order_to_answer() -> None:
    mind = Mind().hello().loaded()
    assert mind.hear(m.Unload(6, 1)) == [ev.Retire(1)]
    assert mind.hear(m.Unload(7, 1)) == []
    assert fault_of(mind.hear(m.Load(8, 1, "model", (a_hop(),)))) == "epoch-conflict"
    assert mind.do(ev.Retired(1)) == [ev.Release(1), ev.Say(HERE, m.Done(6)), ev.Say(HERE, m.Done(7))]
    assert said(mind.hear(m.Unload(9, 1))) == [m.Done(9)]


def test_an_unload_cancels_a_load() -> None:
    mind = Mind().hello()
    mind.hear(m.Load(5, 1, "model", (a_hop(),)))
    assert fault_of(mind.hear(m.Unload(6, 1))) == "cancelled"
    assert mind.do(ev.PartitionsLoaded(1, 2.0, 3, "fast")) == [ev.Release(1), ev.Say(HERE, m.Done(6))]
    mind.hear(m.Load(5, 1, "model", (a_hop(),)))
    mind.hear(m.Unload(6, 1))
    assert said(mind.do(ev.LoadFailed(1, "load-failed", "No."))) == [m.Done(6)]


def test_nothing_is_said_to_a_connection_that_is_gone() -> None:
    mind = Mind().hello()
    mind.hear(m.Load(5, 1, "model", (a_hop(),)))
    mind.do(ev.Lost(HERE))
    assert said(mind.do(ev.PartitionsLoaded(1, 2.0, 3, "fast"))) == []
    assert mind.core.loaded == (1,), "what was loaded stays: the dispatcher may come back"


def test_jobs_are_handed_on_and_answered() -> None:
    mind = Mind().hello()
    ticket = ev.Ticket(HERE, 2)
    measure = m.Measure(2, "s", GRAPH, (), (), ())
    probe = m.MeasureLink(2, m.PeerRef("p", "tcp://h:1"))
    assert mind.hear(measure) == [ev.RunMeasure(ticket, measure)]
    assert mind.hear(probe) == [ev.RunProbe(ticket, probe)]
    assert mind.hear(m.StatusRequest(2)) == [ev.ReportStatus(ticket, "serving")]
    assert mind.hear(m.Done(2)) == [ev.ForgetMeasured()]
    assert fault_of(mind.hear(m.MeasureLink(2, m.PeerRef("p")))) == "cannot-probe"


def test_draining_takes_no_load_and_is_done_when_idle() -> None:
    mind = Mind().hello()
    assert mind.hear(m.Drain(3)) == [ev.StopCredit()]
    assert fault_of(mind.hear(m.Load(5, 1, "model", (a_hop(),)))) == "draining"
    assert fault_of(mind.hear(m.Measure(2, "s", GRAPH, (), (), ()))) == "draining"
    assert [type(each) for each in said(mind.tick(queued=1))] == [m.Heartbeat]
    assert said(mind.tick())[0].state == "draining"
    assert m.Done(3) in said(mind.tick())
    assert m.Done(3) not in said(mind.tick())


def test_a_stop_waits_for_what_is_queued_but_not_for_ever() -> None:
    mind = Mind().hello()
    assert ev.StopCredit() in mind.do(ev.StopAsked(5.0))
    assert ev.Stop() not in mind.tick(queued=2)
    mind.now = 4.9
    assert ev.Stop() not in mind.tick(queued=2)
    mind.now = 5.0
    last = mind.tick(queued=2)
    assert last[-1] == ev.Stop()
    assert any(isinstance(each, ev.Log) and "2 items unfinished" in each.text for each in last)
    idle = Mind()
    idle.do(ev.StopAsked(5.0))
    assert [ev.Stop() in idle.tick() for _ in range(2)] == [False, True]
    hanging = Mind()
    hanging.do(ev.StopAsked(5.0))
    assert not any(ev.Stop() in hanging.tick(age=9.0) for _ in range(3))


def test_dialling_out_registers_and_obeys() -> None:
    mind = Mind(dials=(DIAL,))
    assert mind.tick() == [], "nothing is said before the connection stands"
    assert mind.do(ev.Dialled(DIAL)) == [ev.Say(DIAL, m.Hello(1, 1, 1, "me", "agent", OFFER, "boot"))]
    assert fault_of(mind.hear(m.StatusRequest(1), DIAL)) == "no-hello"
    mind.hear(m.Welcome(1, 1, "boss", "b2"), DIAL)
    assert isinstance(said(mind.tick())[0], m.Heartbeat)
    assert isinstance(mind.hear(m.StatusRequest(1), DIAL)[0], ev.ReportStatus)
    mind.do(ev.Lost(DIAL))
    assert mind.tick() == []
    assert said(mind.do(ev.Dialled(DIAL)))[0].id == 2


def test_an_unanswered_registration_is_repeated_and_a_refused_one_later() -> None:
    mind = Mind(dials=(DIAL,))
    mind.do(ev.Dialled(DIAL))
    mind.now = HELLO_AGAIN_S - 0.1
    assert mind.tick() == []
    mind.now = HELLO_AGAIN_S
    assert said(mind.tick())[0].id == 2
    (log,) = mind.hear(m.Fault(2, "incompatible-version", "No.", "Update."), DIAL)
    assert isinstance(log, ev.Log)
    assert log.level == logging.ERROR
    mind.now = HELLO_AGAIN_S + REFUSED_AGAIN_S - 0.1
    assert mind.tick() == []
    mind.now += 0.1
    assert said(mind.tick())[0].id == 3


def logged(instructions: list[ev.Instruction]) -> list[tuple[int, str]]:
    return [(each.level, each.text) for each in instructions if isinstance(each, ev.Log)]


def test_an_agent_that_is_registered_nowhere_says_so_seldom_and_then_that_it_is() -> None:
    mind = Mind(dials=(DIAL,))
    told: list[tuple[float, str]] = []
    for tenth in range(int(10 * (PATIENCE_S + 2 * REMIND_S)) + 10):
        mind.now = tenth / 10
        assert not mind.core.calm
        told += [(mind.now, text) for level, text in logged(mind.tick()) if level == logging.WARNING]
    assert [at for at, _ in told] == pytest.approx([PATIENCE_S + n * REMIND_S for n in range(3)], abs=0.2)
    assert all("No dispatcher answers at tcp://dispatcher:7600" in text for _, text in told)
    (hello,) = said(mind.do(ev.Dialled(DIAL)))
    registered = "Registered with boss at tcp://dispatcher:7600."
    assert mind.hear(m.Welcome(hello.id, 1, "boss", "b"), DIAL) == [ev.Log(logging.INFO, registered, True)]
    assert mind.core.calm
    mind.do(ev.Lost(DIAL))
    assert logged(mind.tick()) == []
    (hello,) = said(mind.do(ev.Dialled(DIAL)))
    # A break that is over at once is no news.
    assert mind.hear(m.Welcome(hello.id, 1, "boss", "b"), DIAL) == [ev.Log(logging.INFO, registered)]


def test_somebody_who_takes_connections_and_is_no_dispatcher_is_told_of() -> None:
    mind = Mind(dials=(DIAL,))
    mind.do(ev.Dialled(DIAL))
    mind.tick()
    mind.now = PATIENCE_S + 0.1
    ((level, text),) = logged(mind.tick())
    assert (level, "answers nothing as a dispatcher does" in text) == (logging.WARNING, True)
    ((level, text),) = logged(mind.hear(m.Welcome(1, 1, "cam", "b", OFFER), DIAL))
    assert (level, "is the agent 'cam', and no dispatcher" in text) == (logging.ERROR, True)
    assert logged(mind.hear(m.Welcome(1, 1, "cam", "b", OFFER), DIAL)) == []
    assert fault_of(mind.hear(m.StatusRequest(1), DIAL)) == "no-hello"


def test_of_two_dispatchers_one_that_does_not_answer_is_no_news() -> None:
    other: ev.Connection = ("tcp://standby:7600", b"")
    mind = Mind(dials=(DIAL, other))
    mind.do(ev.Dialled(DIAL))
    mind.hear(m.Welcome(1, 1, "boss", "b"), DIAL)
    mind.tick()
    mind.now = PATIENCE_S + REMIND_S
    assert logged(mind.tick()) == []
    assert mind.core.calm


def test_why_it_was_refused_is_said_once_in_a_while() -> None:
    mind = Mind(dials=(DIAL,))
    mind.do(ev.Dialled(DIAL))
    told: list[str] = []
    hello = 1
    for second in range(int(REMIND_S) + 40):
        mind.now = float(second)
        for each in said(mind.tick()):
            hello = each.id
            told += [text for _, text in logged(mind.hear(m.Fault(hello, "x", "No room", "Ask."), DIAL))]
    assert told == ["tcp://dispatcher:7600 refused this agent: No room. Ask."] * 2


def test_what_cannot_be_read_is_answered_once() -> None:
    (say, log) = Mind().do(ev.Unreadable(HERE, "bad-frame", "Not a control message."))
    assert say == ev.Say(HERE, m.Fault(0, "bad-frame", "Not a control message."))
    assert isinstance(log, ev.Log)


REQUESTS = [
    m.Hello(1, 1, 1, "boss", "dispatcher"),
    m.Load(2, 1, "m", (a_hop(),)),
    m.Load(3, 2, "m", (a_hop(),)),
    m.Unload(4, 1),
    m.Unload(5, 2),
    m.Drain(6),
    m.StatusRequest(7),
    m.Done(8),
]


@given(
    st.lists(
        st.tuples(st.sampled_from(["hear", "end", "fail", "retire", "tick"]), st.integers(0, 7)),
        max_size=60,
    )
)
def test_any_order_of_orders_is_answered_exactly_once(steps: list[tuple[str, int]]) -> None:
    """Every request gets one final answer; loads and retirements that run are ended in any order."""
    mind = Mind().hello()
    asked: dict[int, int] = {}
    answers: dict[int, int] = {}
    loading: set[int] = set()
    retiring: set[int] = set()

    def take(instructions: list[ev.Instruction]) -> None:
        for each in instructions:
            if isinstance(each, ev.LoadPartitions):
                assert each.load.epoch not in loading | retiring
                loading.add(each.load.epoch)
            elif isinstance(each, ev.Retire):
                retiring.add(each.epoch)
            elif isinstance(each, ev.ReportStatus):
                answers[each.ticket.id] = answers.get(each.ticket.id, 0) + 1
            elif isinstance(each, ev.Say) and isinstance(each.message, m.Loaded | m.Done | m.Fault):
                answers[each.message.id] = answers.get(each.message.id, 0) + 1

    number = 100
    for step, choice in steps:
        if step == "hear":
            message = REQUESTS[choice]
            if not isinstance(message, m.Hello | m.Done):
                number += 1
                asked[number] = 1
                message = type(message)(number, *[getattr(message, f) for f in message.__struct_fields__[1:]])
            take(mind.hear(message))
        elif step in ("end", "fail") and loading:
            epoch = loading.pop()
            end: ev.Event = ev.PartitionsLoaded(epoch, 1.0, 1, "fast")
            take(mind.do(end if step == "end" else ev.LoadFailed(epoch, "load-failed", "No.")))
        elif step == "retire" and retiring:
            take(mind.do(ev.Retired(retiring.pop())))
        elif step == "tick":
            take(mind.tick())
    while loading or retiring:
        if loading:
            take(mind.do(ev.PartitionsLoaded(loading.pop(), 1.0, 1, "fast")))
        if retiring:
            take(mind.do(ev.Retired(retiring.pop())))
    take(mind.tick())
    take(mind.tick())
    assert answers == asked


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://h:1",
        "tcp://edge_1.local:65535",
        "tcp://10.0.0.5:7700",
        "tcp://[::1]:7700",
        "tcp://[fe80::1%eth0]:1",
        "",
    ],
)
def test_an_endpoint_that_zeromq_takes_is_a_peers(endpoint: str) -> None:
    check_peer(m.PeerRef("p", endpoint))
    if endpoint:
        context = zmq.Context()
        with context.socket(zmq.DEALER) as dealer:
            dealer.connect(endpoint)
        context.destroy(0)


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://a b:1",
        "tcp://h:0",
        "tcp://h:65536",
        "tcp://h:\u0661",
        "tcp://:1",
        "tcp://[]:1",
        "tcp://[::1:1",
        "tcp://::1:1",
        "tcp://-:1",
        "tcp://h;x:1",
        "tcp://h:1\n",
        "tcp://" + "h" * 300 + ":1",
    ],
)
def test_an_endpoint_that_is_none_is_refused_before_a_socket_sees_it(endpoint: str) -> None:
    with pytest.raises(RequestError, match="has endpoint"):
        check_peer(m.PeerRef("p", endpoint))


def test_of_the_dispatchers_that_share_a_state_only_the_latest_leader_gives_orders() -> None:
    mind, old, new, other = Mind(), ("old", b"1"), ("new", b"2"), ("other", b"3")

    def hello(term: int, connection: ev.Connection, realm: str = "edge") -> list[ev.Instruction]:
        return mind.hear(m.Hello(1, 1, 1, "@d", "dispatcher", realm=realm, term=term), connection)

    def obeys(connection: ev.Connection) -> bool:
        answer = said(mind.hear(m.Unload(9, 99), connection))[0]
        return isinstance(answer, m.Done)

    hello(3, old)
    hello(1, other, "elsewhere")
    assert obeys(old)
    hello(4, new)
    assert obeys(new)
    assert not obeys(old), "the older one is not listened to, on a connection that stood before"
    refusal = said(hello(3, old))[0]
    assert isinstance(refusal, m.Fault)
    assert refusal.code == "stale-leader"
    assert not obeys(old)
    assert obeys(other), "another state's terms are its own"
    mind.do(ev.Lost(new))
    assert isinstance(said(hello(3, old))[0], m.Fault), "it is remembered when the leader is gone"
    hello(4, new)
    assert obeys(new)


@pytest.mark.parametrize(
    ("message", "hint", "line"),
    [
        (
            "it is not authorised there",
            "`defer keys list` shows",
            "it is not authorised there. `defer keys list` shows",
        ),
        ("It is full.", "Choose another.", "It is full. Choose another."),
        ("It is full.", "choose another", "It is full; choose another"),
        ("It is full.", "", "It is full."),
    ],
)
def test_what_is_wrong_does_not_run_into_what_to_do(message: str, hint: str, line: str) -> None:
    assert sentences(message, hint) == line
