"""Messages between the dispatcher and a process of its own, on a stream socket: eight bytes that say how many follow."""

from __future__ import annotations

import socket
import struct
import time

_LENGTH = struct.Struct(">Q")


def send(to: socket.socket, body: bytes, limit_s: float | None) -> None:
    """Send a message.

    Raises:
        TimeoutError: It was not taken in so many seconds.
        OSError: The other side is gone.
    """
    to.settimeout(limit_s)
    to.sendall(_LENGTH.pack(len(body)) + body)


def receive(of: socket.socket, limit_s: float | None) -> bytes:
    """Wait for a message.

    Raises:
        TimeoutError: There was none in so many seconds.
        EOFError: The other side is gone.
        OSError: The connection broke.
    """
    end = None if limit_s is None else time.monotonic() + limit_s
    (length,) = _LENGTH.unpack(_exactly(of, _LENGTH.size, end))
    return bytes(_exactly(of, length, end))


def _exactly(of: socket.socket, count: int, end: float | None) -> bytearray:
    got = bytearray()
    while len(got) < count:
        of.settimeout(None if end is None else max(1e-3, end - time.monotonic()))
        piece = of.recv(min(count - len(got), 1 << 20))
        if not piece:
            raise EOFError("the other side is gone")
        got += piece
    return got
