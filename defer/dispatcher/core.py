"""What the dispatcher does with requests: events in, instructions out, no socket, thread or clock.

An accepted request ends in exactly one answer. Its frames are kept until then, so that it can be sent again:

    Infer ──▶ checked ──▶ waiting ──credit──▶ sent ──result──▶ answered (kept for clients that ask again)
      │ refused              ▲                  │
      ▼                      ├── link broke ────┤ failure, deadline, cancelled ──▶ answered with an error
    Rejection                └── overdue ───────┘

A device that is lost ends no request. What is on its routes waits until the device is back, or moves to another route
of the model: one that is ready, one that stands by, or the one that is loaded in the place of the lost one.

A refused request leaves no trace, and the client may send it again under the same id.
States of a route: `loaded` (only requests that name its epoch: the canary) → `ready` → `retired` (drains) →
gone; `lost` stands beside `ready`, while a device of the route is out of reach.
"""

from __future__ import annotations

from defer.dispatcher import events as e
from defer.dispatcher.answers import Answer, say
from defer.dispatcher.durable import gone
from defer.dispatcher.ledger import Request, mismatch, obstacle
from defer.dispatcher.losses import Losses
from defer.dispatcher.parking import Parking
from defer.dispatcher.rollout import Splits
from defer.dispatcher.routes import REMEMBERED, Returned, RouteState
from defer.units import show_duration
from node_agent.flow import SendWindow
from node_agent.messages import NO_DEADLINE, Failure, Infer, Item, Rejection, Result

CANCELLED = "the client cancelled the request"


class DispatcherCore(Losses):
    """The dispatcher's decisions.

    Args:
        limits: What it holds at most.
    """

    def __init__(self, limits: e.Limits | None = None) -> None:
        super().__init__(limits)
        self.failing: dict[str, str] = {}  # deployments that do not answer canaries, and why
        self.parking = Parking(self.limits)
        self.splits = Splits()
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
        self.durable.at(now)
        # What every request brings, without a pattern to match.
        if type(event) is e.ItemReturned:
            return self._returned(event.item, event.frames, now)
        if type(event) is e.CreditArrived:
            return self._credit(event.link, event.credit, now)
        if type(event) is e.InferArrived:
            if self.parking.open and event.epoch is None and not event.kept and not self._is_back(event):
                return self.parking.take(event, now)
            return self._infer(event, now)
        said = self._handle_other(event, now)
        self.wake = self.next_deadline()
        return said

    def _handle_other(self, event: e.Event, now: float) -> list[e.Instruction]:
        match event:
            case e.FailureReturned(failure):
                return self._failed(failure.epoch, failure.request, failure.code, _told(failure))
            case e.LinkUp(link):
                self._links[link] = SendWindow()
                return []
            case e.LinkDown(link):
                return self._link_down(link)
            case e.ResultsBroke(peer):
                return self._results_broke(peer, now)
            case e.Tick():
                return [*self._expire(now), *self._send_lost(now)]
            case e.CancelArrived(_, name) if self.parking.open and self.ledger.named(name) is None:
                return self.parking.take(event, now)
            case e.CancelArrived(client, request):
                return self._cancel(client, request)
            case e.DevicesQuiet(since):
                self.overdue.quiet = since
                return []
            case e.DeviceLost():
                return self._device_lost(event, now)
            case e.DeviceBack(device):
                return self._device_back(device, now)
            case e.RecallArrived() | e.Kept() | e.Recalled() | e.Resumed():
                return self._about_store(event, now)
            case e.RouteReady():
                out = self._route_event(event, now)
                if self.parking.open:
                    back = self.parking.back(self._is_back, now)
                    out += [said for each in back for said in self.handle(each, now)]
                return [*out, *(said for held in self.parking.held(now) for said in self.handle(held, now))]
            case _:
                return self._route_event(event, now)

    def next_deadline(self) -> float:
        """When `Tick` is due next, on the clock of `handle`; infinity when nothing waits."""
        return min(self.ledger.next_expiry(), self.overdue.next_look())

    # ----------------------------------------------------------------------------------------------- requests

    def _infer(self, event: e.InferArrived, now: float) -> list[e.Instruction]:
        infer = event.infer
        known = self.ledger.named(infer.request)
        if known is not None:  # asked again while in flight: whoever asked last gets the answer
            self.counters.repeated += 1
            known.client = event.client
            return self.durable.again(event.client, known.infer)
        if (said := self.durable.known(event.client, infer.request)) is not None:
            self.counters.repeated += 1
            return said
        answer = self.answers.get(infer.request)
        if answer is not None:
            self.counters.repeated += 1
            return [say(event.client, answer)]
        tensors = infer.tensors
        nbytes = tensors[0].nbytes if len(tensors) == 1 else sum(header.nbytes for header in tensors)
        chosen = self._choose(event, nbytes, now)
        if isinstance(chosen, Rejection):
            self.counters.refused[chosen.code] += 1
            if event.kept and chosen.code == "not-ready":
                self.parking.hold(event, now)
                return []
            if event.kept:  # it was accepted before, so this is its answer
                return self.durable.ended(event.client, infer, Answer(chosen))
            return [e.Reject(event.client, chosen)]
        request = self.ledger.add(event, nbytes, chosen.route.epoch, now)
        if request.deadline < self.wake:
            self.wake = request.deadline
        self._wait(chosen, request, now)
        out = self._pump(chosen.route.link, now)
        if infer.durable and not event.kept:
            return [*self.durable.accepted(infer, event.frames, request.deadline), *out]
        return out

    def _about_store(
        self, event: e.RecallArrived | e.Kept | e.Recalled | e.Resumed, now: float
    ) -> list[e.Instruction]:
        match event:
            case e.RecallArrived() if self.parking.open:
                return self.parking.take(event, now)
            case e.RecallArrived(client, name):
                return self._recall(client, name)
            case e.Recalled(client, name, kept):
                return self.durable.recalled(client, name, kept)
            case e.Resumed(requests):
                waited = self.parking.leave(now)
                return [said for each in (*requests, *waited) for said in self.handle(each, now)]
            case e.Kept(name, "answer", problem=problem):
                return self.durable.answer_kept(name, problem)
            case e.Kept(name, _, code, problem):
                known = self.ledger.named(name)
                if known is not None and problem:
                    return self._end(known, code, f"the request was not kept: {problem}")
                return self.durable.request_kept(None if known is None else known.client, name)

    def _recall(self, client: bytes, name: bytes) -> list[e.Instruction]:
        """Whoever asks for an answer by its id gets it: now, from the store, or when there is one."""
        known = self.ledger.named(name)
        if known is not None:
            known.client = client
            return self.durable.again(client, known.infer)
        said = self.durable.known(client, name)
        if said is not None:
            return said
        answer = self.answers.get(name)
        return [e.Reject(client, gone(name)) if answer is None else say(client, answer)]

    def _choose(self, event: e.InferArrived, nbytes: int, now: float) -> RouteState | Rejection:
        """The route that this request runs on, or why there is none."""
        infer = event.infer
        why: tuple[str, str] | None
        if self._closing:
            why = "not-ready", "the dispatcher is shutting down"
        elif infer.durable and (refused := self.durable.problem(infer)) is not None:
            return refused
        elif infer.remaining_ns != NO_DEADLINE and infer.remaining_ns <= 0:
            why = "deadline-exceeded", "the request arrived after its deadline"
        else:
            found: RouteState | tuple[str, str]
            if event.epoch is not None:
                found = self._meant(event.epoch)
            else:
                found = self.routes.find(self._version(infer) if self.splits.by_name else infer.model, now)
            if not isinstance(found, tuple):
                why = obstacle(found, infer, nbytes, self.ledger.nbytes, self.limits)
                if why is None:
                    return found
            else:
                why = found
        return Rejection(infer.request, *why)

    def _meant(self, epoch: int) -> RouteState | tuple[str, str]:
        state = self.routes.get(epoch)
        if state is None:
            return "not-ready", f"deployment {epoch} is gone"
        return ("not-ready", state.reason) if state.lost else state

    def _is_back(self, event: e.InferArrived) -> bool:
        """While a restarted dispatcher has not everything back: whether a request can be taken all the same."""
        if event.infer.durable:
            return False  # it may be one of those that the store is still to bring
        names = self.routes.serving.keys() | self.routes.announced.keys()
        model = event.infer.model or self.splits.only(names) or (next(iter(names)) if len(names) == 1 else "")
        split = self.splits.by_name.get(model)
        return bool(self.routes.ready_for(model if split is None else split.stable))

    def _version(self, infer: Infer) -> str:
        """The deployment that a request takes, where what it names has versions."""

        def takes(deployment: str) -> bool:
            ready = self.routes.ready_for(deployment)
            return bool(ready) and mismatch(ready[0].route, infer) is None

        return self.splits.choose(infer.model or self.splits.only(self.routes.serving), takes)

    def _returned(self, item: Item, frames: e.Frames, now: float) -> list[e.Instruction]:
        request = self.requests.get(item.request)
        if request is None or request.epoch != item.epoch:
            self.counters.stale += 1
            return []
        state = self.routes.by_epoch[item.epoch]
        told = state.returns.get(id(item.tensors))
        if (
            told is None
            or told.came is not item.tensors
            or request.infer.outputs
            or item.hop != state.route.hops
        ):
            fits = _outputs(state, item, request.infer.outputs)
            if isinstance(fits, str):
                return self._failed(item.epoch, item.request, "agent-fault", fits)
            told = fits
        took = now - request.arrived
        result = Result(request.infer.request, told.headers, took)
        kept = tuple([frames[place] for place in told.places])
        self.overdue.back(item.epoch, item.request, now)
        state.traffic.finished(now, took, request.infer.tensors)
        out = self._answer(request, Answer(result, kept, told.nbytes))
        every = state.route.sample_every
        if every and request.client and state.traffic.answered % every == 0:
            out.append(e.Sampled(item.epoch, request.infer, request.frames, result, kept))
        return out

    def _failed(self, epoch: int, number: int, code: str, text: str) -> list[e.Instruction]:
        request = self.requests.get(number)
        if request is None or request.epoch != epoch:
            self.counters.stale += 1
            return []
        state = self.routes[epoch]
        if state.lost and not request.sent:  # it is to be sent again, on what takes the place of this one
            self.counters.stale += 1
            return []
        out = self._end(request, code, text)
        if request.pinned and state.state == "ready" and not state.traffic.answered:
            # The canary of a route that serves already; what went behind it waits for the next route.
            self.routes.void(epoch, f"nothing has passed it, and its canary failed: {text}")
            self._send_again(state)
        return out

    def _expire(self, now: float) -> list[e.Instruction]:
        out: list[e.Instruction] = []
        for request in self.ledger.expired(now):
            out += self._give_up(request, "deadline-exceeded", self._late(request))
        return out

    def _cancel(self, client: bytes, name: bytes) -> list[e.Instruction]:
        request = self.ledger.named(name)
        if request is None:
            held = self.parking.let_go(name)
            if held is None:
                return []  # it was answered already
            return self.durable.ended(b"", held.infer, Answer(Rejection(name, "cancelled", CANCELLED)))
        if request.client != client and not request.infer.durable:
            return []  # it is somebody else's; a durable one is whose who know its id, on whatever connection
        return self._give_up(request, "cancelled", CANCELLED)

    def _give_up(self, request: Request, code: str, text: str) -> list[e.Instruction]:
        """End a request that may be under way, and have what is left of it dropped there."""
        route = self.routes[request.epoch].route
        told = [e.CancelItems(route.link, route.epoch, (request.number,))] if request.sent else []
        return [*self._end(request, code, text), *told]

    def _late(self, request: Request) -> str:
        route = self.routes[request.epoch].route
        # What it was given, not what has passed: that is more, and by how much says nothing to who set the timeout.
        given = show_duration(request.deadline - request.arrived)
        took = f"no result of model {route.model!r} before its deadline, {given} after it arrived"
        first = route.devices[0] if route.devices else "its first stage"
        state = self.routes[request.epoch]
        if state.lost:
            return f"{took}; {self.routes.stuck.get(route.model, state.reason)}"
        if request.sent:
            return f"{took}; it was sent through {' → '.join(route.devices)} and did not come back"
        if route.link not in self._links:
            return f"{took}; {first} has not opened its data connection"
        return f"{took}; it waited for {first}, which took no more requests"

    # ------------------------------------------------------------------------------------------------- routes

    def _drop(self, epoch: int, reason: str) -> list[e.Instruction]:
        state = self.routes.retire(epoch)
        # The last request that ends on a retired route removes it.
        ended = [] if state is None else self._end_all(state, "request-failed", reason)
        return [*ended, *self._retire(epoch)]

    def _route_event(self, event: e.Event, now: float) -> list[e.Instruction]:
        match event:
            case e.ModelStuck(model, reason) if model in self.routes.serving:
                self.routes.stuck[model] = reason
            case e.ModelStuck(model, reason) if model in self.routes.announced:
                self.routes.announced[model] = f"coming back: {reason}"
            case e.ModelAnnounced(model, reason):
                self.routes.announced[model] = reason
            case e.SplitSet(split):
                self.splits.put(split)
            case e.SplitForgotten(name):
                self.splits.drop(name)
            case e.ModelForgotten(model):
                self.routes.announced.pop(model, None)
            case e.RouteLoaded(route):
                self.routes.load(route)
                self.overdue.open(route.epoch, route.devices, route.latency_s)
            case e.RouteReady(epoch, beside, the_same):
                model = self.routes[epoch].route.model
                out = self._ready((epoch, *beside), now, the_same=the_same)
                out += self._replace_lost(model, now)
                idle = () if the_same else self.routes.dismiss(model)
                return [*out, *(said for each in idle for said in self._retire(each))]
            case e.RouteStands(epoch, beside, value) if self.routes.get(epoch) is not None:
                self.routes.stand(epoch, beside, value)
                return self._replace_lost(self.routes[epoch].route.model, now)
            case e.RouteVoid(epoch, reason):
                state = self.routes.void(epoch, reason)
                return (
                    [] if state is None else [*self._end_pinned(state, reason), *self._elsewhere(state, now)]
                )
            case e.RouteRetired(epoch):
                return self._retire(epoch)
            case e.RouteDropped(epoch, reason):
                return self._drop(epoch, reason)
            case e.RouteStandsDown(epoch, beside, reason) if self.routes.idles(epoch):
                # Whoever asks for it learns of a takeover later than it happens.
                return [said for each in (epoch, *beside) for said in self._drop(each, reason)]
            case e.Closing():
                self._closing = True
            case e.Stopped():
                self._closing = True
                self.durable.stop()
                # A retired route goes with its last request.
                left = list(self.routes.by_epoch.values())
                return [
                    said
                    for state in left
                    for said in self._end_all(state, "not-ready", "the dispatcher is shutting down")
                ]
        return []


def _outputs(state: RouteState, item: Item, wanted: tuple[str, ...]) -> Returned | str:
    """What a result becomes, or what is wrong with it; remembered where all outputs are wanted."""
    route = state.route
    held = {header.name: at for at, header in enumerate(item.tensors)}
    names = wanted or tuple(spec.name for spec in route.outputs)
    missing = [name for name in names if name not in held]
    if item.hop != route.hops or missing:
        what = f"without {missing[0]!r}" if missing else f"as hop {item.hop} of {route.hops}"
        return f"the last stage of model {route.model!r} returned a result {what}"
    places = tuple(held[name] for name in names)
    headers = tuple(item.tensors[place] for place in places)
    told = Returned(item.tensors, headers, places, sum(header.nbytes for header in headers))
    if not wanted:
        if len(state.returns) >= REMEMBERED:
            state.returns.clear()
        state.returns[id(item.tensors)] = told
    return told


def _told(failure: Failure) -> str:
    return f"{failure.message} (on device {failure.where!r})" if failure.where else failure.message
