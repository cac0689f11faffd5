"""What each message needs of a ZeroMQ socket, at the least cost; for `node_agent.link` and `node_agent.readiness`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import zmq
from zmq.backend import Socket as _Plain

Socket = zmq.Socket[bytes]

# As plain numbers, and pyzmq's own `send` left out: combining its flags takes longer than sending a short message.
NOW = int(zmq.NOBLOCK)
"""Without waiting."""

MORE_NOW = int(zmq.NOBLOCK | zmq.SNDMORE)
"""Without waiting, and the message goes on."""

post: Any = _Plain.send
"""Sends one frame: `post(socket, data, flags, copy)`."""

_POLLIN = int(zmq.POLLIN)


def readable(socket: Socket) -> bool:
    """Whether a message waits on a socket."""
    return bool(socket.getsockopt(zmq.EVENTS) & _POLLIN)  # type: ignore[operator]


def used(socket: Socket) -> None:
    """Notes that a socket was read from or written to: see `node_agent.readiness`."""
    socket.__dict__["used"] = True


def say(socket: Socket, frames: Sequence[Any]) -> None:
    """Sends one message of short frames without waiting.

    Raises:
        zmq.Again: The queue is full.
        zmq.ZMQError: A ROUTER knows no such peer.
    """
    used(socket)
    socket.send_multipart(frames, NOW)


def was_used(socket: Socket) -> bool:
    """Whether it was, since this was asked last."""
    return bool(socket.__dict__.pop("used", False))
