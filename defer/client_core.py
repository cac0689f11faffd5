"""What a client of the dispatcher does with its requests: events in, instructions out, no socket or clock.

A request keeps its 16-byte id until it is answered. When the connection breaks it is sent again under the
same id as soon as there is a new one; the dispatcher never runs it twice.

    Submit ──connected──▶ sent ──Result──▶ Resolve
       │                   │ ▲
       └─ waits for the ───┘ └── connection back, or (patient) after a pause when it was overloaded
          connection             Rejection, deadline ──▶ Fail
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import numpy as np
import numpy.typing as npt

from defer.api import ModelInfo
from defer.errors import WrongInput
from defer.signature import input_problem, output_problem, specs_text
from node_agent.messages import NO_DEADLINE, Infer, Recall, Rejection, Result, TensorHeader

Array = npt.NDArray[np.generic]
Inputs = Mapping[str, npt.ArrayLike] | npt.ArrayLike
"""Arrays by input name, or one array for a model with one input."""

Outputs = dict[str, Array]
"""Arrays by output name."""

CLIENT = "@client"
"""What a client calls itself in its greeting; no device may be called so."""

GRACE_S = 0.25
"""The dispatcher's own answer to a passed deadline says more than ours: we wait this much longer for it."""

BRIEF_S = 0.5
"""A request that had less than this to connect says nothing about whether a dispatcher is there."""

PAUSE_S = 0.02
PAUSE_LIMIT_S = 1.0
"""First and longest pause before a patient request is sent again to an overloaded dispatcher."""

_S = 1_000_000_000


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


class _Pending(msgspec.Struct, gc=False):
    submit: Submit
    submitted: float
    tries: int = 0
    again_at: float = math.inf


class ClientCore:
    """The client's decisions.

    Args:
        address: The dispatcher's, for messages.
        absence_s: Longest that a request waits for a connection, its own deadline aside.
    """

    def __init__(self, address: str, absence_s: float = math.inf) -> None:
        self.address = address
        self._absence_s = absence_s
        self._gone_at = -math.inf  # since when there is no connection
        self.connected = False
        self.late = 0
        self._ever = False
        self._wake = math.inf
        self._pending: dict[bytes, _Pending] = {}
        self._paused: dict[bytes, None] = {}

    @property
    def unanswered(self) -> int:
        """Requests under way."""
        return len(self._pending)

    @property
    def owed_since(self) -> float:
        """When the oldest request that has no answer was made; infinity where there is none."""
        return next((pending.submitted for pending in self._pending.values()), math.inf)

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Take in one event at `now` (seconds, monotonic) and say what to do."""
        match event:
            case ResultArrived(result, frames):
                if self._pending.pop(result.request, None) is None:
                    self.late += 1
                    return []
                resolved = Resolve(result.request, result.tensors, frames)
                return [resolved, *self._resume(now)] if self._paused else [resolved]
            case Submit():
                pending = self._pending[event.request] = _Pending(event, now)
                self._wake = min(self._wake, self._limit(pending))
                return [self._send(pending, now)] if self.connected else []
            case RejectionArrived(rejection):
                return self._rejected(rejection, now)
            case GivenUp(request):
                return self._given_up(request, now)
            case Connected():
                self.connected = self._ever = True
                return [self._send(pending, now) for pending in self._pending.values()]
            case Disconnected():
                if self.connected:
                    self._gone_at = now
                self.connected = False
                self._wake = now  # without a connection the grace is void
                return []
            case Refused(code, message, hint):
                return self._fail_all(code, message, hint)
            case Closed():
                return self._fail_all("cancelled", "the client was closed before the answer came")
            case Tick():
                return self._tick(now)

    def next_wake(self) -> float:
        """When `Tick` is due next, perhaps with nothing to do; infinity when nothing waits."""
        return self._wake

    def _resume(self, now: float) -> list[Instruction]:
        """The dispatcher has room again, as one of ours has left it: the one that was paused first may try."""
        while self._paused and self.connected:
            request = next(iter(self._paused))
            del self._paused[request]
            if request in self._pending:
                return [self._send(self._pending[request], now)]
        return []

    def _send(self, pending: _Pending, now: float) -> SendInfer:
        submit = pending.submit
        self._paused.pop(submit.request, None)
        pending.again_at = math.inf
        if submit.recall:
            return SendInfer(Recall(submit.request), ())
        left = NO_DEADLINE if submit.deadline == math.inf else max(1, int((submit.deadline - now) * _S))
        return SendInfer(
            Infer(
                submit.request,
                submit.model,
                left,
                submit.tensors,
                submit.outputs,
                submit.trace,
                submit.durable,
                submit.priority,
            ),
            submit.frames,
        )

    def _rejected(self, rejection: Rejection, now: float) -> list[Instruction]:
        pending = self._pending.get(rejection.request)
        if pending is None:
            self.late += 1
            return []
        if rejection.code == "overloaded" and pending.submit.patient:
            pause = min(PAUSE_LIMIT_S, PAUSE_S * 2**pending.tries)
            pending.tries += 1
            pending.again_at = now + pause
            self._paused[rejection.request] = None
            self._wake = min(self._wake, pending.again_at)
            return []
        del self._pending[rejection.request]
        late = rejection.code == "deadline-exceeded"
        hint = _longer(pending.submit.deadline - pending.submitted) if late else ""
        return [Fail(rejection.request, rejection.code, rejection.message, hint)]

    def _given_up(self, request: bytes, now: float) -> list[Instruction]:
        pending = self._pending.pop(request, None)
        if pending is None:
            return []
        self._paused.pop(request, None)
        # What is to be kept until somebody asks for it, by this client or another, is not for this caller to end.
        kept = pending.submit.durable or pending.submit.recall
        told: list[Instruction] = [SendGiveUp(request)] if self.connected and not kept else []
        return [*told, *self._resume(now)]

    def _tick(self, now: float) -> list[Instruction]:
        out: list[Instruction] = []
        self._wake = math.inf
        for request, pending in list(self._pending.items()):
            limit = self._limit(pending)
            if now >= limit:
                del self._pending[request]
                out.append(self._overdue(request, pending, limit))
                continue
            if now >= pending.again_at and self.connected:
                out.append(self._send(pending, now))
            again = pending.again_at if self.connected else math.inf
            self._wake = min(self._wake, limit, again)
        return out

    def _limit(self, pending: _Pending) -> float:
        """When a request is given up as things are now."""
        deadline = pending.submit.deadline
        if self.connected:
            return deadline + GRACE_S
        return min(deadline, max(pending.submitted, self._gone_at) + self._absence_s)

    def _overdue(self, request: bytes, pending: _Pending, limit: float) -> Fail:
        took = max(0.0, min(limit, pending.submit.deadline) - pending.submitted)
        if not self._ever and took < BRIEF_S and limit >= pending.submit.deadline:
            return Fail(
                request,
                "deadline-exceeded",
                f"the time was up before the connection to the dispatcher at {self.address} stood",
                _longer(took),
            )
        if self.connected:
            return Fail(
                request,
                "deadline-exceeded",
                f"the dispatcher at {self.address} did not answer within {took:.3g} s",
                _longer(took),
            )
        what = "the connection was lost" if self._ever else "nobody answers there"
        return Fail(
            request,
            "dispatcher-unreachable",
            f"no dispatcher at {self.address} within {took:.3g} s: {what}",
            "start one with `defer serve`, or correct the address",
        )

    def _fail_all(self, code: str, message: str, hint: str = "") -> list[Instruction]:
        failed: list[Instruction] = [Fail(request, code, message, hint) for request in self._pending]
        self._pending.clear()
        self._paused.clear()
        return failed


# ------------------------------------------------------------------------------------------ before it is sent


def _longer(given: float) -> str:
    """What to do about a deadline that passed, with what the request was given, as far as that is known here."""
    advice = "`timeout` in Python and --timeout on the command line give a request longer"
    if not 0.005 <= given < math.inf:
        return advice
    # What the signature and the encoding took before has gone from it: with few digits it is what the caller said.
    told = f"{given:.2g}" if given < 1 else f"{round(given, 1):g}"
    return f"it was given {told} s; {advice}"


@dataclass(frozen=True, slots=True)
class _Given:
    name: str
    dtype: str
    shape: tuple[int, ...]


def as_arrays(inputs: Inputs, model: ModelInfo) -> dict[str, Array]:
    """The caller's inputs as contiguous arrays by name, checked against the model.

    A plain number or list takes the input's element type, an array must have it already.

    Raises:
        WrongInput: A name, element type or shape that the model does not take.
    """
    if not isinstance(inputs, Mapping):
        if len(model.inputs) != 1:
            raise WrongInput(
                f"model {model.name!r} has {len(model.inputs)} inputs, one array was given: "
                f"{specs_text(model.inputs)}",
                hint="give a mapping from input name to array",
            )
        inputs = {model.inputs[0].name: inputs}
    types = {spec.name: spec.dtype for spec in model.inputs}
    arrays = {str(name): _as_array(str(name), value, types.get(str(name))) for name, value in inputs.items()}
    given = [_Given(name, array.dtype.name, array.shape) for name, array in arrays.items()]
    problem = input_problem(model.inputs, given)
    if problem is not None:
        raise WrongInput(f"model {model.name!r}: {problem}")
    return {spec.name: arrays[spec.name] for spec in model.inputs}


def copied(inputs: Inputs) -> Inputs:
    """The inputs as they are now, whatever the caller does to them later."""
    if isinstance(inputs, Mapping):
        return {name: deepcopy(value) for name, value in inputs.items()}
    return deepcopy(inputs)


def check_outputs(outputs: Sequence[str], model: ModelInfo) -> tuple[str, ...]:
    """The wanted outputs, sure to exist.

    Raises:
        WrongInput: The model has no such output.
    """
    problem = output_problem(model.outputs, outputs)
    if problem is not None:
        raise WrongInput(f"model {model.name!r}: {problem}")
    return tuple(outputs)


def fill(into: Mapping[str, Array], outputs: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs, those that the caller made room for in the caller's arrays.

    Raises:
        WrongInput: An array has another element type or shape than the output that it is for, or there is none.
    """
    for name, room in into.items():
        array = outputs.get(name)
        if array is None:
            raise WrongInput(f"there is room for output {name!r}, which is not among {', '.join(outputs)}")
        if (room.dtype, room.shape) != (array.dtype, array.shape):
            raise WrongInput(
                f"output {name!r} is {array.dtype.name}{list(array.shape)}, the array for it is "
                f"{room.dtype.name}{list(room.shape)}"
            )
        np.copyto(room, array)
    return {name: into.get(name, array) for name, array in outputs.items()}


def _as_array(name: str, value: npt.ArrayLike, dtype: str | None) -> Array:
    if not isinstance(value, np.ndarray | np.generic) and hasattr(value, "__dlpack__"):
        try:
            return np.ascontiguousarray(np.from_dlpack(cast(Any, value)))
        except (BufferError, RuntimeError, TypeError, ValueError) as exc:
            raise WrongInput(
                f"input {name!r} cannot be read through DLPack: {exc}",
                hint="give a tensor in this machine's memory, of a type that NumPy has",
            ) from exc
    if isinstance(value, np.ndarray) or dtype is None or dtype == "string":
        array: Array = np.asarray(value)
    else:
        try:
            array = np.asarray(value, dtype=None if hasattr(value, "dtype") else np.dtype(dtype))
        except (TypeError, ValueError) as exc:
            raise WrongInput(f"input {name!r} cannot be made an array of {dtype}: {exc}") from exc
    if array.dtype.hasobject and dtype != "string":
        raise WrongInput(f"input {name!r} holds Python objects, expected {dtype or 'numbers'}")
    return np.ascontiguousarray(array) if array.ndim else array
