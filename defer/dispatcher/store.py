"""What a dispatcher must still know after a crash, as plain values, and what keeps it.

Every change is a value, and a store takes several of them at once: all or none, and for good when `apply` returns. So
one store is a file (`store_sqlite`), another one memory (`MemoryStore`, for tests), and a third a cluster of servers.
Times are wall-clock seconds since 1970: a monotonic clock begins anew with the machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from defer.dispatcher.rollout import Split
from node_agent.messages import HopSpec, Infer, Rejection, Result, TensorSpec


class KeptRoute(msgspec.Struct, frozen=True):
    """A route that agents hold: its number, its part of the requests, and what each device does on it."""

    epoch: int
    fraction: float
    hops: dict[str, tuple[HopSpec, ...]]


class KeptModel(msgspec.Struct, frozen=True):
    """A deployment, as much of it as loading it again takes.

    Attributes:
        name: Name that clients ask for.
        source: `serve` where the command line of the dispatcher asked for it, `deploy` where an admin did.
        digest: Of what was asked for; the same again needs no new plan.
        model: Path of its ONNX file.
        plan: The plan document, in JSON, that its routes are made from.
        profile: Its profile document in JSON; empty where it was planned elsewhere.
        objective: What its plan makes least.
        shapes: Input shapes that bind free dimensions.
        blocks: Most blocks to measure and plan with.
        budget: Its error budget in words; empty for none.
        calibration: Path of its calibration requests; empty for none.
        sample: Share of the requests that are compared with the lossless pipeline.
        inputs: The model's inputs.
        outputs: The model's outputs.
        warm_up: The inputs with every dimension bound.
        routes: Its routes; partitions in them are named by content.
        given: Whether its plan was brought by whoever asked for it.
        standby: What is prepared for the loss of a device; empty for the usual.
        asked: Digest of what the command line last asked for under this name; empty where it never did.
        at: When it was ordered, in seconds since 1970; 0 where that is not known.
        home: The plan that it is to follow, where `plan` only helps out while a device is lost; else empty.
        replicas: Whether several devices may share a stage's requests in a plan that is made.
    """

    name: str
    source: str
    digest: str
    model: str
    plan: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    warm_up: tuple[TensorSpec, ...]
    routes: tuple[KeptRoute, ...]
    profile: str = ""
    objective: str = "latency"
    shapes: dict[str, tuple[int, ...]] = {}
    blocks: int = 0
    budget: str = ""
    calibration: str = ""
    sample: float = 0.0
    given: bool = False
    standby: str = ""
    home: str = ""
    asked: str = ""
    at: float = 0.0
    replicas: bool = False


class KeptRequest(msgspec.Struct, frozen=True):
    """A durable request without an answer; `frames` is every tensor frame, one after the other."""

    infer: Infer
    frames: bytes
    deadline: float

    def split(self) -> tuple[memoryview, ...]:
        """The tensor frames by themselves."""
        return cut(self.frames, tuple(header.nbytes for header in self.infer.tensors))


class KeptAnswer(msgspec.Struct, frozen=True):
    """How a durable request ended, and when."""

    message: Result | Rejection
    frames: bytes
    at: float

    def split(self) -> tuple[memoryview, ...]:
        """The tensor frames by themselves."""
        if isinstance(self.message, Rejection):
            return ()
        return cut(self.frames, tuple(header.nbytes for header in self.message.tensors))


def cut(data: bytes, sizes: Sequence[int]) -> tuple[memoryview, ...]:
    """Pieces of `data` of these sizes, in order; copies nothing."""
    view, at, pieces = memoryview(data), 0, []
    for size in sizes:
        pieces.append(view[at : at + size])
        at += size
    return tuple(pieces)


# --------------------------------------------------------------------------------------------------- changes


class EpochBegun(msgspec.Struct, frozen=True):
    """A number was given, and these devices may hold what it stands for."""

    epoch: int
    devices: tuple[str, ...]


class EpochEnded(msgspec.Struct, frozen=True):
    """No agent holds the epoch any more."""

    epoch: int


class ModelKept(msgspec.Struct, frozen=True):
    """A model is served like this; replaces what was kept under its name."""

    model: KeptModel


class ModelDropped(msgspec.Struct, frozen=True):
    """A model is served no more."""

    name: str


class RequestKept(msgspec.Struct, frozen=True):
    """A durable request was accepted."""

    request: KeptRequest


class AnswerKept(msgspec.Struct, frozen=True):
    """A durable request ended: the request itself is not needed any more."""

    answer: KeptAnswer


class AnswersDropped(msgspec.Struct, frozen=True):
    """These answers are older than what is kept."""

    requests: tuple[bytes, ...]


class SplitKept(msgspec.Struct, frozen=True):
    """A model's name stands for this; replaces what was kept under it."""

    split: Split


class SplitDropped(msgspec.Struct, frozen=True):
    """A model's name stands for nothing but a deployment of that name."""

    name: str


Change = (
    EpochBegun
    | EpochEnded
    | ModelKept
    | ModelDropped
    | RequestKept
    | AnswerKept
    | AnswersDropped
    | SplitKept
    | SplitDropped
)


class Spent(msgspec.Struct, frozen=True):
    """An answer that is kept, without its content."""

    request: bytes
    nbytes: int
    at: float


class Snapshot(msgspec.Struct, frozen=True):
    """What a store holds, at the start of a dispatcher.

    Attributes:
        last_epoch: Highest number ever given.
        epochs: Those that agents may still hold, with their devices.
        models: Deployments, by name.
        requests: Durable requests without an answer, the oldest first.
        answers: Answers that are kept, the oldest first.
        splits: What models' names stand for, by name.
    """

    last_epoch: int = 0
    epochs: Mapping[int, tuple[str, ...]] = {}
    models: tuple[KeptModel, ...] = ()
    requests: tuple[KeptRequest, ...] = ()
    answers: tuple[Spent, ...] = ()
    splits: tuple[Split, ...] = ()


class Store(Protocol):
    """Keeps what is in a `Snapshot`; used by one thread, and every method may block."""

    def open(self) -> Snapshot:
        """Connect to it, and read everything but the answers' content.

        Raises:
            DeferError: It cannot be used.
        """

    def apply(self, changes: Sequence[Change]) -> None:
        """Take changes, all or none; they are safe when this returns.

        Raises:
            DeferError: None of them was taken.
        """

    def answer(self, request: bytes) -> KeptAnswer | None:
        """An answer that is kept."""

    def close(self) -> None:
        """Let go of it."""


class MemoryStore:
    """A store that forgets everything with its process, and says what the others must do."""

    def __init__(self) -> None:
        self._last = 0
        self._epochs: dict[int, tuple[str, ...]] = {}
        self._models: dict[str, KeptModel] = {}
        self._requests: dict[bytes, KeptRequest] = {}
        self._answers: dict[bytes, KeptAnswer] = {}
        self._splits: dict[str, Split] = {}

    def open(self) -> Snapshot:
        """See `Store`."""
        return Snapshot(
            self._last,
            dict(sorted(self._epochs.items())),
            tuple(self._models[name] for name in sorted(self._models)),
            tuple(self._requests.values()),
            tuple(Spent(request, len(answer.frames), answer.at) for request, answer in self._answers.items()),
            tuple(self._splits[name] for name in sorted(self._splits)),
        )

    def apply(self, changes: Sequence[Change]) -> None:
        """See `Store`."""
        for change in changes:
            match change:
                case EpochBegun(epoch, devices):
                    self._last = max(self._last, epoch)
                    self._epochs[epoch] = devices
                case EpochEnded(epoch):
                    self._epochs.pop(epoch, None)
                case ModelKept(model):
                    self._models[model.name] = model
                case ModelDropped(name):
                    self._models.pop(name, None)
                case RequestKept(request):
                    self._requests[request.infer.request] = request
                case AnswerKept(answer):
                    self._requests.pop(answer.message.request, None)
                    self._answers.setdefault(answer.message.request, answer)
                case SplitKept(split):
                    self._splits[split.name] = split
                case SplitDropped(name):
                    self._splits.pop(name, None)
                case AnswersDropped(requests):
                    for old in requests:
                        self._answers.pop(old, None)

    def answer(self, request: bytes) -> KeptAnswer | None:
        """See `Store`."""
        return self._answers.get(request)

    def close(self) -> None:
        """See `Store`."""
