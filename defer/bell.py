"""What one thread waits for and any thread rings, signals' handlers included."""

from __future__ import annotations

import threading


class Bell:
    """Rung, it ends one wait: the one under way, or the next.

    `threading.Event` would do, but for signals' handlers that raise, as that of Ctrl-C does: its lock is taken in Python
    code, and an exception just then leaves it locked, so that whoever sets the event next waits for ever. This is one
    lock, which the interpreter takes and gives back in one step.
    """

    __slots__ = ("_silent",)

    def __init__(self) -> None:
        self._silent = threading.Lock()
        self._silent.acquire()

    def ring(self) -> None:
        """End a wait; several rings before it are as one."""
        try:
            self._silent.release()
        except RuntimeError:  # it has been rung, and nobody has heard it yet
            return

    def wait(self, seconds: float) -> bool:
        """Wait for a ring; False when none came for so long."""
        return self._silent.acquire(timeout=min(seconds, threading.TIMEOUT_MAX))
