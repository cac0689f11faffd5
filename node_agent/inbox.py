"""A queue whose reader also waits for sockets: putting something in wakes the reader's poll."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """Many writers, one reader; never blocks either. Its bound is that of what is put in: see `node_agent.flow`.

    `fd` becomes readable when something waits; the reader polls it beside its sockets.
    """

    def __init__(self) -> None:
        self._waiting: deque[T] = deque()
        self._signalled = False
        if hasattr(os, "eventfd"):
            self.fd = self._write_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self.fd, self._write_fd = os.pipe()
            os.set_blocking(self.fd, False)
            os.set_blocking(self._write_fd, False)

    def put(self, value: T) -> None:
        """Hands `value` to the reader; from any thread."""
        self._waiting.append(value)
        # The reader clears the mark before it empties the queue, so whoever sees it set is read in that
        # round.
        if not self._signalled:
            self._signalled = True
            with contextlib.suppress(OSError):
                os.write(self._write_fd, b"\1\0\0\0\0\0\0\0")

    def take(self) -> list[T]:
        """Everything that waits; by the reader after `fd` became readable."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 8)
        self._signalled = False
        taken = []
        while self._waiting:
            taken.append(self._waiting.popleft())
        return taken

    def close(self) -> None:
        """Gives the descriptors back; after reader and writers have ended."""
        os.close(self.fd)
        if self._write_fd != self.fd:
            os.close(self._write_fd)
