"""Waiting for sockets: nothing that came is forgotten, whatever was asked or sent in between."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from node_agent.link import bind, open_socket, send
from node_agent.readiness import Readiness
from node_agent.sockets import readable


@pytest.fixture
def pair() -> Iterator[tuple[Any, Any]]:
    context: zmq.Context[Any] = zmq.Context()
    router, dealer = (open_socket(context, kind, purpose="data") for kind in (zmq.ROUTER, zmq.DEALER))
    dealer.connect(f"tcp://127.0.0.1:{bind(router, '127.0.0.1', 0)}")
    assert dealer.poll(5000, zmq.POLLOUT)
    yield router, dealer
    context.destroy(linger=0)


def test_a_handler_that_leaves_messages_is_called_again(pair: tuple[Any, Any]) -> None:
    router, dealer = pair
    for number in range(5):
        send(dealer, str(number).encode())
    seen = []
    readiness = Readiness()
    readiness.watch(router, lambda: seen.append(router.recv_multipart(zmq.NOBLOCK)[1]))
    assert router.poll(5000)
    while len(seen) < 5:
        readiness.turn(5000)
    assert seen == [b"0", b"1", b"2", b"3", b"4"]


def test_what_came_before_it_was_watched_is_told(pair: tuple[Any, Any]) -> None:
    router, dealer = pair
    send(dealer, b"early")
    assert router.poll(5000)
    assert readable(router)  # takes the news from the descriptor
    seen = []
    readiness = Readiness()
    readiness.watch(router, lambda: seen.append(router.recv_multipart(zmq.NOBLOCK)[1]))
    readiness.turn(5000)
    assert seen == [b"early"]


def test_sending_does_not_hide_what_came(pair: tuple[Any, Any]) -> None:
    """Many rounds: whether sending takes the news away depends on how much time has passed since it last did."""
    router, dealer = pair
    send(dealer, b"hello")
    identity, _ = router.recv_multipart()
    readiness = Readiness()
    seen: list[bytes] = []
    readiness.watch(dealer, lambda: seen.append(dealer.recv(zmq.NOBLOCK)))
    for number in range(300):
        send(router, str(number).encode(), identity=identity)
        assert router.poll(0, zmq.POLLOUT)
        send(dealer, b"something")
        while len(seen) <= number:
            before = len(seen)
            readiness.turn(5000)
            assert len(seen) > before or not readable(dealer)
        router.recv_multipart()
    assert len(seen) == 300


def test_a_source_may_be_dropped_by_the_handler_before_it() -> None:
    readiness = Readiness()
    first, second = os.eventfd(1), os.eventfd(1)
    calls = []

    def handler(number: int, other: int) -> None:
        calls.append(number)
        os.read(number, 8)
        readiness.unwatch(other)

    readiness.watch(first, lambda: handler(first, second))
    readiness.watch(second, lambda: handler(second, first))
    readiness.turn(0)
    readiness.turn(0)
    assert len(calls) == 1
    os.close(first)
    os.close(second)
