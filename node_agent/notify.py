"""Tells a service manager how the agent is: ready, alive, stopping (the protocol of systemd's sd_notify(3)).

It is one datagram to the socket that `NOTIFY_SOCKET` names. Without that variable nothing happens, so a process
that was started by hand behaves the same.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


class Notifier:
    """Says how this process is.

    Args:
        environment: Where `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` are looked up.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        known = os.environ if environment is None else environment
        self._address = _address(known.get("NOTIFY_SOCKET", ""))
        self._every = watchdog_seconds(known)
        self._next = 0.0
        self._progress: int | None = None

    @property
    def watched(self) -> bool:
        """Whether the service manager waits for signs of life."""
        return self._every is not None

    def ready(self, status: str = "") -> None:
        """The agent serves."""
        self._send("READY=1" + (f"\nSTATUS={status}" if status else ""))

    def stopping(self) -> None:
        """The agent drains and will end."""
        self._send("STOPPING=1")

    def alive(self, now: float, progress: int, item_age_s: float, limit_s: float) -> bool:
        """A sign of life, at most twice in each watchdog interval, and none while the worker hangs.

        Args:
            now: Any monotonic time.
            progress: Items finished since the start.
            item_age_s: Age of the item in work; 0 when idle.
            limit_s: An item that is older than this, with nothing finished since the last sign, is a hang.

        Returns:
            Whether a sign was sent.
        """
        if self._every is None or now < self._next:
            return False
        if item_age_s > limit_s and progress == self._progress:
            return False
        self._progress = progress
        self._next = now + self._every / 2
        return self._send("WATCHDOG=1")

    def _send(self, message: str) -> bool:
        if self._address is None:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.connect(self._address)
                sender.send(message.encode())
        except OSError:
            return False  # the manager is gone; serving goes on
        return True


def watchdog_seconds(environment: Mapping[str, str]) -> float | None:
    """The interval within which a sign of life is due; None if nobody waits for one from this process."""
    text = environment.get("WATCHDOG_USEC", "")
    owner = environment.get("WATCHDOG_PID", "")
    if not text.isdecimal() or int(text) <= 0 or (owner and owner != str(os.getpid())):
        return None
    return int(text) / 1e6


def _address(text: str) -> str | None:
    if text.startswith("@"):
        return "\0" + text[1:]  # Linux's abstract namespace
    return text if text.startswith("/") else None
