"""Data connections: greeting, versions, credit; pure."""

from __future__ import annotations

import pytest

from node_agent import messages as m
from node_agent.connection import Handshake, ReceivingEnd, SendingEnd
from node_agent.errors import WireError
from node_agent.flow import Window
from node_agent.versions import VersionRange

WINDOW = Window(4, 100)


def ours(name: str) -> m.Greeting:
    """What this build says of itself."""
    return m.Greeting(1, 1, name, inline=True)


@pytest.mark.parametrize("sender_dials", [True, False])
def test_from_greeting_to_credit_whoever_dials(sender_dials: bool) -> None:
    sender = SendingEnd(Handshake("s", dialled=sender_dials))
    receiver = ReceivingEnd(Handshake("r", dialled=not sender_dials), WINDOW)
    to_receiver, to_sender = list(sender.opened()), list(receiver.opened())
    order = []
    while to_receiver or to_sender:
        if to_receiver:
            order.append(to_receiver[0])
            to_sender += receiver.handle(to_receiver.pop(0))
        if to_sender:
            order.append(to_sender[0])
            to_receiver += sender.handle(to_sender.pop(0))
    first, second = ("s", "r") if sender_dials else ("r", "s")
    assert order == [ours(first), ours(second), m.Credit(4, 100)]
    assert sender.handshake.inline
    assert sender.ready
    assert receiver.ready
    assert (sender.handshake.peer, receiver.handshake.peer) == ("r", "s")
    sender.closed()
    assert not sender.ready
    assert sender.window.items == 0


def test_a_peer_of_a_distant_version_is_refused_by_either_side() -> None:
    receiver = ReceivingEnd(Handshake("r", dialled=False, ours=VersionRange(1, 1)), WINDOW)
    receiver.opened()
    (refusal,) = receiver.handle(m.Greeting(2, 3, "s"))
    assert isinstance(refusal, m.Refusal)
    assert refusal.code == "incompatible-version"
    assert "versions 2 to 3" in refusal.message
    assert "version 1" in refusal.message
    sender = SendingEnd(Handshake("s", dialled=True, ours=VersionRange(2, 3)))
    sender.opened()
    assert sender.handle(refusal) == []
    assert (sender.handshake.state, sender.ready) == ("refused", False)
    assert sender.handshake.reason == refusal.message


def test_a_neighbouring_version_is_spoken() -> None:
    receiver = ReceivingEnd(Handshake("r", dialled=False, ours=VersionRange(1, 1)), WINDOW)
    receiver.opened()
    assert receiver.handle(m.Greeting(1, 2, "s"))[0] == ours("r")
    assert receiver.handshake.version == 1
    assert not receiver.handshake.inline


def test_credit_before_the_greeting_counts_for_nothing() -> None:
    sender = SendingEnd(Handshake("s", dialled=True))
    sender.opened()
    sender.handle(m.Credit(5, 5))
    assert not sender.window.ready


def test_a_second_greeting_starts_from_what_is_not_held() -> None:
    receiver = ReceivingEnd(Handshake("r", dialled=False), WINDOW)
    receiver.opened()
    receiver.handle(m.Greeting(1, 1, "s"))
    receiver.window.receive(10)
    assert receiver.handle(m.Greeting(1, 1, "s")) == [ours("r"), m.Credit(3, 100)]


def test_what_has_no_place_is_an_error() -> None:
    with pytest.raises(WireError):
        SendingEnd(Handshake("s", dialled=True)).handle(m.Result(b"", ()))
    with pytest.raises(WireError):
        ReceivingEnd(Handshake("r", dialled=True)).handle(m.Credit(1, 1))
