"""Ports that stay free until a server of a test takes them."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack

LOWEST, HIGHEST = 12_000, 20_000
"""Below the ports that the system gives to outgoing connections: one of those may take a port that was just
free."""


def free_ports(count: int = 3) -> int:
    """The first of so many ports of loopback in a row that nobody uses."""
    chance = random.SystemRandom()  # tests that run beside each other look elsewhere, whatever their seeds
    while True:
        first = chance.randrange(LOWEST, HIGHEST - count)
        try:
            with ExitStack() as stack:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
        except OSError:
            continue
