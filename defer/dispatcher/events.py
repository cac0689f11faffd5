"""What the dispatcher's core is told (events) and what it asks for (instructions), as plain values.

Frames are opaque here: the core holds a reference to them, and never looks inside. What every request makes is a
`msgspec.Struct`, which takes a fraction of a frozen dataclass to make, and is nothing to the garbage collector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from defer.dispatcher.rollout import Split
from defer.dispatcher.store import Change, KeptAnswer
from node_agent.messages import Credit, Failure, Infer, Item, Rejection, Result, TensorSpec

Frames = Sequence[object]
"""The tensor frames of one message, in the order of its header."""


HERE = b"@here"
"""Stands for this process where a client's routing id would; known by identity, so that no client can pass for it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the dispatcher holds at most.

    Attributes:
        requests: Accepted and unanswered requests of one route.
        nbytes: Input bytes of all accepted and unanswered requests, in bytes; a single request above it is
            refused as too large.
        answers: Answers kept for clients that ask again.
        answer_bytes: Bytes of those answers.
        spent: Ids kept beyond those, of requests that do not run again although their answers are gone.
        unread: Answers kept for a client that does not read; beyond them the oldest is dropped.
        client_bytes: Their bytes.
        unread_bytes: Their bytes for all clients.
        longest_s: A request that names no deadline ends after this many seconds.
        routing_v: Seconds by which a request's own delay is weighed against the delay that it causes, where it may take
            several routes; None takes what suits the routes.
    """

    requests: int = 1024
    nbytes: int = 1 << 30
    answers: int = 1024
    answer_bytes: int = 64 << 20
    spent: int = 65_536
    unread: int = 1024
    client_bytes: int = 256 << 20
    unread_bytes: int = 1 << 30
    longest_s: float = 3600.0
    routing_v: float | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """A plan as the data path sees it.

    Attributes:
        model: Name that clients ask for.
        epoch: Number of this deployment; never used twice.
        inputs: The model's inputs.
        outputs: The model's outputs.
        link: Key of the connection to the first hop; several routes may share one.
        hops: Number of hops; what comes back carries this as its hop.
        devices: Every device that a request passes, relays included.
        codec: How the plan wants inputs to come.
        sample_every: Each so-manieth result is also handed out as `Sampled`; 0 for none.
        reference_of: Epoch of the route that this one is compared with; 0 for a route that clients use.
        last: Name of the peer that hands over the results.
        fraction: Part of the model's requests that the plan deals to this route; less than 1 where stages have
            replicas.
        latency_s: Predicted seconds of one request when nothing waits.
        typical_bytes: Input bytes of the request that was predicted; 0 where nobody knows.
        work: Predicted busy seconds per request of each device, link and shared medium, by name.
    """

    model: str
    epoch: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    link: str
    hops: int
    devices: tuple[str, ...]
    codec: str = "raw"
    sample_every: int = 0
    reference_of: int = 0
    last: str = ""
    fraction: float = 1.0
    latency_s: float = 0.0
    work: tuple[tuple[str, float], ...] = ()
    typical_bytes: int = 0


# ---------------------------------------------------------------------------------------------------- events


class InferArrived(msgspec.Struct, frozen=True, gc=False):
    """A client asks; `epoch` is set where the asker means one deployment (the canary of a new one).

    `kept`: it comes from the store, and nobody waits for it yet.
    """

    client: bytes
    infer: Infer
    frames: Frames
    epoch: int | None = None
    kept: bool = False


class ItemReturned(msgspec.Struct, frozen=True, gc=False):
    """The last hop handed over what it made of a request."""

    item: Item
    frames: Frames


@dataclass(frozen=True, slots=True)
class FailureReturned:
    """A request ended on the way."""

    failure: Failure


class CreditArrived(msgspec.Struct, frozen=True, gc=False):
    """The first hop behind `link` takes so many more items and bytes."""

    link: str
    credit: Credit


@dataclass(frozen=True, slots=True)
class LinkUp:
    """The peer behind `link` answered the greeting; earlier credits are void."""

    link: str


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The connection behind `link` is gone, perhaps for a moment."""

    link: str


@dataclass(frozen=True, slots=True)
class ResultsBroke:
    """The peer that hands over results has another connection: what was on the one before may be lost."""

    peer: str


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
class CancelArrived:
    """A client does not want the answer to its request any more."""

    client: bytes
    request: bytes


@dataclass(frozen=True, slots=True)
class ModelStuck:
    """No plan can hold the model on the devices that are left, says `reason`.

    New requests are refused until one of its routes is ready again; those that were accepted wait.
    """

    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class ModelAnnounced:
    """A model is on its way: until it is ready, asking for it is answered with `reason`."""

    model: str
    reason: str


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
class ModelForgotten:
    """Nobody may ask for this model any more."""

    model: str


@dataclass(frozen=True, slots=True)
class SplitSet:
    """A model's name without a version stands for this from now on."""

    split: Split


@dataclass(frozen=True, slots=True)
class SplitForgotten:
    """A model's name stands for nothing but a deployment of that name."""

    name: str


@dataclass(frozen=True, slots=True)
class RecallArrived:
    """A client asks for the answer to a request by its id."""

    client: bytes
    request: bytes


@dataclass(frozen=True, slots=True)
class Kept:
    """What a `Keep` asked for is in the store, or (with a problem) is not."""

    request: bytes
    what: Literal["request", "answer"]
    code: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Recalled:
    """What the store holds as the answer to a request."""

    client: bytes
    request: bytes
    answer: KeptAnswer | None


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


Event = (
    InferArrived
    | ItemReturned
    | FailureReturned
    | CreditArrived
    | LinkUp
    | LinkDown
    | ResultsBroke
    | DeviceLost
    | DeviceBack
    | DevicesQuiet
    | CancelArrived
    | ModelStuck
    | ModelAnnounced
    | RouteLoaded
    | RouteReady
    | RouteStands
    | RouteStandsDown
    | RouteVoid
    | RouteRetired
    | RouteDropped
    | ModelForgotten
    | SplitSet
    | SplitForgotten
    | RecallArrived
    | Kept
    | Recalled
    | Resumed
    | Closing
    | Stopped
    | Tick
)

# ---------------------------------------------------------------------------------------------- instructions


class SendItem(msgspec.Struct, frozen=True, gc=False):
    """Send a request to the first hop behind `link`."""

    link: str
    item: Item
    frames: Frames


class Deliver(msgspec.Struct, frozen=True, gc=False):
    """Answer a client with a result."""

    client: bytes
    result: Result
    frames: Frames


@dataclass(frozen=True, slots=True)
class Reject:
    """Answer a client with an error."""

    client: bytes
    rejection: Rejection


@dataclass(frozen=True, slots=True)
class Drained:
    """Nothing is in flight on a retired route: it may be unloaded."""

    epoch: int


@dataclass(frozen=True, slots=True)
class CancelItems:
    """Nobody waits for these requests any more, which were sent over `link`: the first hop is told."""

    link: str
    epoch: int
    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TookOver:
    """A route that stood by serves its model from now on, with those beside it."""

    model: str
    epoch: int


@dataclass(frozen=True, slots=True)
class CutLink:
    """The peer behind `link` breaks the rules: close the connection and open another."""

    link: str
    reason: str


@dataclass(frozen=True, slots=True)
class Sampled:
    """A client's request and its result, to be compared with what the route's reference gives."""

    epoch: int
    infer: Infer
    frames: Frames
    result: Result
    outputs: Frames


@dataclass(frozen=True, slots=True)
class Keep:
    """Write something about a durable request to the store; `Kept` follows."""

    request: bytes
    what: Literal["request", "answer"]
    build: Callable[[], Sequence[Change]]


@dataclass(frozen=True, slots=True)
class Recall:
    """Look the answer to a request up in the store; `Recalled` follows."""

    client: bytes
    request: bytes


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Tell a client that its durable request is in the store."""

    client: bytes
    request: bytes


Instruction = (
    SendItem
    | Deliver
    | Reject
    | Drained
    | CutLink
    | CancelItems
    | TookOver
    | Sampled
    | Keep
    | Recall
    | Acknowledge
)
