"""Sockets with keys: who gets in, who is refused and how both sides hear of it, what a revoked key may still do."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from node_agent.doors import CONTROL, DATA
from node_agent.errors import InsecureListenError, NotAllowedError, UnauthorisedError
from node_agent.frames import encode_header
from node_agent.keys import ALLOWED, REVOKED, Certificate, Keyring, Role, new_pair, write_certificate
from node_agent.link import Monitor, bind, dial, new_context, open_socket, receive, send
from node_agent.messages import Greeting, Item, TensorHeader
from node_agent.security import OPEN, Security

PATIENCE_S = 10.0


class Party:
    """A process's worth of security, on folders below `root`."""

    def __init__(self, root: Path, name: str, role: Role) -> None:
        self.own = Certificate(name, role, *new_pair())
        self.folder = root / name
        self.folder.mkdir()
        self.security = Security(own=self.own, keys=Keyring(self.folder))
        self.context = new_context(self.security)
        self.kept: list[Any] = []

    def allow(self, *others: Party) -> None:
        for other in others:
            write_certificate(self.folder / ALLOWED / f"{other.own.name}.toml", other.own.without_secret())
        assert self.security.keys is not None
        self.security.keys.refresh()

    def revoke(self, other: Party) -> None:
        write_certificate(self.folder / REVOKED / f"{other.own.name}.toml", other.own.without_secret())


@pytest.fixture
def party(tmp_path: Path) -> Iterator[Callable[[str, Role], Party]]:
    made: list[Party] = []

    def make(name: str, role: Role) -> Party:
        made.append(Party(tmp_path, name, role))
        return made[-1]

    yield make
    for each in made:
        for kept in each.kept:
            kept.close()
        each.context.destroy(0)


def listen(party: Party, door: Any = DATA) -> tuple[zmq.Socket[bytes], str]:
    router = open_socket(party.context, zmq.ROUTER, purpose="data")
    party.kept.append(router)
    return router, f"tcp://127.0.0.1:{bind(router, '127.0.0.1', 0, door)}"


def knock(party: Party, endpoint: str, to: str) -> tuple[zmq.Socket[bytes], Monitor]:
    dealer = open_socket(party.context, zmq.DEALER, purpose="data")
    monitor = Monitor(dealer)
    party.kept += [monitor, dealer]
    dial(dealer, endpoint, to)
    return dealer, monitor


def outcome(monitor: Monitor) -> str:
    """What became of a handshake: `up`, or why not."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if monitor.socket.poll(100):
            if "up" in monitor.events():
                return "up"
            if monitor.refusal is not None:
                return str(monitor.refusal)
    raise AssertionError("neither")


def heard(router: zmq.Socket[bytes]) -> Any:
    assert router.poll(PATIENCE_S * 1000)
    return receive(router, routed=True)


def test_those_who_know_each_other_talk_encrypted(party: Callable[..., Party]) -> None:
    edge1, edge2 = party("edge1", "agent"), party("edge2", "agent")
    edge1.allow(edge2)
    edge2.allow(edge1)
    router, endpoint = listen(edge1)
    dealer, monitor = knock(edge2, endpoint, "edge1")
    assert outcome(monitor) == "up"
    assert dealer.getsockopt(zmq.MECHANISM) == zmq.CURVE
    send(dealer, encode_header(Greeting(1, 1, "edge2")))
    identity, header, _ = heard(router)
    assert header == Greeting(1, 1, "edge2")
    assert send(router, encode_header(Greeting(1, 1, "edge1")), identity=identity)
    assert dealer.poll(PATIENCE_S * 1000)


@pytest.mark.parametrize("role", ["client", "observer"])
def test_a_role_that_has_no_business_here_is_refused_at_the_door(
    party: Callable[..., Party], role: Role, caplog: pytest.LogCaptureFixture
) -> None:
    edge, guest = party("edge1", "agent"), party("guest", role)
    edge.allow(guest)
    guest.allow(edge)
    _, endpoint = listen(edge, CONTROL)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            _, monitor = knock(guest, endpoint, "edge1")
            assert "refused the key of 'guest'" in outcome(monitor)
            monitor.close()
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert f"'guest' has the role {role}" in told[0]
    assert "127.0.0.1" in told[0]
    assert guest.own.secret not in told[0]
    assert edge.own.secret not in told[0]


def test_a_stranger_is_refused_and_hears_it(
    party: Callable[..., Party], caplog: pytest.LogCaptureFixture
) -> None:
    edge, stranger = party("edge1", "agent"), party("edge2", "agent")
    stranger.allow(edge)
    _, endpoint = listen(edge)
    with caplog.at_level(logging.WARNING):
        _, monitor = knock(stranger, endpoint, "edge1")
        assert "not authorised there" in outcome(monitor)
    assert stranger.own.public in caplog.text


def test_another_key_than_the_known_one_is_told_apart(party: Callable[..., Party]) -> None:
    """The listener is an impostor, or was rotated."""
    edge, other, guest = party("edge1", "agent"), party("edge3", "agent"), party("edge2", "agent")
    edge.allow(guest)
    guest.allow(edge, other)
    _, endpoint = listen(edge)
    _, monitor = knock(guest, endpoint, "edge3")
    assert "does not have the key" in outcome(monitor)


def test_with_and_without_keys_do_not_mix(party: Callable[..., Party]) -> None:
    edge, guest = party("edge1", "agent"), party("edge2", "agent")
    edge.allow(guest)
    guest.allow(edge)
    plain = new_context(OPEN)
    try:
        _, endpoint = listen(edge)
        dealer = open_socket(plain, zmq.DEALER, purpose="data")
        monitor = Monitor(dealer)
        dial(dealer, endpoint, "edge1")
        assert "demands keys" in outcome(monitor)
        monitor.close()
        router = open_socket(plain, zmq.ROUTER, purpose="data")
        port = bind(router, "127.0.0.1", 0)
        _, watched = knock(guest, f"tcp://127.0.0.1:{port}", "edge1")
        # Who has no keys may hang up before the other side has seen that.
        said = outcome(watched)
        assert "has no keys" in said or "the handshake broke off" in said
    finally:
        plain.destroy(0)


def test_whose_key_is_unknown_is_not_dialled(party: Callable[..., Party]) -> None:
    guest = party("edge2", "agent")
    with pytest.raises(UnauthorisedError, match="No key of agent 'edge1'"):
        knock(guest, "tcp://127.0.0.1:9", "edge1")


def test_a_revoked_key_is_cut_off_in_the_middle(party: Callable[..., Party]) -> None:
    edge1, edge2 = party("edge1", "agent"), party("edge2", "agent")
    edge1.allow(edge2)
    edge2.allow(edge1)
    router, endpoint = listen(edge1)
    dealer, monitor = knock(edge2, endpoint, "edge1")
    assert outcome(monitor) == "up"
    send(dealer, encode_header(Greeting(1, 1, "edge2")))
    assert isinstance(heard(router)[1], Greeting)
    edge1.revoke(edge2)
    deadline = time.monotonic() + PATIENCE_S
    header: Any = None
    item = Item(1, 1, 0, 10**9, (TensorHeader("x", "float32", (2,), "raw", 8),))
    while not isinstance(header, NotAllowedError):
        assert time.monotonic() < deadline
        send(dealer, encode_header(item), [b"12345678"])
        _, header, frames = heard(router)
    assert frames == []
    assert "not authorised" in str(header)
    # Nor does it get in again.
    _, watched = knock(edge2, endpoint, "edge1")
    assert "not authorised there" in outcome(watched)


def test_who_is_authorised_meanwhile_gets_in_without_a_restart(party: Callable[..., Party]) -> None:
    edge1, edge2 = party("edge1", "agent"), party("edge2", "agent")
    edge2.allow(edge1)
    _, endpoint = listen(edge1)
    _, monitor = knock(edge2, endpoint, "edge1")
    assert outcome(monitor) != "up"
    write_certificate(edge1.folder / ALLOWED / "edge2.toml", edge2.own.without_secret())
    _, monitor = knock(edge2, endpoint, "edge1")  # the folder is read before each answer
    assert outcome(monitor) == "up"


def test_nobody_takes_anothers_name(party: Callable[..., Party]) -> None:
    edge1, edge2 = party("edge1", "agent"), party("edge2", "agent")
    edge1.allow(edge2)
    edge2.allow(edge1)
    router, endpoint = listen(edge1)
    dealer, monitor = knock(edge2, endpoint, "edge1")
    assert outcome(monitor) == "up"
    for name in ("edge3", "@dispatcher here", "@client"):
        send(dealer, encode_header(Greeting(1, 1, name)))
        _, header, _ = heard(router)
        assert isinstance(header, NotAllowedError)
        assert name in str(header)


def test_no_address_beyond_this_machine_without_keys() -> None:
    context = new_context(OPEN)
    try:
        router, dealer = (open_socket(context, kind, purpose="data") for kind in (zmq.ROUTER, zmq.DEALER))
        with pytest.raises(InsecureListenError, match="Listening on"):
            bind(router, "0.0.0.0", 0)
        with pytest.raises(InsecureListenError, match="Connecting to"):
            dial(dealer, "tcp://192.0.2.1:7700", "edge1")
    finally:
        context.destroy(0)


def test_a_socket_with_keys_is_not_bound_without_a_door(party: Callable[..., Party]) -> None:
    edge = party("edge1", "agent")
    router = open_socket(edge.context, zmq.ROUTER, purpose="data")
    edge.kept.append(router)
    with pytest.raises(ValueError, match="whom it lets in"):
        bind(router, "127.0.0.1", 0)


def test_without_the_gate_nobody_gets_in(party: Callable[..., Party]) -> None:
    """Should its thread ever end, the door is shut, not open."""
    edge1, edge2 = party("edge1", "agent"), party("edge2", "agent")
    edge1.allow(edge2)
    edge2.allow(edge1)
    _, endpoint = listen(edge1)
    edge1.context._end_gate()
    _, monitor = knock(edge2, endpoint, "edge1")
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        monitor.socket.poll(100)
        assert "up" not in monitor.events()


def test_the_end_of_a_context_ends_its_gate(party: Callable[..., Party]) -> None:
    edge = party("edge1", "agent")
    router, _ = listen(edge)
    assert any(thread.name == "zap" for thread in threading.enumerate())
    router.close(0)
    edge.context.term()
    assert not any(thread.name == "zap" for thread in threading.enumerate())
