"""The routes that a dispatcher serves on, by epoch and by model name, and their states. Pure.

A model whose stages have replicas is served on several routes at once. Each request goes to the route with the fewest
unanswered requests for its part of them, and of equals to the one that is behind its part of all; so the parts come out
as planned, and a replica that is slower than predicted gets fewer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from defer.dispatcher.counters import Traffic
from defer.dispatcher.events import Route

State = Literal["loaded", "ready", "lost", "retired"]


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
        traffic: Its counts.
    """

    route: Route
    state: State = "loaded"
    reason: str = ""
    waiting: deque[int] = field(default_factory=deque)
    sent: set[int] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    traffic: Traffic = field(default_factory=Traffic)

    @property
    def busy(self) -> int:
        """Requests accepted and unanswered."""
        return len(self.waiting) + len(self.sent)


class Routes:
    """Every route that has been loaded and is not gone, and which of them serves each model."""

    def __init__(self) -> None:
        self.by_epoch: dict[int, RouteState] = {}
        self.serving: dict[str, tuple[int, ...]] = {}
        self.announced: dict[str, str] = {}
        self._turns: dict[str, deque[int]] = {}

    def __getitem__(self, epoch: int) -> RouteState:
        return self.by_epoch[epoch]

    def get(self, epoch: int) -> RouteState | None:
        """The route with this epoch, or None when it is gone."""
        return self.by_epoch.get(epoch)

    def find(self, model: str) -> RouteState | tuple[str, str]:
        """The route that requests for `model` take now, or the code and sentence that refuse them.

        Args:
            model: Its name; empty where only one is known.
        """
        names = self.serving.keys() | self.announced.keys()
        if not names:
            return "not-ready", "no model is deployed"
        if not model:
            if len(names) > 1:
                return "unknown-model", f"say which model: {', '.join(sorted(names))}"
            (model,) = names
        if model not in names:
            return "unknown-model", f"no model {model!r} is deployed; deployed: {', '.join(sorted(names))}"
        if model not in self.serving:
            return "not-ready", f"model {model!r} is not ready: {self.announced[model]}"
        state = self.least_loaded(model)
        if state is None:
            reason = self.announced.get(model) or self.by_epoch[self.serving[model][0]].reason
            return "not-ready", f"model {model!r} is not ready: {reason}"
        return state

    def least_loaded(self, model: str) -> RouteState | None:
        """The ready route of a model that a request would burden least; None where none is ready."""
        ready = [
            state for epoch in self.serving.get(model, ()) if (state := self.by_epoch[epoch]).state == "ready"
        ]
        # Where nothing waits anywhere, the one that is behind its part of all requests.
        return min(
            ready,
            key=lambda s: (s.busy / s.route.fraction, s.traffic.accepted / s.route.fraction),
            default=None,
        )

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
        self.by_epoch[route.epoch] = RouteState(route)
        self._turns.setdefault(route.link, deque()).append(route.epoch)

    def ready(self, epochs: tuple[int, ...]) -> tuple[int, ...]:
        """Let routes serve their model; returns the epochs of the routes that served it before."""
        model = self.by_epoch[epochs[0]].route.model
        before = self.serving.get(model, ())
        self.serving[model] = epochs
        self.announced.pop(model, None)
        for state in map(self.by_epoch.__getitem__, epochs):
            state.state = "lost" if state.lost else "ready"
        return tuple(epoch for epoch in before if epoch not in epochs)

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
        state.state = "retired"
        return state

    def remove(self, epoch: int) -> None:
        """Forget a route on which nothing is in flight."""
        route = self.by_epoch.pop(epoch).route
        turns = self._turns[route.link]
        turns.remove(epoch)
        if not turns:
            del self._turns[route.link]

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
