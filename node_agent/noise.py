"""Keeps what a peer can provoke from filling the log: a full log blocks whoever writes to it. Pure."""

from __future__ import annotations

INTERVAL_S = 10.0
"""What one cause provokes is said this often at most."""


class Seldom:
    """Counts what happens and says when it is time to tell.

    Args:
        interval_s: Least seconds between two times.
    """

    def __init__(self, interval_s: float = INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._next = float("-inf")
        self._silent = 0

    def told(self, now: float) -> str | None:
        """Notes one more; None while it is too early to tell, else what to add about those that went untold."""
        if now < self._next:
            self._silent += 1
            return None
        self._next = now + self._interval_s
        silent, self._silent = self._silent, 0
        return f" ({silent} more since the last such line)" if silent else ""
