"""What the dispatcher's core asks for; `defer.dispatcher.shell` does it.

What every request makes is a `msgspec.Struct`, as in `traffic`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from defer.dispatcher.events.values import Frames
from defer.dispatcher.store import Change
from node_agent.messages import Infer, Item, Rejection, Result


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
