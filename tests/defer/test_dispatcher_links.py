"""What the dispatcher remembers of its data-in peers; sockets are stand-ins."""

from __future__ import annotations

from defer.dispatcher import links
from defer.dispatcher.links import Inbound
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
