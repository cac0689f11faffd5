"""What the dispatcher does with requests: events in, instructions out, no socket, thread or clock.

An accepted request ends in exactly one answer. Its frames are kept until then, so that it can be sent again:

    Infer ──▶ checked ──▶ waiting ──credit──▶ sent ──result──▶ answered (kept for clients that ask again)
      │ refused              ▲                  │
      ▼                      └── link broke ────┤ failure, deadline, device lost ──▶ answered with an error
    Rejection

A refused request leaves no trace, and the client may send it again under the same id.
States of a route: `loaded` (only requests that name its epoch: the canary) → `ready` → `retired` (drains) →
gone; `lost` stands beside `ready`, while a device of the route is out of reach.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

from defer.dispatcher import events as e
from defer.dispatcher.answers import Answer, RecentAnswers
from defer.dispatcher.counters import Counters
from defer.dispatcher.routes import Routes, RouteState
from defer.signature import input_problem, output_problem
from node_agent.errors import FlowError
from node_agent.flow import SendWindow
from node_agent.messages import NO_DEADLINE, Credit, Failure, Infer, Item, Rejection, Result, TensorHeader

_S = 1_000_000_000


@dataclass(slots=True)
class Request:
    """An accepted request that is not answered yet."""

    number: int
    client: bytes
    infer: Infer
    frames: e.Frames
    nbytes: int
    epoch: int
    arrived: float
    deadline: float
    sent: bool = False


class DispatcherCore:
    """The dispatcher's decisions.

    Args:
        limits: What it holds at most.
    """

    def __init__(self, limits: e.Limits | None = None) -> None:
        self.limits = limits or e.Limits()
        self.counters = Counters()
        self.routes = Routes(self.limits.routing_v)
        self.requests: dict[int, Request] = {}
        self.nbytes = 0
        self.answers = RecentAnswers(self.limits.answers, self.limits.answer_bytes, self.limits.spent)
        self._by_id: dict[bytes, int] = {}
        self._links: dict[str, SendWindow] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._next_number = 1
        self._closing = False

    # ------------------------------------------------------------------------------------------------- events

    def handle(self, event: e.Event, now: float) -> list[e.Instruction]:
        """Take in one event.

        Args:
            event: What happened.
            now: Seconds on a monotonic clock, never less than at the event before.

        Returns:
            What to do about it, in order.
        """
        match event:
            case e.InferArrived():
                return self._infer(event, now)
            case e.ItemReturned(item, frames):
                return self._returned(item, frames, now)
            case e.FailureReturned(failure):
                return self._failed(failure.epoch, failure.request, failure.code, _told(failure))
            case e.CreditArrived(link, credit):
                return self._credit(link, credit, now)
            case e.LinkUp(link):
                self._links[link] = SendWindow()
                return []
            case e.LinkDown(link):
                return self._link_down(link)
            case e.ResultsBroke(peer):
                return self._results_broke(peer, now)
            case e.Tick():
                return self._expire(now)
            case e.DeviceLost():
                return self._device_lost(event, now)
            case _:
                return self._route_event(event)

    def next_deadline(self) -> float:
        """When `Tick` is due next, on the clock of `handle`; infinity when nothing waits."""
        while self._deadlines and self._deadlines[0][1] not in self.requests:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else math.inf

    # ----------------------------------------------------------------------------------------------- requests

    def _infer(self, event: e.InferArrived, now: float) -> list[e.Instruction]:
        infer = event.infer
        known = self._by_id.get(infer.request)
        if known is not None:  # asked again while in flight: whoever asked last gets the answer
            self.counters.repeated += 1
            self.requests[known].client = event.client
            return []
        answer = self.answers.get(infer.request)
        if answer is not None:
            self.counters.repeated += 1
            return [_say(event.client, answer)]
        nbytes = sum(header.nbytes for header in infer.tensors)
        chosen = self._choose(event, nbytes, now)
        if isinstance(chosen, Rejection):
            self.counters.refused[chosen.code] += 1
            return [e.Reject(event.client, chosen)]
        self._accept(event, chosen, nbytes, now)
        return self._pump(chosen.route.link, now)

    def _choose(self, event: e.InferArrived, nbytes: int, now: float) -> RouteState | Rejection:
        """The route that this request runs on, or why there is none."""
        infer = event.infer

        def refuse(code: str, message: str) -> Rejection:
            return Rejection(infer.request, code, message)

        if self._closing:
            return refuse("not-ready", "the dispatcher is shutting down")
        if infer.remaining_ns != NO_DEADLINE and infer.remaining_ns <= 0:
            return refuse("deadline-exceeded", "the request arrived after its deadline")
        if event.epoch is not None:
            state = self.routes.get(event.epoch)
            if state is None:
                return refuse("not-ready", f"deployment {event.epoch} is gone")
            if state.lost:
                return refuse("not-ready", state.reason)
        else:
            found = self.routes.find(infer.model, now)
            if isinstance(found, tuple):
                return refuse(*found)
            state = found
        route = state.route
        problem = input_problem(route.inputs, infer.tensors) or output_problem(route.outputs, infer.outputs)
        if problem is not None:
            return refuse("wrong-input", f"model {route.model!r}: {problem}")
        if state.busy >= self.limits.requests:
            return refuse(
                "overloaded",
                f"{state.busy} requests for model {route.model!r} wait already "
                f"(limit {self.limits.requests})",
            )
        if self.nbytes and self.nbytes + nbytes > self.limits.nbytes:
            return refuse(
                "overloaded",
                f"requests of {self.nbytes} bytes wait already, {nbytes} more would pass the limit of "
                f"{self.limits.nbytes}",
            )
        return state

    def _accept(self, event: e.InferArrived, state: RouteState, nbytes: int, now: float) -> None:
        infer = event.infer
        longest = self.limits.longest_s
        left = longest if infer.remaining_ns == NO_DEADLINE else min(longest, infer.remaining_ns / _S)
        number, self._next_number = self._next_number, self._next_number + 1
        self.requests[number] = Request(
            number, event.client, infer, event.frames, nbytes, state.route.epoch, now, now + left
        )
        self._by_id[infer.request] = number
        self.nbytes += nbytes
        self.routes.accept(state, number, now)
        heapq.heappush(self._deadlines, (now + left, number))
        if len(self._deadlines) > 4 * len(self.requests) + 64:  # mostly of requests that have ended
            self._deadlines = [(request.deadline, n) for n, request in self.requests.items()]
            heapq.heapify(self._deadlines)

    def _pump(self, link: str, now: float) -> list[e.Instruction]:
        """Send what waits for `link` as far as its credits go, one request of each route in turn."""
        window = self._links.get(link)
        turns = self.routes.turns(link)
        if window is None or not turns:
            return []
        out: list[e.Instruction] = []
        idle = 0
        while idle < len(turns):
            state = self.routes[turns[0]]
            turns.rotate(-1)
            if not state.waiting or state.state == "lost":
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
            out.append(e.SendItem(link, _item(request, now), request.frames))
        return out

    def _returned(self, item: Item, frames: e.Frames, now: float) -> list[e.Instruction]:
        request = self.requests.get(item.request)
        if request is None or request.epoch != item.epoch:
            self.counters.stale += 1
            return []
        state = self.routes[item.epoch]
        held = {header.name: at for at, header in enumerate(item.tensors)}
        wanted = request.infer.outputs or tuple(spec.name for spec in state.route.outputs)
        missing = [name for name in wanted if name not in held]
        if item.hop != state.route.hops or missing:
            self.counters.malformed += 1
            what = f"without {missing[0]!r}" if missing else f"as hop {item.hop} of {state.route.hops}"
            text = f"the last stage of model {state.route.model!r} returned a result {what}"
            return self._failed(item.epoch, item.request, "agent-fault", text)
        headers: tuple[TensorHeader, ...] = tuple(item.tensors[held[name]] for name in wanted)
        result = Result(request.infer.request, headers, now - request.arrived)
        kept = tuple(frames[held[name]] for name in wanted)
        state.traffic.finished(now, now - request.arrived)
        out = self._answer(request, Answer(result, kept, sum(header.nbytes for header in headers)))
        every = state.route.sample_every
        if every and request.client and state.traffic.answered % every == 0:
            out.append(e.Sampled(item.epoch, request.infer, request.frames, result, kept))
        return out

    def _failed(self, epoch: int, number: int, code: str, text: str) -> list[e.Instruction]:
        request = self.requests.get(number)
        if request is None or request.epoch != epoch:
            self.counters.stale += 1
            return []
        return self._end(request, code, text)

    def _end(self, request: Request, code: str, text: str) -> list[e.Instruction]:
        """Answer an accepted request with an error."""
        self.counters.failed[code] += 1
        self.routes[request.epoch].traffic.failed += 1
        return self._answer(request, Answer(Rejection(request.infer.request, code, text)))

    def _answer(self, request: Request, answer: Answer) -> list[e.Instruction]:
        state = self.routes[request.epoch]
        self.routes.leave(state, request.number, sent=request.sent)
        del self.requests[request.number]
        del self._by_id[request.infer.request]
        self.nbytes -= request.nbytes
        self.answers.put(request.infer.request, answer)
        out: list[e.Instruction] = [_say(request.client, answer)]
        if state.state == "retired" and not state.busy:
            out += self._remove(request.epoch)
        return out

    def _expire(self, now: float) -> list[e.Instruction]:
        out: list[e.Instruction] = []
        while self.next_deadline() <= now:
            request = self.requests[heapq.heappop(self._deadlines)[1]]
            out += self._end(request, "deadline-exceeded", self._overdue(request, now))
        return out

    def _overdue(self, request: Request, now: float) -> str:
        route = self.routes[request.epoch].route
        took = f"no result of model {route.model!r} within {now - request.arrived:.3g} s"
        first = route.devices[0] if route.devices else "its first stage"
        if request.sent:
            return f"{took}; it was sent through {' → '.join(route.devices)} and did not come back"
        if route.link not in self._links:
            return f"{took}; {first} has not opened its data connection"
        return f"{took}; it waited for {first}, which took no more requests"

    # -------------------------------------------------------------------------------------- links and devices

    def _credit(self, link: str, credit: Credit, now: float) -> list[e.Instruction]:
        window = self._links.get(link)
        if window is None:
            return []
        try:
            window.add(credit)
        except FlowError as error:  # a peer that does not count as we do: start anew with it
            return [*self._link_down(link), e.CutLink(link, str(error))]
        return self._pump(link, now)

    def _link_down(self, link: str) -> list[e.Instruction]:
        """What was on the broken connection may be lost: it is sent again, in order, once the peer is back.

        Running it twice does no harm, since only the first result is delivered.
        """
        self._links.pop(link, None)
        for state in self.routes.on_link(link):
            self._send_again(state)
        return []

    def _results_broke(self, peer: str, now: float) -> list[e.Instruction]:
        """Results may be lost, and nobody can tell which: all that is under way there is sent again."""
        links = []
        for state in self.routes.by_epoch.values():
            if state.route.last == peer and state.sent:
                self._send_again(state)
                links.append(state.route.link)
        return [said for link in dict.fromkeys(links) for said in self._pump(link, now)]

    def _send_again(self, state: RouteState) -> None:
        self.counters.replayed += len(state.sent)
        for number in sorted(state.sent, reverse=True):
            self.requests[number].sent = False
            state.waiting.appendleft(number)
        state.sent.clear()

    def _device_lost(self, event: e.DeviceLost, now: float) -> list[e.Instruction]:
        out: list[e.Instruction] = []
        for state in self.routes.lose(event.device, event.reason, restarted=event.restarted):
            out += self._move(state, now)
            out += self._end_all(state, "agent-lost", f"device {event.device!r} was lost: {event.reason}")
        return out

    def _move(self, state: RouteState, now: float) -> list[e.Instruction]:
        """Take what is under way on a lost route to the other routes of its model, where there are any.

        The lost route is given up then: unloading it frees what its requests hold of the stages that it shares with the
        others. What still comes back on it carries its epoch, and is not taken for the answer any more.
        """
        model = state.route.model
        if state.route.epoch not in self.routes.serving.get(model, ()) or not self.routes.ready_for(model):
            return []
        links: dict[str, None] = {}
        for number in sorted({*state.waiting, *state.sent}):
            other = self.routes.best(model, now)
            assert other is not None
            request = self.requests[number]
            self.counters.replayed += request.sent
            self.routes.leave(state, number, sent=request.sent)
            state.traffic.accepted -= 1
            self.routes.accept(other, number, now)
            request.epoch, request.sent = other.route.epoch, False
            links[other.route.link] = None
        moved = [said for link in links for said in self._pump(link, now)]
        return [*self._retire(state.route.epoch), *moved]

    def _end_all(self, state: RouteState, code: str, text: str) -> list[e.Instruction]:
        out: list[e.Instruction] = []
        for number in sorted({*state.waiting, *state.sent}):
            out += self._end(self.requests[number], code, text)
        return out

    # ------------------------------------------------------------------------------------------------- routes

    def _route_event(self, event: e.Event) -> list[e.Instruction]:
        match event:
            case e.DeviceBack(device):
                self.routes.regain(device)
            case e.ModelAnnounced(model, reason):
                self.routes.announced[model] = reason
            case e.ModelForgotten(model):
                self.routes.announced.pop(model, None)
            case e.RouteLoaded(route):
                self.routes.load(route)
            case e.RouteReady(epoch, beside):
                before = self.routes.ready((epoch, *beside))
                return [said for old in before for said in self._retire(old)]
            case e.RouteRetired(epoch):
                return self._retire(epoch)
            case e.RouteDropped(epoch, reason):
                state = self.routes.retire(epoch)
                # The last request that ends on a retired route removes it.
                ended = [] if state is None else self._end_all(state, "request-failed", reason)
                return [*ended, *self._retire(epoch)]
            case e.Closing():
                self._closing = True
            case e.Stopped():
                self._closing = True
                # A retired route goes with its last request.
                left = list(self.routes.by_epoch.values())
                return [
                    said
                    for state in left
                    for said in self._end_all(state, "not-ready", "the dispatcher is shutting down")
                ]
        return []

    def _retire(self, epoch: int) -> list[e.Instruction]:
        state = self.routes.retire(epoch)
        return [] if state is None or state.busy else self._remove(epoch)

    def _remove(self, epoch: int) -> list[e.Instruction]:
        self.routes.remove(epoch)
        return [e.Drained(epoch)]


def _say(client: bytes, answer: Answer) -> e.Instruction:
    if isinstance(answer.message, Result):
        return e.Deliver(client, answer.message, answer.frames)
    return e.Reject(client, answer.message)


def _item(request: Request, now: float) -> Item:
    infer = request.infer
    left = NO_DEADLINE if infer.remaining_ns == NO_DEADLINE else max(0, int((request.deadline - now) * _S))
    return Item(request.epoch, request.number, 0, left, infer.tensors, infer.trace)


def _told(failure: Failure) -> str:
    return f"{failure.message} (on device {failure.where!r})" if failure.where else failure.message
