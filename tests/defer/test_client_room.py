"""Room for what a client has under way."""

from __future__ import annotations

import math
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from defer.client_requests import Requests
from defer.client_room import Held, Room
from defer.errors import Overloaded


def test_room_is_given_back_once_however_often_somebody_does() -> None:
    room = Room(2, 100)
    assert room.take(10, 0)
    assert room.take(10, 0)
    held = Held(room, 10)
    held.give()
    held.give(Future[int]())
    assert room.take(10, 0)
    assert not room.take(10, 0)


class Interrupted(BaseException):
    """As a signal's handler raises it."""


@pytest.mark.parametrize("sent", [False, True])
def test_an_interrupt_while_a_request_is_sent_gives_its_room_back_once(
    sent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[Future[Any]] = []

    def launch(_submit: object, future: Future[Any], _kept: object) -> None:
        if sent:
            launched.append(future)
        raise Interrupted

    requests = object.__new__(Requests)
    requests._room = room = Room(2, 100)
    monkeypatch.setattr(Requests, "_running", lambda _: SimpleNamespace(launch=launch))
    submit: Any = SimpleNamespace(tensors=[SimpleNamespace(nbytes=10)], trace=b"", recall=False)
    with pytest.raises(Interrupted):
        requests.try_launch(submit)
    for future in launched:  # its answer comes all the same
        future.set_result({})
    assert room.take(10, 0)
    assert room.take(10, 0)
    assert not room.take(10, 0)


@pytest.mark.parametrize("durable", [False, True])
def test_submit_refuses_at_once_what_has_no_room(durable: bool) -> None:
    requests = object.__new__(Requests)
    requests._room = Room(1, 100)
    assert requests._room.take(10, 0)
    submit: Any = SimpleNamespace(
        tensors=[SimpleNamespace(nbytes=10)], trace=b"", recall=False, deadline=math.inf, durable=durable
    )
    with pytest.raises(Overloaded, match="1024 requests under way"):
        requests.launch_kept(submit)
