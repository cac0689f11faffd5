"""What a client's requests share: room for those under way, and ids that are theirs alone."""

from __future__ import annotations

import math
import os
import secrets
import threading
import time
from collections import deque

from defer.bell import Bell
from node_agent.messages import ID_BYTES

IDS = 256
"""Ids made at a time."""


class Room:
    """How much may be under way; whoever wants more waits. A single request larger than all passes alone."""

    def __init__(self, requests: int, nbytes: int) -> None:
        self._requests, self._nbytes = requests, nbytes
        self._used, self._bytes = 0, 0
        # A plain lock: a signal's handler that raises inside `threading.Condition` may leave that locked for ever.
        self._lock = threading.Lock()
        self._waiting: deque[Bell] = deque()

    def take(self, nbytes: int, timeout: float) -> bool:
        """Take room for one request; False when there was none for `timeout` seconds."""
        until = math.inf
        while True:
            with self._lock:
                if self._fits(nbytes):
                    self._used += 1
                    self._bytes += nbytes
                    return True
                changed = Bell()
                self._waiting.append(changed)
            now = time.monotonic()
            until = min(until, now + timeout)
            if now >= until or not changed.wait(until - now):
                return False

    def give(self, nbytes: int) -> None:
        """Give the room of one request back."""
        with self._lock:
            self._used -= 1
            self._bytes -= nbytes
            waiting, self._waiting = self._waiting, deque()
        for changed in waiting:
            changed.ring()

    def _fits(self, nbytes: int) -> bool:
        return self._used == 0 or (self._used < self._requests and self._bytes + nbytes <= self._nbytes)


class Held:
    """The room that one request has taken: given back once, whoever does so first.

    A signal's handler that raises while a request is sent leaves open whether it is under way, and ends.
    """

    __slots__ = ("_left", "_room")

    def __init__(self, room: Room, nbytes: int) -> None:
        self._room, self._left = room, [nbytes]

    def give(self, _: object = None) -> None:
        """Give it back, unless that was done; also as a future's callback."""
        try:
            nbytes = self._left.pop()  # in one step, whichever threads come
        except IndexError:
            return
        self._room.give(nbytes)


_ids: list[bytes] = []
os.register_at_fork(after_in_child=_ids.clear)


def new_id() -> bytes:
    """A random id for a request; the kernel is asked for many at once."""
    try:
        return _ids.pop()
    except IndexError:
        many = secrets.token_bytes(ID_BYTES * IDS)
        _ids.extend(many[at : at + ID_BYTES] for at in range(ID_BYTES, len(many), ID_BYTES))
        return many[:ID_BYTES]
