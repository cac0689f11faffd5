"""What a plan is: stages, the transfers between them, and what they are predicted to take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Stage:
    """Blocks `[start, stop)` run on one device."""

    device: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Transfer:
    """The tensors of one boundary on their way from holder to next holder.

    Attributes:
        boundary: 0 … number of blocks.
        path: devices from holder to next holder; those between only relay. One device: nothing moves.
        codec: encoded once at `path[0]`, decoded once at `path[-1]`; meaningless when nothing moves.
    """

    boundary: int
    path: tuple[str, ...]
    codec: str = "raw"


@dataclass(frozen=True, slots=True)
class Route:
    """`len(stages) + 1` transfers: source → first stage, …, last stage → sink."""

    stages: tuple[Stage, ...]
    transfers: tuple[Transfer, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one route is predicted to take, per request.

    Attributes:
        latency: seconds from source to sink for one request alone (waits of the problem's load included).
        period: seconds between requests when the pipeline is full: the largest of the three load tables.
        cost: money. energy: joules. error: sum over the transfers' codecs.
        devices: busy seconds per device, divided by the share of it that is free.
        links: the same per link, media: the same per shared medium.
        memory: bytes per device.
        bottleneck: the entry that sets the period: `device NAME`, `link A -> B` or `medium NAME`.
    """

    latency: float
    period: float
    cost: float
    energy: float
    error: float
    devices: Mapping[str, float]
    links: Mapping[tuple[str, str], float]
    media: Mapping[str, float]
    memory: Mapping[str, int]
    bottleneck: str


@dataclass(frozen=True, slots=True)
class Term:
    """One addend of the latency.

    Attributes:
        kind: compute, overhead, wait, propagation, transmission, encode, decode or encrypt.
        where: `NAME` or `A -> B`, as a person reads it.
        seconds: of this addend; all terms of a route add up to its latency.
        bytes: that move, or 0.
        detail: blocks, boundary or codec.
    """

    kind: str
    where: str
    seconds: float
    bytes: int = 0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Share:
    """A part of the requests and its route; replicas of a stage are routes that differ in that stage."""

    fraction: float
    route: Route


@dataclass(frozen=True, slots=True)
class Solution:
    """The plan found and how good it is known to be.

    Attributes:
        route: the plan (with replicas: the route with the largest share).
        objective: name of what was minimised.
        value: its value (seconds, money, joules or the weighted sum).
        bound: no plan can be better than this; equals `value` when `optimal`.
        optimal: proved within the solver's relative tolerance of 1e-9.
        latency, period, cost, energy, error: all predictions of the plan, whichever was minimised.
        shares: one entry per route that requests are dealt to, fractions adding up to 1.
    """

    route: Route
    objective: str
    value: float
    bound: float
    optimal: bool
    latency: float
    period: float
    cost: float = 0.0
    energy: float = 0.0
    error: float = 0.0
    shares: tuple[Share, ...] = field(default=())
