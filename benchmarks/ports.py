"""Ports that stay free until a server takes them, for whoever must know a server's port before it starts."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack

LOWEST, HIGHEST = 12_000, 30_000
"""Below the ports that the system gives to outgoing connections: one of those may take a port that was just
free."""


def free_ports(count: int) -> int:
    """The first of so many ports of loopback in a row that nobody uses.

    Nobody is given one of them again while this process lives, also not another process that asks here: between the
    asking and the server that takes a port lies as long as a test likes.
    """
    chance = random.SystemRandom()  # processes beside each other look elsewhere, whatever their seeds
    while True:
        first = chance.randrange(LOWEST, HIGHEST - count)
        with ExitStack() as probes, ExitStack() as closing:
            claims = [closing.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(count)]
            try:
                for port, claim in enumerate(claims, first):
                    claim.bind(f"\0defer-port-{port}")  # seen by every process, and gone with this one
                    probes.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            for claim in claims:
                claim.detach()  # nobody closes it
            return first
