"""Looks for another dispatcher that leads while the one that a client talks to says nothing.

A machine that vanishes closes no connection: without this, TCP would notice after some ten seconds. Only a dispatcher
that leads takes data connections, so whoever else answers a greeting has taken over.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Sequence

from defer.client_core import CLIENT
from defer.dialled import Dialled
from defer.socket_loop import SocketLoop
from node_agent.connection import Handshake
from node_agent.link import incoming
from node_agent.messages import Greeting, PeerRef
from node_agent.security import DISPATCHER

QUIET_S = 1.0
"""A dispatcher that owes an answer and has said nothing for this long may be gone; or its model takes long."""

TRY_S = 0.5
TRY_LIMIT_S = 3.0
"""How long another one may take to answer before the next is tried; longer with each."""


class Scout:
    """Dials the other dispatchers one after the other; for the client's I/O thread.

    Args:
        loop: That thread's.
        found: Takes the endpoint that answered, and its connection, which is its own from then on.
    """

    def __init__(self, loop: SocketLoop, found: Callable[[str, Dialled], None]) -> None:
        self._loop, self._found = loop, found
        self._dialled: Dialled | None = None
        self._give_up = math.inf
        self._patience = TRY_S
        self._turns = itertools.count()

    def look(self, others: Sequence[str], now: float, quiet_since: float) -> float:
        """Go on looking, or stop.

        Args:
            others: Endpoints of the dispatchers that are not talked to.
            now: Monotonic time, s.
            quiet_since: Since when an answer is owed and nothing is heard; infinity where that is not so.

        Returns:
            When to call again.
        """
        if not others or now < quiet_since + QUIET_S:
            self.close()
            self._patience = TRY_S
            return quiet_since + QUIET_S if others else math.inf
        if self._dialled is not None and now >= self._give_up:
            self.close()
            self._patience = min(TRY_LIMIT_S, 1.5 * self._patience)
        if self._dialled is None:
            self._dial(others[next(self._turns) % len(others)])
            self._give_up = now + self._patience
        return self._give_up

    def close(self) -> None:
        """Hang up."""
        dialled, self._dialled = self._dialled, None
        if dialled is not None:
            self._unwatch(dialled)
            dialled.close()

    def abandon(self) -> None:
        """Hang up where nobody watches the connection any more, and perhaps in the middle of something."""
        dialled, self._dialled = self._dialled, None
        self._give_up, self._patience = math.inf, TRY_S
        if dialled is not None:
            with contextlib.suppress(Exception):
                dialled.close()

    def _dial(self, endpoint: str) -> None:
        dialled = self._dialled = Dialled(
            self._loop.context, PeerRef(DISPATCHER, endpoint), Handshake(CLIENT, dialled=True)
        )
        self._loop.watch(dialled.socket, self._on_data)
        self._loop.watch(dialled.monitor.socket, self._on_monitor)

    def _unwatch(self, dialled: Dialled) -> None:
        self._loop.unwatch(dialled.socket)
        self._loop.unwatch(dialled.monitor.socket)

    def _on_monitor(self) -> None:
        if self._dialled is not None and any(self._dialled.happened()):
            self._dialled.say(self._dialled.handshake.opened())

    def _on_data(self) -> None:
        dialled = self._dialled
        if dialled is None:
            return
        for _, header, _ in incoming(dialled.socket, routed=False, most=1):
            if isinstance(header, Greeting):
                dialled.handshake.greeted(header)
        if dialled.handshake.state == "ready":
            self._dialled = None
            self._unwatch(dialled)
            self._found(dialled.peer.endpoint, dialled)
