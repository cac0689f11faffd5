"""A client's line to the dispatcher that leads: one connection, and whom to dial when it breaks or says nothing."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from defer import client_events as c
from defer.client_core import CLIENT
from defer.client_scout import Scout
from defer.dialled import Dialled
from defer.socket_loop import SocketLoop
from node_agent.connection import Handshake
from node_agent.errors import NotAllowedError
from node_agent.messages import Greeting, PeerRef, Refusal
from node_agent.security import DISPATCHER

DIAL_S = 0.25
DIAL_GROWS = 1.1
DIAL_LIMIT_S = 3.0
"""Where there are several dispatchers, how long one may take to answer before the next is tried; longer each time."""


class Line:
    """Dials the dispatchers in turn until one greets, and again when its connection is gone; for the I/O thread.

    Args:
        loop: That thread's.
        endpoints: `tcp://host:port` of the dispatcher's data socket, or of each one sharing its state.
        tell: Takes `Connected`, `Disconnected` and `Refused`; at `Disconnected` nothing said before goes out any more.
        on_data: Called when there is something to read on `socket`.
    """

    def __init__(
        self,
        loop: SocketLoop,
        endpoints: Sequence[str],
        tell: Callable[[c.Event], None],
        on_data: Callable[[], None],
    ) -> None:
        self._loop, self._tell, self._on_data = loop, tell, on_data
        self._endpoints = deque(endpoints)  # the one that is dialled comes first
        self._patience, self._give_up = DIAL_S, math.inf
        self._scout = Scout(loop, self._adopt)
        self._heard, self._look_at = -math.inf, math.inf
        self.several = len(endpoints) > 1
        """Whether there is another dispatcher: else nobody needs `turned` and `heard`."""
        self.wake = math.inf
        """When `turned` is due, on the monotonic clock, s."""

    def open(self) -> None:
        """Dial."""
        self._take(
            Dialled(
                self._loop.context, PeerRef(DISPATCHER, self._endpoints[0]), Handshake(CLIENT, dialled=True)
            )
        )
        self._set_patience()
        self._check_refusal()

    def renew(self) -> None:
        """Dial anew where nobody watches the connection any more, and perhaps in the middle of something."""
        with suppress(Exception):  # perhaps closed already
            self.dialled.close()
        self._scout.abandon()
        self._heard, self._look_at = -math.inf, math.inf
        self.open()

    def redial(self) -> None:
        """Leave this connection, and dial the next dispatcher."""
        self._endpoints.rotate(-1)
        dialled = self.dialled
        self._leave()
        dialled.peer = PeerRef(DISPATCHER, self._endpoints[0])
        dialled.open()
        self._take(dialled)
        self._set_patience()
        self._tell(c.Disconnected())
        self._check_refusal()

    def close(self) -> None:
        """Hang up."""
        self._scout.close()
        if hasattr(self, "dialled"):
            self.dialled.close()

    def heard(self) -> None:
        """Something came."""
        self._heard = time.monotonic()

    def greeted(self, greeting: Greeting) -> None:
        """The dispatcher answered the greeting."""
        handshake = self.dialled.handshake
        handshake.greeted(greeting)
        if handshake.state == "refused":
            self._tell(c.Refused("protocol-mismatch", handshake.reason))
            return
        self._settled()
        self._tell(c.Connected())

    def refused(self, refusal: Refusal) -> None:
        """The dispatcher will not talk."""
        if refusal.code == NotAllowedError.code:
            self.dialled.refusal = NotAllowedError(refusal.message)
            self._check_refusal()
            return
        early = self.dialled.handshake.state != "ready"
        self._tell(c.Refused("protocol-mismatch" if early else refusal.code, refusal.message))

    def turned(self, owed_since: float) -> None:
        """Go on where it is time to.

        Args:
            owed_since: Since when the dispatcher owes an answer; infinity where it owes none.
        """
        now = time.monotonic()
        if self._give_up <= now:
            self.redial()
        others = list(self._endpoints)[1:] if self.dialled.handshake.state == "ready" else []
        self._look_at = self._scout.look(others, now, max(self._heard, owed_since))
        self.wake = min(self._give_up, self._look_at)

    def _take(self, dialled: Dialled) -> None:
        self.dialled, self.socket = dialled, dialled.socket
        self._loop.watch(dialled.socket, self._on_data)
        self._loop.watch(dialled.monitor.socket, self._on_monitor)

    def _leave(self) -> None:
        dialled = self.dialled
        self._loop.unwatch(dialled.socket)
        self._loop.unwatch(dialled.monitor.socket)
        dialled.close()

    def _adopt(self, endpoint: str, dialled: Dialled) -> None:
        """Another dispatcher leads by now, and this is a connection to it."""
        self._leave()
        self._endpoints.rotate(-self._endpoints.index(endpoint))
        self._take(dialled)
        self._settled()
        self._heard = time.monotonic()
        self._tell(c.Disconnected())
        self._tell(c.Connected())

    def _set_patience(self) -> None:
        """Where there is another dispatcher, this one must answer within some time."""
        if self.several:
            self._give_up = time.monotonic() + self._patience
            self.wake = min(self._give_up, self._look_at)
            self._patience = min(DIAL_LIMIT_S, self._patience * DIAL_GROWS)

    def _settled(self) -> None:
        """This one answers."""
        self._give_up, self._patience = math.inf, DIAL_S
        self.wake = self._look_at

    def _check_refusal(self) -> None:
        refusal = self.dialled.refusal
        if refusal is not None:
            self._tell(c.Refused(refusal.code, str(refusal), refusal.hint))

    def _on_monitor(self) -> None:
        dialled = self.dialled
        for stands in dialled.happened():
            if not stands:
                self.redial()
                return
            dialled.say(dialled.handshake.opened())
        self._check_refusal()
