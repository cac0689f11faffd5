"""Requests on routes: how they wait, are sent, move, and end. The steps of which `core` makes its decisions. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable

from defer.dispatcher import events as e
from defer.dispatcher.answers import Answer, RecentAnswers, say
from defer.dispatcher.counters import Counters
from defer.dispatcher.durable import Durable
from defer.dispatcher.ledger import Ledger, Request, mismatch
from defer.dispatcher.overdue import Overdue
from defer.dispatcher.routes import Routes, RouteState
from node_agent.flow import SendWindow
from node_agent.messages import Rejection


class Conveyor:
    """What is accepted, on which route it is, and what may be sent.

    Args:
        limits: What is held at most.
    """

    def __init__(self, limits: e.Limits | None = None) -> None:
        self.limits = limits or e.Limits()
        self.counters = Counters()
        self.routes = Routes(self.limits.routing_v)
        self.ledger = Ledger(self.limits.longest_s)
        self.requests = self.ledger.by_number
        self.answers = RecentAnswers(self.limits.answers, self.limits.answer_bytes, self.limits.spent)
        self.durable = Durable()
        self.overdue = Overdue()
        self.wake = math.inf
        """When `Tick` is due at the earliest, on the core's clock: as `next_deadline`, or sooner with nothing to do."""
        self._links: dict[str, SendWindow] = {}

    @property
    def nbytes(self) -> int:
        """Input bytes of the requests that are not answered yet."""
        return self.ledger.nbytes

    def _pump(self, link: str, now: float) -> list[e.Instruction]:
        """Send what waits for `link` as far as its credits go, one request of each route in turn."""
        window = self._links.get(link)
        turns = self.routes.turns(link)
        if window is None or not turns:
            return []
        out: list[e.Instruction] = []
        idle = 0
        while idle < len(turns):
            state = self.routes.by_epoch[turns[0]]
            if len(turns) > 1:
                turns.rotate(-1)
            if not state.waiting or state.lost:
                idle += 1
                continue
            request = self.requests[state.waiting[0]]
            if not window.ready:
                break
            idle = 0
            window.take(request.nbytes)
            state.waiting.popleft()
            state.sent.add(request.number)
            request.sent = True
            state.traffic.sent(now - request.arrived)
            typical = state.route.typical_bytes or request.nbytes
            scale = request.nbytes / typical if typical else 1.0
            look = self.overdue.sent(state.route.epoch, request.number, now, scale)
            if look < self.wake:
                self.wake = look
            out.append(e.SendItem(link, request.item(now), request.frames))
        return out

    def _wait(self, state: RouteState, request: Request, now: float) -> None:
        """A request waits for a route, behind those of its priority and before those of lower ones."""
        self.routes.accept(state, request.number, now)
        waiting = state.waiting
        at = last = len(waiting) - 1
        if not last:
            return
        priority = request.priority
        while at and self.requests[waiting[at - 1]].priority > priority:
            at -= 1
        if at < last:
            waiting.pop()
            waiting.insert(at, request.number)

    def _end(self, request: Request, code: str, text: str) -> list[e.Instruction]:
        """Answer an accepted request with an error."""
        self.counters.failed[code] += 1
        self.routes[request.epoch].traffic.ended(code)
        return self._answer(request, Answer(Rejection(request.infer.request, code, text)))

    def _answer(self, request: Request, answer: Answer) -> list[e.Instruction]:
        state = self.routes.by_epoch[request.epoch]
        self._leave(state, request)
        self.overdue.ended(request.number)
        self.ledger.remove(request)
        if request.infer.durable:
            out = self.durable.ended(request.client, request.infer, answer)
        else:
            # This process makes up a new id for each request, and never asks twice.
            if request.client is not e.HERE:
                self.answers.put(request.infer.request, answer)
            out = [say(request.client, answer)]
        if state.state == "retired" and not state.busy:
            out += self._remove(request.epoch)
        return out

    def _leave(self, state: RouteState, request: Request) -> None:
        self.routes.leave(state, request.number, sent=request.sent)
        self.overdue.left(state.route.epoch, request.number)

    def _send_again(self, state: RouteState, numbers: Iterable[int] | None = None) -> None:
        """What is under way on a route, or those of it, wait again, in order and before all others."""
        again = sorted(state.sent if numbers is None else numbers, reverse=True)
        self.counters.replayed += len(again)
        for number in again:
            self.requests[number].sent = False
            state.sent.discard(number)
            state.waiting.appendleft(number)
            self.overdue.left(state.route.epoch, number)

    def _move(self, state: RouteState, now: float) -> list[e.Instruction]:
        """Take everything on a route to those that serve its model now."""
        out: list[e.Instruction] = []
        links: dict[str, None] = {}
        for number in sorted({*state.waiting, *state.sent}):
            request = self.requests[number]
            other = self.routes.room(state.route.model, now)
            problem = mismatch(other.route, request.infer)
            if problem is not None or request.pinned:
                text = (
                    f"model {other.route.model!r} was replaced by another before the result came: {problem}"
                )
                out += self._end(request, "request-failed", text)
                continue
            self.counters.replayed += request.sent
            self._leave(state, request)
            state.traffic.accepted -= 1
            self._wait(other, request, now)
            request.epoch, request.sent = other.route.epoch, False
            links[other.route.link] = None
        return [*out, *(said for link in links for said in self._pump(link, now))]

    def _end_all(self, state: RouteState, code: str, text: str) -> list[e.Instruction]:
        out: list[e.Instruction] = []
        for number in sorted({*state.waiting, *state.sent}):
            out += self._end(self.requests[number], code, text)
        return out

    def _ready(self, epochs: tuple[int, ...], now: float, *, the_same: bool) -> list[e.Instruction]:
        """Let routes serve; those before them drain, and what cannot end on them moves.

        Where they serve the same as those the counts go on.
        """
        out: list[e.Instruction] = []
        on = {self.routes[epoch].route.devices: epoch for epoch in reversed(epochs)}
        for old in self.routes.ready(epochs):
            if the_same:
                self.routes[old].heir = on.get(self.routes[old].route.devices, epochs[0])
            if self.routes[old].lost:
                out += self._move(self.routes[old], now)
            out += self._retire(old)
        return out

    def _retire(self, epoch: int) -> list[e.Instruction]:
        state = self.routes.retire(epoch)
        return [] if state is None or state.busy else self._remove(epoch)

    def _remove(self, epoch: int) -> list[e.Instruction]:
        self.routes.remove(epoch)
        self.overdue.close(epoch)
        return [e.Drained(epoch)]
