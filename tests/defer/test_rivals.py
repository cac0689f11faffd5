"""Agents that register under a name that another has: who is taken, who is told why not, and who is one and the same."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from benchmarks.ports import free_ports
from defer.agents_core import SILENCE_S, Adopt, AgentsCore, Notify, Reply, Send
from defer.dispatcher.daemon import Daemon
from defer.documents.cluster import loads_cluster
from defer.local_agents import local_agents
from defer.rivals import ABSENT_S, LIVES_S
from node_agent import messages as m
from tests.defer.test_agents_core import OFFER

AT = "tcp://127.0.0.1:7700"


def hello(number: int, boot: str, name: str = "box") -> m.Hello:
    return m.Hello(number, 1, 1, name, "agent", OFFER, boot)


def a_core(boot: str = "old", at: str = "") -> AgentsCore:
    """A core that knows `box`: dialled at `at`, or registered on the connection `one`."""
    core = AgentsCore("@dispatcher")
    todo = core.dial("box", at, 0.0) if at else core.registered(hello(1, boot), 0.0, b"one")
    greeting = todo[-1]
    assert isinstance(greeting, Send)
    core.received("box", m.Welcome(greeting.message.id, 1, "box", boot, OFFER), 0.0)
    return core


def until_settled(core: AgentsCore, beats: str = "") -> tuple[float, list[object]]:
    """Time and what is done about the rival, while the agent beats with a boot, or is silent."""
    for tenth in range(1, 100):
        now = tenth / 10
        if beats:
            core.received("box", m.Heartbeat(beats, 0, 0.0, 0, "serving"), now)
        done = [each for each in core.tick(now) if isinstance(each, Adopt | Reply | Notify)]
        if any(isinstance(each, Adopt | Reply) for each in done):
            return now, list(done)
    raise AssertionError


def test_a_first_one_is_taken_at_once() -> None:
    core = AgentsCore("@dispatcher")
    assert core.registered(hello(1, "a"), 0.0, b"one")[0] == Adopt("box", b"one")
    # The same process on a new connection, too.
    assert core.registered(hello(2, "a"), 1.0, b"two")[0] == Adopt("box", b"two")


def test_another_of_the_name_of_one_that_lives_is_told() -> None:
    core = a_core()
    assert core.registered(hello(5, "new"), 0.0, b"two") == []
    at, (reply, notice) = until_settled(core, beats="old")
    assert at == pytest.approx(LIVES_S, abs=0.2)
    assert isinstance(reply, Reply)
    assert isinstance(reply.message, m.Fault)
    assert (reply.via, reply.message.id) == (b"two", 5)
    assert "another agent called 'box' is registered" in reply.message.message
    assert notice == Notify("turned-away", "box", reply.message.message)
    assert core.agents["box"].state == "alive"


def test_one_that_comes_in_the_place_of_a_dead_process_is_taken_soon() -> None:
    core = a_core()
    assert core.registered(hello(5, "new"), 0.0, b"two") == []
    at, done = until_settled(core)
    assert at == pytest.approx(SILENCE_S, abs=0.25)
    assert Adopt("box", b"two") in done


@pytest.mark.parametrize(
    ("beats", "who"), [("old", "another agent of that name answers"), ("", "nobody answers")]
)
def test_one_that_registers_as_a_device_with_an_address_is_told(beats: str, who: str) -> None:
    core = a_core(at=AT)
    core.registered(hello(5, "new"), 0.0, b"two")
    core.registered(hello(6, "new"), 0.1, b"two")
    at, (reply, notice) = until_settled(core, beats=beats)
    assert at == pytest.approx(LIVES_S if beats else ABSENT_S, abs=0.2)
    assert isinstance(reply, Reply)
    assert isinstance(reply.message, m.Fault)
    assert reply.message.id == 6, "it answers the last that was said"
    assert f"the cluster has 'box' at 127.0.0.1:7700, where {who}" in reply.message.message
    assert isinstance(notice, Notify)


def test_one_that_is_dialled_and_dials_is_welcomed() -> None:
    core = a_core(at=AT)
    adopt, reply = core.registered(hello(5, "old"), 0.0, b"two")
    assert adopt == Adopt("box", b"two")
    assert reply == Reply(b"two", m.Welcome(5, 1, "@dispatcher", ""))


def test_the_file_has_it_elsewhere_and_it_was_not_dialled_yet() -> None:
    core = AgentsCore("@dispatcher")
    assert core.registered(hello(5, "a"), 0.0, b"two", AT) == []
    _, (reply, _) = until_settled(core)
    assert isinstance(reply, Reply)


def test_an_older_build_of_the_same_name_does_not_hide_one_that_lives() -> None:
    core = a_core()
    reply, notice = core.registered(m.Hello(9, 8, 9, "box", "agent", OFFER, "new"), 0.1, b"two")
    assert isinstance(reply, Reply)
    assert isinstance(notice, Notify)
    assert core.agents["box"].state == "alive"


FILE = """
[dispatcher]
listen = "127.0.0.1:{port}"
[[device]]
name = "here"
address = "{address}"
[[device]]
name = "nat"
dials = true
"""


@pytest.mark.integration
def test_who_is_not_taken_hears_it_and_the_dispatcher_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_ports(3)
    dial = ["--dial", f"tcp://127.0.0.1:{port}"]
    with local_agents(["here", "nat"], tmp_path / "first", arguments={"nat": dial}) as agents:
        described = loads_cluster(FILE.format(port=port, address=agents[0].address))
        with Daemon(described, tmp_path / "state") as daemon:
            daemon.connect(20.0)
            names = ["here", "nat", "zz"]
            with local_agents(names, tmp_path / "second", arguments=dict.fromkeys(names, dial)):
                kinds = {"here": "device-refused", "nat": "device-refused", "zz": "device-unknown"}
                deadline = time.monotonic() + 30
                for name, kind in kinds.items():
                    screen, text = tmp_path / "second" / f"{name}.log", f"an agent called {name} is not taken"

                    def told(
                        kind: str = kind, screen: Path = screen, text: str = text
                    ) -> tuple[bool, bool, int]:
                        events = [event for event in daemon.log.since(0) if event.kind == kind]
                        return (
                            "refused this agent" in screen.read_text(),
                            any(text in event.text for event in events),
                            sum(text in line for line in caplog.messages),
                        )

                    while told() != (True, True, 1):
                        assert time.monotonic() < deadline, (name, told())
                        time.sleep(0.05)
                assert "join = true" in (tmp_path / "second" / "zz.log").read_text()
            assert not [event for event in daemon.log.since(0) if event.device == "zz"]
            for name in ("here", "nat"):
                known = daemon.pool.liveness(name)
                assert known is not None
                assert known.state == "alive"
