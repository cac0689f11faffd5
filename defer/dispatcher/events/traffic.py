"""Events of requests and of the connections that they pass.

What every request makes is a `msgspec.Struct`, which takes a fraction of a frozen dataclass to make, and is nothing
to the garbage collector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from defer.dispatcher.events.values import Frames
from defer.dispatcher.store import KeptAnswer
from node_agent.messages import Credit, Failure, Infer, Item


class InferArrived(msgspec.Struct, frozen=True, gc=False):
    """A client asks; `epoch` is set where the asker means one deployment (the canary of a new one).

    `kept`: it comes from the store, and nobody waits for it yet.
    """

    client: bytes
    infer: Infer
    frames: Frames
    epoch: int | None = None
    kept: bool = False


@dataclass(frozen=True, slots=True)
class RecallArrived:
    """A client asks for the answer to a request by its id."""

    client: bytes
    request: bytes


@dataclass(frozen=True, slots=True)
class CancelArrived:
    """A client does not want the answer to its request any more."""

    client: bytes
    request: bytes


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
