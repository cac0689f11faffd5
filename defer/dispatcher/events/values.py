"""What the dispatcher's core works with: what it holds at most, and a plan as requests pass it.

Frames are opaque here: the core holds a reference to them, and never looks inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from node_agent.messages import TensorSpec

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
