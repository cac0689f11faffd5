"""What the client's core is told (events) and what it asks for (instructions), as plain values.

What every request makes is a `msgspec.Struct`, which takes a fraction of a frozen dataclass to make, and is nothing
to the garbage collector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from node_agent.messages import Infer, Recall, Rejection, Result, TensorHeader


class Submit(msgspec.Struct, frozen=True, gc=False):
    """A new request.

    Attributes:
        request: Its id, 16 random bytes.
        model: Name of the model; empty where there is only one.
        outputs: Which outputs are wanted; empty for all.
        tensors: Headers of its inputs.
        frames: Their frames.
        deadline: When it must be answered, on the clock of `handle`; infinity for never.
        patient: Try again where the dispatcher is overloaded.
        trace: W3C trace context, empty where the request is not traced.
        durable: Have the dispatcher keep the request and its answer in its store.
        recall: Ask for the answer to a request that was sent before, by its id alone.
        priority: Of the requests that wait, those with the smallest go first, from 1 on; 0 for the usual one.
        timeout: What its caller gave it, s, to be told where that was too short; infinity where nobody knows.
    """

    request: bytes
    model: str
    outputs: tuple[str, ...]
    tensors: tuple[TensorHeader, ...]
    frames: Sequence[object]
    deadline: float
    patient: bool = False
    trace: str = ""
    durable: bool = False
    recall: bool = False
    priority: int = 0
    timeout: float = math.inf


@dataclass(frozen=True, slots=True)
class Connected:
    """The dispatcher answered the greeting."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection broke."""


class ResultArrived(msgspec.Struct, frozen=True, gc=False):
    """A result with its frames."""

    result: Result
    frames: Sequence[object]


@dataclass(frozen=True, slots=True)
class RejectionArrived:
    """An error in place of a result."""

    rejection: Rejection


@dataclass(frozen=True, slots=True)
class Refused:
    """The dispatcher will not talk to us: every request ends."""

    code: str
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Closed:
    """The client is closed: every request ends."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class GivenUp:
    """Nobody waits for a request any more."""

    request: bytes


Event = (
    Submit | GivenUp | Connected | Disconnected | ResultArrived | RejectionArrived | Refused | Closed | Tick
)


class SendInfer(msgspec.Struct, frozen=True, gc=False):
    """Send a request."""

    infer: Infer | Recall
    frames: Sequence[object]


class Resolve(msgspec.Struct, frozen=True, gc=False):
    """A request has its result."""

    request: bytes
    tensors: tuple[TensorHeader, ...]
    frames: Sequence[object]


@dataclass(frozen=True, slots=True)
class Fail:
    """A request ended without a result."""

    request: bytes
    code: str
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class SendGiveUp:
    """Tell the dispatcher that a request need not be answered."""

    request: bytes


Instruction = SendInfer | SendGiveUp | Resolve | Fail
