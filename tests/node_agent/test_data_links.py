"""Data connections of an agent that break, are refused or are spoilt: credit stays right, and the link comes back.

The data loop is turned by hand, so nothing here waits for a thread; the far ends are raw sockets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

from node_agent import data_loop, receiver, sender
from node_agent import messages as m
from node_agent.data_loop import DataLoop
from node_agent.flow import Window
from node_agent.frames import encode_header
from node_agent.link import bind, open_socket, receive
from node_agent.receiver import Receiver
from node_agent.routing import Route
from node_agent.sender import Sender
from node_agent.work import LoadedRoute, Work

pytestmark = pytest.mark.integration

WINDOW = Window(8, 1 << 20)
ITEM = m.Item(1, 1, 0, -1, ())


class Hand:
    """Both halves of a data path that forwards nothing: items are kept in `held` until a test lets go."""

    def __init__(self) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.held: list[Work] = []
        self.loop = DataLoop()
        self.sender = Sender(self.loop, self.context, "me", "127.0.0.1", 0, release=self.release)
        self.receiver = Receiver(
            self.loop,
            self.context,
            "me",
            "127.0.0.1",
            0,
            admit=self.held.append,
            forward=self.held.append,
            window=WINDOW,
        )
        self.loop.parts = (self.sender, self.receiver)
        self.loop.submit = self.sender.submit
        route = Route(1, "m", m.HopSpec(0, m.PeerRef("up"), m.PeerRef("down")))
        self.receiver.routes = {(1, 0): LoadedRoute(route, None)}
        self.loop.open()

    def release(self, origin: Any, nbytes: int) -> None:
        self.receiver.release(origin, nbytes)

    def let_go(self) -> None:
        for work in self.held:
            self.release(work.origin, work.nbytes)
        self.held.clear()

    def until(self, done: Callable[[], Any], timeout: float = 20.0) -> None:
        """Turns the loop until something holds."""
        deadline = time.monotonic() + timeout
        while not done():
            assert time.monotonic() < deadline, "it never came to that"
            self.loop.put(lambda: None)  # so that a turn does not wait
            self.loop.turn()
            time.sleep(0.005)

    def settle(self) -> None:
        """Long enough for what was sent on loopback to arrive and be answered."""
        until = time.monotonic() + 0.2
        self.until(lambda: time.monotonic() > until)

    def close(self) -> None:
        self.loop.shut()
        self.loop.close()
        self.context.destroy(0)


class Far:
    """A raw socket of the other side; greets back, and keeps what else it hears."""

    def __init__(self, hand: Hand, kind: int = zmq.ROUTER, port: int = 0) -> None:
        self.socket = open_socket(hand.context, kind, purpose="data")
        self.routed = kind == zmq.ROUTER
        self.identity = b""
        self.heard: list[Any] = []
        self.answers = True
        if self.routed:
            self.port = bind(self.socket, "127.0.0.1", port)
        else:
            self.socket.connect(f"tcp://127.0.0.1:{port}")

    def read(self) -> list[Any]:
        while self.socket.poll(0):
            self.identity, header, _ = receive(self.socket, routed=self.routed)
            self.heard.append(header)
            if isinstance(header, m.Greeting) and self.routed and self.answers:
                self.say(m.Greeting(1, 1, "up"))
        return self.heard

    def say(self, header: Any) -> None:
        self.raw(encode_header(header))

    def raw(self, data: bytes) -> None:
        self.socket.send_multipart([self.identity, data] if self.routed else [data])

    def credit(self) -> int:
        return sum(one.items for one in self.read() if isinstance(one, m.Credit))

    def refusals(self) -> list[str]:
        return [one.code for one in self.read() if isinstance(one, m.Refusal)]

    def greetings(self) -> int:
        return len([one for one in self.read() if isinstance(one, m.Greeting)])


@pytest.fixture
def hand() -> Iterator[Hand]:
    made = Hand()
    yield made
    made.close()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Greets again without the patience that people have."""
    monkeypatch.setattr(data_loop, "GREET_AGAIN_S", 0.05)
    for module in (receiver, sender):
        monkeypatch.setattr(module, "GREETING_S", 0.2)


def fetched(hand: Hand, port: int = 0) -> Far:
    """A peer whose fetch port the agent dials, greeted and with a window's credit."""
    far = Far(hand, port=port)
    hand.receiver.dial(m.PeerRef("up", f"tcp://127.0.0.1:{far.port}"))
    hand.until(far.credit)
    return far


def fill(hand: Hand, far: Far) -> None:
    """As many items as the credit allows; the agent holds them all."""
    before, count = len(hand.held), far.credit()
    for _ in range(count):
        far.say(ITEM)
    hand.until(lambda: len(hand.held) == before + count)


def test_what_a_broken_fetch_link_left_gives_no_credit_to_the_next(hand: Hand) -> None:
    far = fetched(hand)
    fill(hand, far)
    port = far.port
    far.socket.close(0)
    hand.settle()
    far = Far(hand, port=port)
    hand.until(far.credit)
    hand.let_go()
    hand.settle()
    assert far.credit() == WINDOW.items
    fill(hand, far)
    assert not far.refusals()
    far.socket.close(0)


def test_what_came_before_a_refusal_gives_no_credit_to_the_next_greeting(hand: Hand) -> None:
    """The same routing id: a ROUTER cannot tell the old conversation from the new one."""
    far = Far(hand, zmq.DEALER, hand.receiver.port)
    far.say(m.Greeting(1, 1, "up"))
    hand.until(far.credit)
    fill(hand, far)
    far.raw(b"not a header")
    hand.until(far.refusals)
    assert far.refusals() == ["bad-frame"]
    far.heard.clear()
    far.say(m.Greeting(1, 1, "up"))
    hand.until(far.credit)
    hand.let_go()
    hand.settle()
    assert far.credit() == WINDOW.items
    far.socket.close(0)


def test_hanging_up_on_a_peer_whose_items_are_still_held_harms_nobody(hand: Hand) -> None:
    far = fetched(hand)
    fill(hand, far)
    hand.receiver.keep(frozenset())
    hand.let_go()
    assert hand.receiver.held == 0
    far.socket.close(0)


def test_a_bad_frame_on_a_fetch_link_costs_no_credit(hand: Hand, soon: None) -> None:
    far = fetched(hand)
    far.raw(b"not a header")
    far.heard.clear()
    hand.until(far.credit)
    assert far.credit() == WINDOW.items
    fill(hand, far)
    far.socket.close(0)


def test_a_sender_that_broke_the_flow_rules_is_dialled_again(hand: Hand, soon: None) -> None:
    far = fetched(hand)
    fill(hand, far)
    far.say(ITEM)
    far.heard.clear()
    hand.until(far.credit)
    assert far.credit() == WINDOW.items
    far.socket.close(0)


@pytest.mark.parametrize("side", ["upstream", "downstream"])
@pytest.mark.parametrize("what", ["refused", "silent"])
def test_a_dialled_peer_that_will_not_talk_is_greeted_again_however_busy_the_agent(
    hand: Hand, soon: None, side: str, what: str
) -> None:
    far = Far(hand)
    far.answers = False
    peer = m.PeerRef("up", f"tcp://127.0.0.1:{far.port}")
    (hand.receiver.dial if side == "upstream" else hand.sender.attach)(peer)
    hand.until(far.greetings)
    if what == "refused":
        far.say(m.Refusal("too-many-peers", "Later."))
    far.answers = True
    # `until` keeps the loop busy: something arrives in every turn.
    hand.until(lambda: far.greetings() >= 2)
    if side == "upstream":
        hand.until(far.credit)
    else:
        far.say(m.Credit(1, 10))
        hand.until(lambda: hand.sender._peers[peer].end.ready)
    seen = far.greetings()
    hand.settle()
    assert far.greetings() == seen, "a peer that talks is left alone"
    far.socket.close(0)


def test_an_idle_agent_sleeps_until_somebody_is_to_be_greeted(hand: Hand, soon: None) -> None:
    far = Far(hand)
    far.answers = False
    hand.sender.attach(m.PeerRef("up", f"tcp://127.0.0.1:{far.port}"))
    hand.until(far.greetings)
    far.say(m.Refusal("too-many-peers", "Later."))
    hand.settle()
    deadline = time.monotonic() + 20
    while far.greetings() < 3:
        assert time.monotonic() < deadline
        hand.loop.turn()
    far.socket.close(0)


def test_newcomers_take_the_place_of_those_who_greeted_longest_ago(
    hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (receiver, sender):
        monkeypatch.setattr(module, "CONNECTIONS", 3)
    for port, table in ((hand.receiver.port, hand.receiver._origins), (hand.sender.port, hand.sender._peers)):
        fars = []
        for number in range(6):
            far = Far(hand, zmq.DEALER, port)
            far.say(m.Greeting(1, 1, f"peer {number}"))
            hand.until(far.greetings)
            fars.append(far)
            assert len(table) <= 3
        hand.settle()
        # Whoever is still there learns of it, and so can greet again.
        assert [far.refusals() for far in fars] == [["too-many-peers"]] * 3 + [[]] * 3
        for far in fars:
            far.socket.close(0)
        hand.settle()


def test_peers_that_items_wait_for_keep_their_place(hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "CONNECTIONS", 1)
    up = Far(hand, zmq.DEALER, hand.receiver.port)
    up.say(m.Greeting(1, 1, "up"))
    hand.until(up.credit)
    fill(hand, up)
    hand.held[0].forward = []
    hand.sender.submit(hand.held[0])
    stranger = Far(hand, zmq.DEALER, hand.sender.port)
    stranger.say(m.Greeting(1, 1, "stranger"))
    hand.until(stranger.refusals)
    down = Far(hand, zmq.DEALER, hand.sender.port)
    down.say(m.Greeting(1, 1, "down"))
    down.say(m.Credit(1, 10))
    hand.until(lambda: any(isinstance(one, m.Item) for one in down.read()))
    for far in (up, stranger, down):
        far.socket.close(0)


@pytest.mark.parametrize("who_dials", ["me", "peer"])
def test_unreadable_credit_starts_the_link_anew(hand: Hand, soon: None, who_dials: str) -> None:
    """It cannot be known how much was granted in it."""
    if who_dials == "me":
        far = Far(hand)
        peer = m.PeerRef("down", f"tcp://127.0.0.1:{far.port}")
        hand.sender.attach(peer)
    else:
        far = Far(hand, zmq.DEALER, hand.sender.port)
        peer = m.PeerRef("down")
        far.say(m.Greeting(1, 1, "down"))
    hand.until(far.greetings)
    far.say(m.Credit(1, 10))
    hand.until(lambda: hand.sender._peers[peer].end.ready)
    far.raw(b"not a header")
    hand.until(lambda: not hand.sender._peers[peer].end.ready)
    if who_dials == "peer":
        hand.until(far.refusals)
        assert far.refusals() == ["bad-frame"]
        far.say(m.Greeting(1, 1, "down"))
    hand.until(lambda: far.greetings() >= 2)
    far.say(m.Credit(2, 20))
    hand.until(lambda: hand.sender._peers[peer].end.ready)
    assert hand.sender._peers[peer].end.window.items == 2
    far.socket.close(0)


def test_a_draining_agent_grants_nothing_to_those_who_greet_either(hand: Hand) -> None:
    hand.receiver.pause()
    far = Far(hand, zmq.DEALER, hand.receiver.port)
    far.say(m.Greeting(1, 1, "up"))
    hand.until(far.greetings)
    hand.settle()
    assert far.credit() == 0
    far.socket.close(0)
