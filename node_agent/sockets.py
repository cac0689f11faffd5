"""What each message needs of a ZeroMQ socket, at the least cost; for `node_agent.link` and `node_agent.readiness`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import zmq
from zmq.backend import Socket as _Plain
from zmq.backend import zmq_poll

Socket = zmq.Socket[bytes]

# As plain numbers, and pyzmq's own `send` left out: combining its flags takes longer than sending a short message.
NOW = int(zmq.NOBLOCK)
"""Without waiting."""

MORE_NOW = int(zmq.NOBLOCK | zmq.SNDMORE)
"""Without waiting, and the message goes on."""

post: Any = _Plain.send
"""Sends one frame: `post(socket, data, flags, copy)`."""

fetch: Any = _Plain.recv
"""Receives one frame: `fetch(socket, flags, copy)`."""

POLLIN = int(zmq.POLLIN)

Asked = tuple[Socket, int]
"""A socket and what it is asked: an entry of ZeroMQ's poll."""

poll_now: Any = partial(zmq_poll, timeout=0)
"""Which of a list of `Asked` hold, without waiting."""


def readable(socket: Socket) -> bool:
    """Whether a message waits on a socket; if none does, its descriptor tells of the next one."""
    noted = socket.__dict__.get("noted")
    if noted is None:
        return bool(poll_now([(socket, POLLIN)]))
    # Unlike `getsockopt` this makes no enumeration member of the option's number.
    if poll_now([noted[1]]):
        return True
    noted[0].discard(noted[1])
    return False


def used(socket: Socket) -> None:
    """Notes that a socket was read from or written to: see `node_agent.readiness`."""
    noted = socket.__dict__.get("noted")
    if noted is not None:
        noted[0].add(noted[1])


def note_use(socket: Socket, where: set[Asked] | None) -> None:
    """Has `used` put a socket into a set from now on; None ends that."""
    if where is None:
        socket.__dict__.pop("noted", None)
    else:
        socket.__dict__["noted"] = (where, (socket, POLLIN))


def say(socket: Socket, frames: Sequence[Any]) -> None:
    """Sends one message of short frames without waiting.

    Raises:
        zmq.Again: The queue is full.
        zmq.ZMQError: A ROUTER knows no such peer.
    """
    used(socket)
    socket.send_multipart(frames, NOW)
