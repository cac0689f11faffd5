"""Times the link to a peer over its data-in port, on a socket of its own beside the data path."""

from __future__ import annotations

import math
import time

import zmq

from node_agent.errors import AgentError, FrameError, RequestError
from node_agent.frames import encode_header
from node_agent.link import Context, Monitor, Socket, dial, open_socket, receive, send
from node_agent.messages import LinkMeasured, MeasureLink, Probe, ProbeEcho

CONNECT_S = 5.0
"""How long a peer may take to accept the connection."""

_SMALL_ROUNDS = 20
_LARGE_ROUNDS = 8
_FIRST, _GROWTH = 16 * 1024, 4
_SHARE = 1 / 16
"""Of the budget: a probe that takes less is too short to tell a rate from jitter."""
_LEAST_SHARE = 1 / 20
"""Of a large round trip: what its bytes take at least, whatever the small ones say."""
_PAUSE_S = 0.02
"""Without probes, to see what else the processes at both ends do."""
_ELSE = 0.1
"""Of a core: what a process may do beside the probes."""
_PATIENCE = 10.0
"""A single probe may take this many times the budget before the link counts as dead."""


def measure_link(context: Context, request: MeasureLink) -> LinkMeasured:
    """Small probes for the delay, then ones of up to `nbytes` for the bandwidth, within about `budget_s`.

    Bandwidth is that of the fastest large probe after its round trip is taken off: others share the link now
    and then, nobody makes it faster than it is.

    Raises:
        RequestError: The peer does not answer.
    """
    socket = open_socket(context, zmq.DEALER, purpose="data")
    monitor = Monitor(socket)
    try:
        dial(socket, request.peer.endpoint, request.peer.name)
        _await_connection(monitor, request, request.patience_s or CONNECT_S)
        patience = request.patience_s or max(CONNECT_S, _PATIENCE * request.budget_s)
        _round_trip(socket, 0, b"", request, patience)  # it may meet a thread that rests
        deadline = time.perf_counter() + request.budget_s / 4
        least = float("inf")
        for number in range(_SMALL_ROUNDS):
            least = min(least, _round_trip(socket, number, b"", request, patience)[0])
            if time.perf_counter() > deadline:
                break
        nbytes, fastest, costs = _large(socket, request, least, patience)
        busy = _busy(socket, request, patience)
        # Once more: had something else kept the machine busy before, the delay would be too long and the rate,
        # from which it is taken off, beyond any link's.
        for number in range(_SMALL_ROUNDS):
            least = min(least, _round_trip(socket, number, b"", request, patience)[0])
            if time.perf_counter() > deadline + request.budget_s:
                break
        # On a fast link a round trip's jitter may be all there is.
        seconds = max(fastest - least, fastest * _LEAST_SHARE)
        known = (0.0 if other else cost for cost, other in zip(costs, busy, strict=True))
        return LinkMeasured(request.id, nbytes / seconds, least / 2, *known)
    finally:
        monitor.close()
        socket.close()


def _large(
    socket: Socket, request: MeasureLink, least: float, patience: float
) -> tuple[int, float, tuple[float, float]]:
    """Bytes of a probe that fills the link for a good part of the budget, its fastest round trip, and its work.

    The work is in processor seconds per byte, of this process and of the peer: the least of all probes of that size,
    since both have other things to do. Probes grow from a few packets: what a fast link needs takes minutes on a
    slow one.
    """
    nbytes = min(_FIRST, request.nbytes)
    deadline = time.perf_counter() + request.budget_s * 3 / 4
    number = 0
    while True:
        fastest = sending = receiving = float("inf")
        before = 0.0
        for _ in range(_LARGE_ROUNDS):
            used = time.process_time()
            seconds, there = _round_trip(socket, number, bytes(nbytes), request, patience)
            fastest, sending = min(fastest, seconds), min(sending, time.process_time() - used)
            if before:
                receiving = min(receiving, there - before)
            before = there
            number += 1
            grows = nbytes < request.nbytes and fastest - least < request.budget_s * _SHARE
            if grows or time.perf_counter() > deadline:
                break
        if not grows or time.perf_counter() > deadline:
            return nbytes, fastest, (sending / nbytes, receiving / nbytes if receiving < math.inf else 0.0)
        nbytes = min(request.nbytes, nbytes * _GROWTH)


def _busy(socket: Socket, request: MeasureLink, patience: float) -> tuple[bool, bool]:
    """Whether this process, and the peer's, have much else to do: then nobody can tell what a probe's bytes took."""
    _, there = _round_trip(socket, 0, b"", request, patience)
    here, since = time.process_time(), time.perf_counter()
    time.sleep(_PAUSE_S)
    most = _ELSE * (time.perf_counter() - since)
    working = time.process_time() - here > most
    return working, _round_trip(socket, 1, b"", request, patience)[1] - there > most


def _unreachable(request: MeasureLink, why: str) -> AgentError:
    return RequestError(
        "link-unreachable",
        f"{request.peer.name} at {request.peer.endpoint} {why}.",
        hint="Check the address, and that no firewall is between the two.",
    )


def _await_connection(monitor: Monitor, request: MeasureLink, patience: float) -> None:
    deadline = time.perf_counter() + patience
    while (left := deadline - time.perf_counter()) > 0:
        if monitor.socket.poll(int(left * 1000) + 1) and "up" in monitor.events():
            return
        if monitor.refusal is not None:
            raise _unreachable(request, f"cannot be measured: {monitor.refusal}")
    raise _unreachable(request, f"did not accept a connection within {patience:g} s")


def _round_trip(
    socket: Socket, number: int, payload: bytes, request: MeasureLink, patience: float
) -> tuple[float, float]:
    """Seconds that a probe and its answer took, and the processor seconds that the peer has used so far."""
    start = time.perf_counter()
    send(socket, encode_header(Probe(number, len(payload))), [payload] if payload else [])
    while (left := start + patience - time.perf_counter()) > 0:
        if not socket.poll(int(left * 1000) + 1):
            continue
        _, header, _ = receive(socket, routed=False)
        if isinstance(header, ProbeEcho) and header.id == number:
            return time.perf_counter() - start, header.cpu_s
        if isinstance(header, FrameError):
            raise header
    raise _unreachable(request, f"did not answer a probe of {len(payload)} bytes within {patience:g} s")
