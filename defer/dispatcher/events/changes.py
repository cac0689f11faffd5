"""Events that change what may run: devices that go and come, models and their routes, the dispatcher's own life."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from defer.dispatcher.events.traffic import InferArrived
from defer.dispatcher.events.values import Route
from defer.dispatcher.rollout import Split


@dataclass(frozen=True, slots=True)
class DeviceLost:
    """A device is dead or out of reach: what was on it will not come back.

    `restarted`: its process is new, and no route that was loaded on the old one is ever ready again.
    """

    device: str
    reason: str
    restarted: bool = False


@dataclass(frozen=True, slots=True)
class DeviceBack:
    """A lost device answers again, with everything it had loaded (the same process)."""

    device: str


@dataclass(frozen=True, slots=True)
class DevicesQuiet:
    """Devices that have nothing to do, each with the time since when, on the clock of `handle`."""

    since: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ModelAnnounced:
    """A model is on its way: until it is ready, asking for it is answered with `reason`."""

    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class ModelStuck:
    """No plan can hold the model on the devices that are left, says `reason`.

    New requests are refused until one of its routes is ready again; those that were accepted wait.
    """

    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class ModelForgotten:
    """Nobody may ask for this model any more."""

    model: str


@dataclass(frozen=True, slots=True)
class RouteLoaded:
    """Every hop of the route is loaded; only requests that name its epoch run on it."""

    route: Route


@dataclass(frozen=True, slots=True)
class RouteReady:
    """From now on the requests for the route's model run on it and on those `beside` it; older ones drain.

    Those that stand by drain too, since they may hold another model, unless it is `the_same` that is served.
    """

    epoch: int
    beside: tuple[int, ...] = ()
    the_same: bool = False


@dataclass(frozen=True, slots=True)
class RouteStands:
    """A loaded route stands by, with those `beside` it: they take over as soon as no route of their model is ready.

    Attributes:
        epoch: Which.
        beside: The other routes of its plan, where stages have replicas.
        value: What its plan comes to, in the unit of the objective: of those that can take over, the least does.
    """

    epoch: int
    beside: tuple[int, ...] = ()
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class RouteStandsDown:
    """A route that stands by, and those `beside` it, are not needed any more; ignored where it has taken over."""

    epoch: int
    beside: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class RouteVoid:
    """The agents do not hold this route any more: it is not ready again, whichever device comes back."""

    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class RouteRetired:
    """Take no more requests on this route; `Drained` follows when its last one is answered."""

    epoch: int


@dataclass(frozen=True, slots=True)
class RouteDropped:
    """The route is no more: what is in flight on it ends with an error that gives `reason`."""

    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class SplitSet:
    """A model's name without a version stands for this from now on."""

    split: Split


@dataclass(frozen=True, slots=True)
class SplitForgotten:
    """A model's name stands for nothing but a deployment of that name."""

    name: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """The models of an earlier process are back: its unanswered durable requests run, then what has come meanwhile."""

    requests: tuple[InferArrived, ...] = ()


@dataclass(frozen=True, slots=True)
class Closing:
    """The dispatcher is about to stop: new requests are refused, accepted ones still end."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """The dispatcher stops now: what is accepted and unanswered ends with an error."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""
