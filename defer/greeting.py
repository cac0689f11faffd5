"""Who answers at an address: greet agents whose names are not known yet, all at once.

A greeting changes nothing in an agent: it answers with its name and what it offers, as it does to any dispatcher. Where
connections have keys, whoever answers must prove to have the key of an agent that is authorised here; which one, the
address does not tell, so every authorised agent's key is tried, unless a name came along.
"""

from __future__ import annotations

import contextlib
import socket as sockets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import zmq

from defer.documents.address import Address
from defer.errors import AgentUnreachable, DeferError, InvalidCluster, from_code
from defer.hops import DISPATCHER
from defer.translating import translate
from node_agent import messages as m
from node_agent.errors import AgentError
from node_agent.frames import decode_control, encode_control
from node_agent.link import Context, Monitor, Socket, dial, new_context, open_socket
from node_agent.security import Security
from node_agent.sockets import say

AGAIN_S = 0.5
"""Seconds between greetings that are not answered."""

SLICE_MS = 50
"""Longest that one look at the sockets takes."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """An address to greet, and the name that is expected there; empty for any."""

    address: Address
    name: str = ""


@dataclass(frozen=True, slots=True)
class Answered:
    """An agent that answered.

    Attributes:
        address: Where.
        name: What it is called.
        boot: Differs for each start of its process: the same boot at two addresses is one agent.
        offer: What it brings.
    """

    address: Address
    name: str
    boot: str
    offer: m.Offer


@dataclass(frozen=True, slots=True)
class Silent:
    """An address where no agent could be greeted, and why."""

    address: Address
    error: DeferError


Greeted = Answered | Silent


@dataclass(slots=True)
class _Call:
    wanted: Wanted
    name: str
    socket: Socket
    monitor: Monitor
    next_hello: float = 0.0


@dataclass(slots=True)
class _Round:
    """Greetings under way, by the number of what is wanted."""

    calls: list[_Call] = field(default_factory=list)
    ended: dict[Address, Greeted] = field(default_factory=dict)
    refusals: dict[Address, DeferError] = field(default_factory=dict)


def greet(
    wanted: Sequence[Wanted],
    *,
    security: Security,
    timeout: float,
    on_end: Callable[[Greeted], None] | None = None,
) -> tuple[Greeted, ...]:
    """Greet every address and wait for all that answer.

    Args:
        wanted: Whom.
        security: How connections are protected; this process is a dispatcher.
        timeout: Seconds for all together.
        on_end: Told of each address that has answered, or cannot.

    Returns:
        One per address, in the order given, each address once.
    """
    with new_context(security) as context:
        turn = _Round()
        for each in wanted:
            _call(context, each, security, turn)
        deadline = time.monotonic() + timeout
        told: set[Address] = set()
        try:
            while turn.calls and time.monotonic() < deadline:
                _turn(turn)
                for address in turn.ended.keys() - told:
                    told.add(address)
                    if on_end is not None:
                        on_end(turn.ended[address])
        finally:
            for call in turn.calls:
                _hang_up(call)
    return tuple(
        turn.ended.get(address) or Silent(address, turn.refusals.get(address) or _nobody(address, timeout))
        for address in dict.fromkeys(each.address for each in wanted)
    )


def way_to(address: Address) -> str:
    """The address of this machine from which it reaches another; asks the system's routes, and sends nothing.

    Raises:
        InvalidCluster: The host has no address, or no route leads there.
    """
    try:
        kind, _, _, _, target = sockets.getaddrinfo(address.host, 1, type=sockets.SOCK_DGRAM)[0]
        with sockets.socket(kind, sockets.SOCK_DGRAM) as probe:
            probe.connect(target)
            return str(probe.getsockname()[0])
    except OSError as exc:
        raise InvalidCluster(
            f"this machine knows no way to {address.host}: {exc.strerror or exc}",
            where=str(address),
            hint="give an address that `ping` reaches",
        ) from exc


def _call(context: Context, wanted: Wanted, security: Security, turn: _Round) -> None:
    names = [wanted.name]
    if security.curve and security.keys is not None and not wanted.name:
        names = [each.name for each in security.keys.allowed.of_role("agent")]
        if not names:
            turn.refusals[wanted.address] = InvalidCluster(
                "no agent's key is authorised here",
                hint="copy the agents' certificates here, then: defer keys authorise FILE",
            )
    for name in names:
        socket = open_socket(context, zmq.DEALER, purpose="control")
        call = _Call(wanted, name, socket, Monitor(socket))
        try:
            dial(socket, wanted.address.endpoint(), name)
        except (AgentError, zmq.ZMQError) as error:
            turn.refusals[wanted.address] = translate(error)
            _hang_up(call)
            continue
        turn.calls.append(call)


def _hang_up(call: _Call) -> None:
    call.monitor.close()
    call.socket.close(linger=0)


def _turn(turn: _Round) -> None:
    """Says what is due, takes what came, and forgets calls that have ended."""
    now = time.monotonic()
    poller = zmq.Poller()
    for call in turn.calls:
        poller.register(call.socket, zmq.POLLIN)
        poller.register(call.monitor.socket, zmq.POLLIN)
        if now >= call.next_hello:
            hello = m.Hello(1, m.PROTOCOL_MINIMUM, m.PROTOCOL_VERSION, DISPATCHER, "dispatcher")
            with contextlib.suppress(zmq.Again):  # no connection yet
                say(call.socket, [encode_control(hello)])
                call.next_hello = now + AGAIN_S
    poller.poll(SLICE_MS)
    for call in list(turn.calls):
        address = call.wanted.address
        if "failed" in call.monitor.events() and call.monitor.refusal is not None:
            # With several keys tried, all but one of them are expected to fail.
            turn.refusals[address] = translate(call.monitor.refusal)
            turn.calls.remove(call)
            _hang_up(call)
            continue
        ended = _answer(call)
        if ended is not None:
            turn.ended[address] = ended
    for call in [each for each in turn.calls if each.wanted.address in turn.ended]:
        turn.calls.remove(call)
        _hang_up(call)


def _answer(call: _Call) -> Greeted | None:
    """What came back on a call; None while nothing did that ends it."""
    address = call.wanted.address
    while True:
        try:
            frames = call.socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None
        try:
            message = decode_control(frames[0])
        except Exception:  # noqa: S112 - whatever listens there, it is no agent
            continue
        match message:
            case m.Welcome(offer=None):
                return Silent(
                    address,
                    AgentUnreachable(
                        f"a dispatcher listens at {address}, not an agent", hint="give the agents' addresses"
                    ),
                )
            case m.Welcome(offer=m.Offer() as offer):
                if call.name and message.name != call.name:
                    wrong = InvalidCluster(
                        f"the agent at {address} calls itself {message.name!r}, not {call.name!r}",
                        hint=f"write {message.name}={address}",
                    )
                    return Silent(address, wrong)
                return Answered(address, message.name, message.boot, offer)
            case m.Fault():
                return Silent(address, from_code(message.code, message.message, message.hint))
            case _:
                continue


def _nobody(address: Address, timeout: float) -> AgentUnreachable:
    return AgentUnreachable(
        f"no agent answered at {address} within {timeout:g} s",
        hint=f"start one there with `defer agent --listen {address}`, or give the port that it prints",
    )
