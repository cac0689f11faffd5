"""What must hold, whatever happened: looked at as it happens, now and then, and when all has come to rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import zmq

from benchmarks.simulation.agent import Agent
from benchmarks.simulation.client import Asked, Client
from benchmarks.simulation.dispatcher import Dispatcher
from benchmarks.simulation.seams import Stage
from defer.client_core import GRACE_S
from defer.dispatcher import events as e
from node_agent.messages import NO_DEADLINE

LATE_S = 0.05
"""What a busy process may take to notice that a deadline has passed."""


class Ledger:
    """What the dispatcher accepted and answered; each accepted request once, in time, and none twice.

    Args:
        dispatcher: Whose core is listened to.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.core = dispatcher.shell._core
        self.accepted: dict[bytes, float] = {}
        self.answered: dict[bytes, float] = {}
        self._process = dispatcher.process
        self._stopped = 0.0
        self._handle = self.core.handle
        self.core.handle = self.handle  # type: ignore[method-assign]

    def handle(self, event: Any, now: float) -> list[Any]:
        """In place of the core's own."""
        asked = event.infer.request if isinstance(event, e.InferArrived) else b""
        before = self._holds(asked)
        expected = self._epoch_of(event)
        told = self._handle(event, now)
        if expected and expected != event.item.epoch and any(isinstance(said, e.Deliver) for said in told):
            Stage.world.broken(f"a result of deployment {event.item.epoch} was delivered for {expected}")
        self._routes(told)
        if not before and self._holds(asked):
            self._accept(asked, event.infer.remaining_ns, now)
        for instruction in told:
            if isinstance(instruction, e.Deliver):
                self._answer(instruction.result.request, asked, now)
            elif isinstance(instruction, e.Reject):
                self._answer(instruction.rejection.request, asked, now)
        return told

    def _routes(self, told: list[Any]) -> None:
        """What takes over can serve, and what is waited for is on a route that can, where there is one."""
        routes = self.core.routes
        for instruction in told:
            if isinstance(instruction, e.TookOver) and not routes.ready_for(instruction.model):
                Stage.world.broken(f"deployment {instruction.epoch} took over, and a device of it is lost")
        for state in routes.by_epoch.values():
            if state.lost and state.busy and state.state != "loaded" and routes.ready_for(state.route.model):
                Stage.world.broken(
                    f"{state.busy} requests wait for deployment {state.route.epoch}, which is lost, while another serves"
                )

    def _holds(self, request: bytes) -> bool:
        return bool(request) and any(held.infer.request == request for held in self.core.requests.values())

    def _epoch_of(self, event: Any) -> int:
        """The deployment that the request of a result runs under; 0 where it is no result, or of no request."""
        request = self.core.requests.get(event.item.request) if isinstance(event, e.ItemReturned) else None
        return 0 if request is None else request.epoch

    def _accept(self, request: bytes, remaining_ns: int, now: float) -> None:
        if request in self.accepted:
            Stage.world.broken(f"request {request.hex()[:6]} was accepted a second time")
        left = self.core.limits.longest_s if remaining_ns == NO_DEADLINE else remaining_ns / 1e9
        self.accepted[request] = now + left
        Stage.world.note("disp", "accepts", request.hex()[:6])

    def _answer(self, request: bytes, asked: bytes, now: float) -> None:
        if request == asked and (request in self.answered or request not in self.accepted):
            return  # the same answer again, or a refusal
        if request not in self.accepted:
            Stage.world.broken(f"request {request.hex()[:6]} was answered and never accepted")
        if request in self.answered:
            Stage.world.broken(f"request {request.hex()[:6]} was answered a second time")
        self.answered[request] = now
        if now > self.accepted[request] + LATE_S and not self._process.paused and not self._was_paused(now):
            Stage.world.broken(f"request {request.hex()[:6]} was answered after its deadline")

    def paused_until(self, now: float) -> None:
        """The dispatcher stood still until now."""
        self._stopped = now

    def _was_paused(self, now: float) -> bool:
        return now - self._stopped < 0.1

    def at_the_end(self) -> None:
        """Nothing is left over."""
        left = [request for request in self.accepted if request not in self.answered]
        if left:
            Stage.world.broken(f"{len(left)} accepted requests have no answer, {left[0].hex()[:6]} is one")
        core = self.core
        routes = core.routes
        known = {epoch for epochs in routes.serving.values() for epoch in epochs}
        known |= {epoch for first in routes.standing.get("m", ()) for epoch in (first, *routes[first].beside)}
        if left_over := routes.by_epoch.keys() - known:
            Stage.world.broken(f"deployments {sorted(left_over)} neither serve nor stand by, and are held")
        if core.requests or core.nbytes:
            Stage.world.broken(
                f"the dispatcher still holds {len(core.requests)} requests, {core.nbytes} bytes"
            )


def ended_once(asked: Asked, versions: Iterable[Any], unclear: frozenset[str]) -> None:
    """A client's request ended once, in time, with a result of the whole model or a clear error."""
    name = asked.request.hex()[:6]
    if asked.abandoned:
        return
    if len(asked.ended) != 1:
        Stage.world.broken(f"request {name} ended {len(asked.ended)} times at its client")
        return
    late = asked.ended[0] - asked.deadline - GRACE_S
    if late > LATE_S:
        Stage.world.broken(f"request {name} ended {late:.3f} s after its deadline")
    if asked.result is None:
        if not asked.code or asked.code in unclear or not asked.message:
            Stage.world.broken(f"request {name} ended with {asked.code!r}: {asked.message}")
        return
    if not any(asked.result == version.whole(asked.values) for version in versions):
        Stage.world.broken(f"request {name} got a result that is not the whole model's")


def bounded(agents: Iterable[Agent], dispatcher: Dispatcher) -> None:
    """No queue is longer than credit allows; no credit is below what one item takes."""
    world = Stage.world
    core = dispatcher.shell._core
    # What is on a lost route moves to others of its model, beyond their limit: of two deployments with two routes each.
    if len(core.requests) > 4 * dispatcher.limits.requests:
        world.broken(
            f"the dispatcher holds {len(core.requests)} requests, the limit is {dispatcher.limits.requests}"
        )
    for agent in agents:
        receiver, sender = agent.plane._receiver, agent.plane._sender
        ends = [origin.end for origin in receiver._origins.values()]
        ends += [upstream.origin.end for upstream in receiver._upstreams.values()]
        # What came over connections that are gone is held as well, until it is passed on.
        allowed = 3 * (sum(end.window.window.items for end in ends) + 2 * agent.window.items + 64)
        if not 0 <= receiver.held <= allowed:
            world.broken(f"{agent.name} holds {receiver.held} items; credit allows {allowed}")
        waiting = sum(len(downstream.pending) for downstream in sender._peers.values())
        if waiting > receiver.held:
            world.broken(f"{agent.name} queues {waiting} items and holds {receiver.held}")
        for end in ends:
            if end.window._left_items < 0 or end.window.held < 0:
                world.broken(f"{agent.name} has a window below zero")


def at_rest(agents: Iterable[Agent], dispatcher: Dispatcher, clients: Iterable[Client]) -> bool:
    """Whether nothing is left to happen: every request has ended, every connection stands, what was ordered is served.

    What never comes to rest is not, and is looked at when its time is up.
    """
    core, living = dispatcher.shell._core, list(agents)
    contexts: list[Any] = [dispatcher.context, dispatcher.shell._loop.context]
    contexts += [agent.context for agent in living]
    for client in clients:
        if client.process.alive:
            contexts.append(client.session._loop.context)
            if not all(asked.ended for asked in client.asked):
                return False
    return (
        not core.requests
        and dispatcher.settled
        and all(agent.plane._receiver.held == 0 for agent in living)
        and all(_stands(socket) for context in contexts for socket in context.sockets if not socket.closed)
    )


def _stands(socket: Any) -> bool:
    """Whether both ends of every connection know that it stands, and nothing is under way but heartbeats."""
    own = [*socket.peers.values()] if socket.connection is None else [socket.connection]
    return (socket.connection is not None or socket.kind == zmq.ROUTER) and all(
        each.standing and all(each.knows) for each in own
    )


def credits_whole(agents: dict[str, Agent], dispatcher: Dispatcher) -> None:
    """At rest every credit is either the sender's to spend or the receiver's to give; nothing is held or lost."""
    world = Stage.world
    windows = _sending(agents, dispatcher)
    for agent in agents.values():
        receiver = agent.plane._receiver
        if receiver.held:
            world.broken(f"{agent.name} still holds {receiver.held} items")
        for upstream in receiver._upstreams.values():
            _whole(agent.name, upstream.origin.end, windows)
        for origin in receiver._origins.values():
            if origin.identity in origin.socket.peers:
                _whole(agent.name, origin.end, windows)
    standing: Any = dispatcher.shell._data
    for identity, end in dispatcher.shell._inbound.peers.items():
        if identity in standing.peers:
            _whole(dispatcher.shell.name, end, windows)


def _whole(name: str, end: Any, windows: dict[tuple[str, str], Any]) -> None:
    window = end.window
    if not end.ready:
        return
    items = window._left_items + window._owed_items
    nbytes = window._left_bytes + window._owed_bytes
    if (items, nbytes) != (window.window.items, window.window.nbytes) or window.held:
        Stage.world.broken(
            f"{name} has {items} items and {nbytes} bytes of credit towards {end.handshake.peer}, "
            f"not {window.window.items} and {window.window.nbytes}; {window.held} are held"
        )
    sending = windows.get((end.handshake.peer, name))
    if sending is not None and (sending.items, sending.nbytes) != (window._left_items, window._left_bytes):
        Stage.world.broken(
            f"{end.handshake.peer} believes to have {sending.items} items and {sending.nbytes} bytes of credit from "
            f"{name}, who granted {window._left_items} and {window._left_bytes}"
        )


def _sending(agents: dict[str, Agent], dispatcher: Dispatcher) -> dict[tuple[str, str], Any]:
    """Send windows by who sends to whom."""
    found: dict[tuple[str, str], Any] = {}
    for agent in agents.values():
        for peer, downstream in agent.plane._sender._peers.items():
            if downstream.end.handshake.state == "ready":
                found[agent.name, peer.name] = downstream.end.window
    for link, window in dispatcher.shell._core._links.items():
        name = link.removeprefix("to ").removeprefix("fetched by ").partition(" at ")[0]
        found[dispatcher.shell.name, name] = window
    return found


def all_ended(clients: Iterable[Client], versions: Iterable[Any], *, spoiled: bool) -> None:
    """`ended_once` for every request of every client; `spoiled` where bytes were changed on the way."""
    known = list(versions)
    unclear = frozenset({"internal"} if spoiled else {"internal", "agent-fault"})
    for client in clients:
        for asked in client.asked:
            ended_once(asked, known, unclear)
