"""What the dispatcher remembers of its data-in peers; sockets are stand-ins."""

from __future__ import annotations

from typing import cast

import pytest

from defer.dispatcher import links
from defer.dispatcher.links import Fetchers, Inbound, Outbox
from node_agent.link import Sent, Socket
from node_agent.messages import Greeting


def test_a_peer_that_comes_by_another_connection_is_noticed() -> None:
    inbound = Inbound("d")

    def greet(identity: bytes, name: str) -> bool:
        end, elsewhere = inbound.greet(identity, name)
        end.handle(Greeting(1, 1, name))
        return elsewhere

    assert not greet(b"1", "a")
    assert not greet(b"1", "a")
    assert not greet(b"2", "b")
    assert greet(b"3", "a")
    assert not greet(b"3", "a")
    assert inbound.peers[b"1"].ready  # what it sent before it broke is still taken


def test_names_are_forgotten_with_their_connections() -> None:
    inbound = Inbound("d")
    for number in range(2 * links.PEERS):
        end, _ = inbound.greet(number.to_bytes(4), f"peer {number}")
        end.handle(Greeting(1, 1, f"peer {number}"))
    end, _ = inbound.greet(b"same", "first name")
    for number in range(9):
        end.handle(Greeting(1, 1, f"name {number}"))
        end, elsewhere = inbound.greet(b"same", f"name {number + 1}")
        assert not elsewhere
    assert len(inbound.peers) == links.PEERS
    assert len(inbound._named) <= links.PEERS + 1


def test_fetchers_are_bounded_and_the_quietest_goes_first() -> None:
    fetchers = Fetchers()
    for number in range(links.PEERS):
        assert fetchers.greet(f"link {number}", number.to_bytes(4)) == []
    assert fetchers.link(bytes(4)) == "link 0"  # it grants credit
    assert fetchers.greet("one more", b"new") == ["link 1"]
    assert (fetchers.at("link 0"), fetchers.at("link 1"), fetchers.link(b"\0\0\0\1")) == (
        bytes(4),
        None,
        None,
    )


def test_a_fetcher_that_comes_back_or_changes_its_name_takes_the_old_link_down() -> None:
    fetchers = Fetchers()
    assert fetchers.greet("a", b"1") == []
    assert fetchers.greet("a", b"2") == ["a"]
    assert fetchers.link(b"1") is None
    assert fetchers.greet("b", b"2") == ["a"]
    assert (fetchers.at("a"), fetchers.link(b"2")) == (None, "b")
    assert fetchers.drop("b")
    assert not fetchers.drop("b")


def waiting(outbox: Outbox) -> dict[bytes, list[bytes]]:
    return {identity: [header for header, _ in queue] for identity, queue in outbox.waiting.items()}


def test_unread_answers_are_bounded_in_number_and_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    takes = [Sent.LATER]
    monkeypatch.setattr(links, "send", lambda *_: takes[0])
    outbox = Outbox(count=3, client_bytes=100, nbytes=150)
    socket = cast("Socket", None)
    outbox.send(socket, b"large", b"x", (bytes(500),))  # alone it may be larger than all
    assert waiting(outbox) == {b"large": [b"x"]}
    outbox.send(socket, b"large", b"y", (bytes(90),))
    for number in range(5):
        outbox.send(socket, b"many", b"%d" % number, ())
    assert waiting(outbox)[b"many"] == [b"2", b"3", b"4"]
    assert waiting(outbox)[b"large"] == [b"y"]
    outbox.send(socket, b"third", b"z", (bytes(80),))  # in all too many: who has most loses
    assert waiting(outbox) == {b"many": [b"2", b"3", b"4"], b"third": [b"z"]}
    assert outbox.dropped == 4
    takes[0] = Sent.YES
    outbox.retry(socket)
    assert (waiting(outbox), outbox._held, outbox._total) == ({}, {}, 0)
    takes[0] = Sent.LATER
    outbox.send(socket, b"gone", b"z", (bytes(80),))
    takes[0] = Sent.GONE
    outbox.retry(socket)
    assert (outbox.dropped, outbox._total) == (5, 0)
