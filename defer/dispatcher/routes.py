"""The routes that a dispatcher serves on, by epoch and by model name, and their states. Pure.

A model whose stages have replicas is served on several routes at once. Each request goes to the route on which drift
plus penalty is least (`backlog`): its own delay, and the delay that it causes on what other requests need as well, be
they for this model or another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from defer.dispatcher.backlog import Backlog
from defer.dispatcher.counters import Totals, Traffic
from defer.dispatcher.events import Route
from node_agent.messages import TensorHeader

State = Literal["loaded", "ready", "lost", "retired"]


REMEMBERED = 64
"""Headers that a route knows by identity, at most."""


@dataclass(frozen=True, slots=True)
class Returned:
    """What a result that came with certain headers becomes.

    Attributes:
        came: Those headers.
        headers: Of the outputs.
        places: Which frame is whose.
        nbytes: Of all outputs.
    """

    came: tuple[TensorHeader, ...]
    headers: tuple[TensorHeader, ...]
    places: tuple[int, ...]
    nbytes: int


@dataclass(slots=True)
class RouteState:
    """A route and what is under way on it.

    Attributes:
        route: The plan as the data path sees it.
        state: `loaded` (only for requests that name its epoch), `ready`, `lost` (a device is out of reach) or
            `retired`.
        reason: Why it is lost.
        waiting: Numbers of accepted requests that wait for credit, the oldest first.
        sent: Numbers of requests that are on their way.
        lost: Devices of the route that are out of reach.
        gone: Those of them whose process is new, so that it does not hold the route whenever it answers.
        beside: Routes that take over with it, while it stands by.
        value: What its plan comes to, by the objective that it was made for, while it stands by.
        heir: The route that goes on with its counts when it is gone; 0 for none.
        traffic: Its counts.
        fits: Headers of inputs that were found to fit, by identity: those of one model are one object over and over.
        returns: What is to be made of results with these headers, by identity, where a request wants all outputs.
    """

    route: Route
    state: State = "loaded"
    reason: str = ""
    waiting: deque[int] = field(default_factory=deque)
    sent: set[int] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    beside: tuple[int, ...] = ()
    value: float = 0.0
    heir: int = 0
    traffic: Traffic = field(default_factory=Traffic)
    fits: dict[int, tuple[TensorHeader, ...]] = field(default_factory=dict)
    returns: dict[int, Returned] = field(default_factory=dict)

    @property
    def busy(self) -> int:
        """Requests accepted and unanswered."""
        return len(self.waiting) + len(self.sent)


NEARLY = 1.02
"""Routes whose scores differ by less than this are taken by turns; predictions are not more exact than that."""


NOBODY = ""
"""In the place of a lost device: it never comes back."""


class Routes:
    """Every route that has been loaded and is not gone, and which of them serves each model.

    Args:
        v: Seconds by which a request's own delay is weighed against the delay that it causes later ones; None takes what
            suits the routes (`Backlog.usual_v`).
    """

    def __init__(self, v: float | None = None) -> None:
        self._v = v
        self._backlog = Backlog()
        self.by_epoch: dict[int, RouteState] = {}
        self.serving: dict[str, tuple[int, ...]] = {}
        self.totals: dict[str, Totals] = {}
        self.announced: dict[str, str] = {}
        self.stuck: dict[str, str] = {}
        self.standing: dict[str, tuple[int, ...]] = {}
        self._turns: dict[str, deque[int]] = {}

    def __getitem__(self, epoch: int) -> RouteState:
        return self.by_epoch[epoch]

    def get(self, epoch: int) -> RouteState | None:
        """The route with this epoch, or None when it is gone."""
        return self.by_epoch.get(epoch)

    def find(self, model: str, now: float) -> RouteState | tuple[str, str]:
        """The route that a request for `model` takes, or the code and sentence that refuse it.

        Args:
            model: Its name; empty where only one is known.
            now: Seconds on the core's clock.
        """
        serving = self.serving.get(model)
        if serving is not None and len(serving) == 1 and model not in self.stuck:
            return self.by_epoch[serving[0]]
        names = self.serving.keys() | self.announced.keys()
        if not names:
            return "not-ready", "no model is deployed"
        if not model:
            if len(names) > 1:
                return "unknown-model", f"say which model: {', '.join(sorted(names))}"
            (model,) = names
        if model not in names:
            return (
                "unknown-model",
                f"no model {model!r:.80} is deployed; deployed: {', '.join(sorted(names))}",
            )
        if model not in self.serving:
            return "not-ready", f"model {model!r} is not ready: {self.announced[model]}"
        if model in self.stuck:
            return "not-ready", f"model {model!r} is not ready: {self.stuck[model]}"
        return self.room(model, now)

    def room(self, model: str, now: float) -> RouteState:
        """The route that a request takes; while none is ready, one where it waits until one is.

        Args:
            model: A model that is served.
            now: Seconds on the core's clock.
        """
        lost = (self.by_epoch[epoch] for epoch in self.serving[model])
        return self.best(model, now) or min(lost, key=lambda state: state.busy)

    def ready_for(self, model: str) -> list[RouteState]:
        """The routes that take a model's requests now."""
        states = map(self.by_epoch.__getitem__, self.serving.get(model, ()))
        return [state for state in states if state.state == "ready"]

    def lost_of(self, model: str) -> list[int]:
        """Epochs that serve a model and are lost."""
        return [epoch for epoch in self.serving.get(model, ()) if self.by_epoch[epoch].state == "lost"]

    def lost_with_work(self, model: str) -> list[RouteState]:
        """Lost routes that serve a model, and those that have served it and wait for what is under way."""
        return [
            state
            for state in self.by_epoch.values()
            if state.route.model == model
            and state.lost
            and (state.state == "lost" or (state.state == "retired" and state.busy))
        ]

    def best(self, model: str, now: float) -> RouteState | None:
        """The ready route of a model that a request should take; None where none is ready."""
        ready = self.ready_for(model)
        if len(ready) < 2:
            return ready[0] if ready else None
        waits = self._backlog.waits(now)
        epochs = [state.route.epoch for state in ready]
        v = self._backlog.usual_v(epochs) if self._v is None else self._v
        scores = [self._backlog.score(epoch, waits, v) for epoch in epochs]
        least = NEARLY * min(scores)
        equal = (state for state, score in zip(ready, scores, strict=True) if score <= least)
        return min(equal, key=lambda state: state.traffic.accepted / state.route.fraction)

    def accept(self, state: RouteState, number: int, now: float) -> None:
        """A request waits for this route from now on."""
        state.waiting.append(number)
        state.traffic.accepted += 1
        if len(self.by_epoch) > 1:  # where there is nothing to choose from, nothing needs to be weighed
            self._backlog.accepted(state.route.epoch, number, now)

    def leave(self, state: RouteState, number: int, *, sent: bool) -> None:
        """A request is not on this route any more: it was answered, or another one takes it."""
        if sent:
            state.sent.discard(number)
        else:
            state.waiting.remove(number)
        self._backlog.ended(state.route.epoch, number)

    def through(self, device: str) -> list[RouteState]:
        """The routes that pass a device."""
        return [state for state in self.by_epoch.values() if device in state.route.devices]

    def turns(self, link: str) -> deque[int]:
        """Epochs of the routes that start on a link, in the order of their turns; rotated by the caller."""
        return self._turns.get(link, deque())

    def on_link(self, link: str) -> Iterator[RouteState]:
        """The routes that start on a link."""
        return (self.by_epoch[epoch] for epoch in self.turns(link))

    def load(self, route: Route) -> None:
        """Add a route; only requests that name its epoch take it until it is ready."""
        # A reference is no client's: what runs on it is not the model's traffic.
        totals = Totals() if route.reference_of else self.totals.setdefault(route.model, Totals())
        first = route.inputs[0].shape if route.inputs else ()
        batched = bool(first) and isinstance(first[0], str)
        self.by_epoch[route.epoch] = RouteState(route, traffic=Traffic(totals, batched))
        self._backlog.open(route.epoch, route.latency_s, route.work)
        self._turns.setdefault(route.link, deque()).append(route.epoch)

    def ready(self, epochs: tuple[int, ...]) -> tuple[int, ...]:
        """Let routes serve their model; returns the epochs of the routes that served it before."""
        model = self.by_epoch[epochs[0]].route.model
        before = self.serving.get(model, ())
        self.serving[model] = epochs
        self.announced.pop(model, None)
        self.stuck.pop(model, None)
        for epoch in epochs:
            self._stand_down(model, epoch)
        for state in map(self.by_epoch.__getitem__, epochs):
            state.state = "lost" if state.lost else "ready"
        return tuple(epoch for epoch in before if epoch not in epochs)

    def stand(self, epoch: int, beside: tuple[int, ...] = (), value: float = 0.0) -> None:
        """Let loaded routes stand by for their model."""
        state = self.by_epoch[epoch]
        state.beside, state.value = beside, value
        self.standing[state.route.model] = (*self.standing.get(state.route.model, ()), epoch)

    def stand_in(self, model: str) -> tuple[int, ...] | None:
        """The best routes that stand by, all of whose devices are in reach.

        A plan made for the loss of some devices is the best of all that do without them, so the least value is the one
        that was made for what is lost now, or is as good.
        """
        able = [epoch for epoch in self.standing.get(model, ()) if self.able(epoch)]
        if not able:
            return None
        best = min(able, key=lambda epoch: self.by_epoch[epoch].value)
        return best, *self.by_epoch[best].beside

    def idles(self, epoch: int) -> bool:
        """Whether a route is there that has never served its model."""
        state = self.by_epoch.get(epoch)
        return state is not None and state.state == "loaded"

    def able(self, epoch: int) -> bool:
        """Whether a route that stands by, and those beside it, could serve now."""
        legs = [self.by_epoch.get(each) for each in (epoch, *self.by_epoch[epoch].beside)]
        return all(leg is not None and leg.state == "loaded" and not leg.lost for leg in legs)

    def whole(self, model: str) -> frozenset[int]:
        """Epochs that stand by for a model and may take over, now or when a device that is out of reach answers."""
        return frozenset(
            epoch
            for epoch in self.standing.get(model, ())
            if all(
                (leg := self.by_epoch.get(each)) is not None and not leg.gone and NOBODY not in leg.lost
                for each in (epoch, *self.by_epoch[epoch].beside)
            )
        )

    def idle(self) -> frozenset[int]:
        """Epochs of all that stands by."""
        firsts = (epoch for epochs in self.standing.values() for epoch in epochs)
        return frozenset(each for epoch in firsts for each in (epoch, *self.by_epoch[epoch].beside))

    def dismiss(self, model: str) -> tuple[int, ...]:
        """Nothing stands by for a model any more; the epochs that did."""
        first = self.standing.pop(model, ())
        return tuple(each for epoch in first for each in (epoch, *self.by_epoch[epoch].beside))

    def retire(self, epoch: int) -> RouteState | None:
        """Let a route serve no more; what is in flight on it goes on."""
        state = self.by_epoch.get(epoch)
        if state is None:
            return None
        model = state.route.model
        if epoch in self.serving.get(model, ()):
            self.serving[model] = tuple(other for other in self.serving[model] if other != epoch)
            if not self.serving[model]:
                del self.serving[model]
                self.stuck.pop(model, None)
        self._stand_down(model, epoch)
        state.state = "retired"
        return state

    def remove(self, epoch: int) -> None:
        """Forget a route on which nothing is in flight."""
        state = self.by_epoch.pop(epoch)
        route, heir = state.route, self.by_epoch.get(state.heir)
        if heir is not None:
            heir.traffic.inherit(state.traffic)
        for other in self.by_epoch.values():
            if other.heir == epoch:  # it drains for longer than what took its place has lived
                other.heir = state.heir
        self._backlog.close(epoch)
        turns = self._turns[route.link]
        turns.remove(epoch)
        if not turns:
            del self._turns[route.link]

    def _stand_down(self, model: str, epoch: int) -> None:
        left = tuple(other for other in self.standing.pop(model, ()) if other != epoch)
        if left:
            self.standing[model] = left

    def void(self, epoch: int, reason: str) -> RouteState | None:
        """The devices of a route do not hold it any more."""
        state = self.by_epoch.get(epoch)
        if state is not None:
            state.lost.add(NOBODY)
            state.reason = reason
            if state.state == "ready":
                state.state = "lost"
            self._stand_down(state.route.model, epoch)
        return state

    def lose(self, device: str, reason: str, *, restarted: bool = False) -> list[RouteState]:
        """A device is out of reach, or another process answers there; returns the routes that passed it."""
        hit = self.through(device)
        for state in hit:
            state.lost.add(device)
            if restarted:
                state.gone.add(device)
            state.reason = f"device {device!r} is lost ({reason})"
            if state.state == "ready":
                state.state = "lost"
        return hit

    def regain(self, device: str) -> None:
        """A lost device is back with all that this process of it held."""
        for state in self.by_epoch.values():
            if device in state.gone:
                continue
            state.lost.discard(device)
            if state.state == "lost" and not state.lost:
                state.state, state.reason = "ready", ""
                self.stuck.pop(state.route.model, None)
