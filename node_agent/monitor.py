"""What a dialling socket's monitor says: the connection stands, it breaks, or the other side refuses it, and why."""

from __future__ import annotations

from typing import Literal

import zmq
from zmq.utils.monitor import recv_monitor_message

from node_agent.errors import UnauthorisedError
from node_agent.security import Security, security_of

BROKEN = 2
"""Handshakes in a row that break off without a word: then the other side's key is another than is known here."""

Socket = zmq.Socket[bytes]

_MISMATCH = zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH


class Monitor:
    """Tells when the connection of a dialling socket stands, when it breaks, and when the other side refuses it.

    After `failed` ZeroMQ may not try again: a socket whose key was refused is dead.
    """

    _UP = zmq.EVENT_HANDSHAKE_SUCCEEDED
    _DOWN = zmq.EVENT_DISCONNECTED
    _FAILED = (
        zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
        zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
        zmq.EVENT_HANDSHAKE_FAILED_AUTH,
    )

    def __init__(self, socket: Socket) -> None:
        events = self._UP | self._DOWN
        for failed in self._FAILED:
            events |= failed
        self._watched = socket
        self._security = security_of(socket)
        self._broken = 0
        self.refusal: UnauthorisedError | None = None
        """Why the last handshake failed, where keys are the reason; None once one has succeeded."""
        self.dead = False
        """Whether the last handshake failed so that ZeroMQ does not try again."""
        self.socket: Socket = socket.get_monitor_socket(events)

    def events(self) -> list[Literal["up", "down", "failed"]]:
        """What happened since the last call, in order."""
        seen: list[Literal["up", "down", "failed"]] = []
        while int(self.socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            told = recv_monitor_message(self.socket)
            event = told["event"]
            if event == self._UP:
                self.refusal = None
                self._broken = 0
                seen.append("up")
            elif event == self._DOWN:
                seen.append("down")
            elif event in self._FAILED:
                # Once may be a process that was just killed.
                self._broken += event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
                if event != zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL or self._broken >= BROKEN:
                    self.refusal = _refusal(self._security, event, told["value"])
                self.dead = event != zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
                seen.append("failed")
        return seen

    def close(self) -> None:
        """Stops watching; before the watched socket is closed."""
        self._watched.disable_monitor()
        self.socket.close(0)


def _refusal(security: Security, event: int, value: int) -> UnauthorisedError | None:
    """What a failed handshake says about keys; None where it says nothing."""
    if not security.curve or security.own is None:
        if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == _MISMATCH:
            return UnauthorisedError(
                "the other side demands keys, and none were given here",
                hint="give the folder with yours: --keys DIR (in Python keys=DIR, for all DEFER_KEYS)",
            )
        return None
    own = security.own
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return UnauthorisedError(
            f"the other side refused the key of {own.name!r}, role {own.role}: it is not authorised there",
            hint="`defer keys list` there shows whether it was revoked, or is new: "
            f"defer keys authorise {own.name}.toml; if it is authorised, that role may not connect to this port",
        )
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == _MISMATCH:
        return UnauthorisedError(
            "the other side has no keys, and this one will not talk without",
            hint="start it with --keys; or leave --keys out here, where that is safe",
        )
    return UnauthorisedError(
        "the handshake broke off: the other side does not have the key that is known here as its own",
        hint="is the address the one that was meant (not an agent's for a dispatcher's, or the other way round)? "
        "If it is, copy its certificate again and authorise it: it may have been rotated",
    )
