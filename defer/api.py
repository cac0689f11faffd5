"""What clients of the dispatcher say on its api socket: admin verbs, as typed values.

The same rules as in `node_agent.messages`: a request carries an `id`, its answer the same; new fields go last
and have a default; `Fault` answers what failed and `Progress` comes before the answer of what takes long. A
model travels by content with the agents' own `Want`/`Have`/`Chunk`/`Taken`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Final, Literal

import msgspec

from defer.documents.plan import Objective
from defer.errors import InvalidModel, ProtocolMismatch, UsageError
from defer.event_log import EventInfo
from defer.infos import DeploymentInfo as DeploymentInfo
from defer.infos import DeviceInfo as DeviceInfo
from defer.infos import ModelInfo as ModelInfo
from defer.infos import ModelTotals as ModelTotals
from defer.infos import StageInfo as StageInfo
from defer.infos import StandbyInfo as StandbyInfo
from node_agent.messages import (
    Chunk,
    Done,
    Fault,
    FileRef,
    Have,
    Hello,
    HopTrace,
    Progress,
    Taken,
    Want,
    Welcome,
)


class GetStatus(msgspec.Struct, frozen=True, tag="get_status", tag_field="t"):
    """Asks for `ServerStatus`."""

    id: int


class ServerStatus(msgspec.Struct, frozen=True, tag="server_status", tag_field="t"):
    """Answers `GetStatus`.

    Attributes:
        name: The dispatcher's name.
        version: defer's version there.
        uptime_s: Seconds since it started.
        models: What clients may ask for.
        deployments: What is loaded, retired ones included.
        devices: The cluster's agents.
        held_requests: Accepted and unanswered requests.
        held_bytes: Their input bytes.
        refused: Requests never accepted, by code.
        failed: Accepted requests that ended with an error, by code.
        repeated: Requests that clients sent again and that did not run again.
        stale: Results of requests that had ended.
        replayed: Requests sent again because a connection broke or a device was lost.
        totals: What each model's requests came to since the process started.
        standby: What is prepared for the loss of each device that serves a model.
    """

    id: int
    name: str
    version: str
    uptime_s: float
    models: tuple[ModelInfo, ...] = ()
    deployments: tuple[DeploymentInfo, ...] = ()
    devices: tuple[DeviceInfo, ...] = ()
    held_requests: int = 0
    held_bytes: int = 0
    refused: dict[str, int] = {}
    failed: dict[str, int] = {}
    repeated: int = 0
    stale: int = 0
    replayed: int = 0
    totals: tuple[ModelTotals, ...] = ()
    standby: tuple[StandbyInfo, ...] = ()


class GetEvents(msgspec.Struct, frozen=True, tag="get_events", tag_field="t"):
    """Asks for `Events` with numbers above `after`; the newest `limit` of them where there are more."""

    id: int
    after: int = 0
    limit: int = 256


class Events(msgspec.Struct, frozen=True, tag="events", tag_field="t"):
    """Answers `GetEvents`.

    Attributes:
        events: The oldest first.
        last: Number of the newest event that there is.
        boot: Changes when the dispatcher's process does, and with it numbers begin anew.
    """

    id: int
    events: tuple[EventInfo, ...] = ()
    last: int = 0
    boot: str = ""


class ListModels(msgspec.Struct, frozen=True, tag="list_models", tag_field="t"):
    """Asks for `Models`."""

    id: int


class Models(msgspec.Struct, frozen=True, tag="models", tag_field="t"):
    """Answers `ListModels`; `data_port` is where requests go, on the host that the api was reached at."""

    id: int
    data_port: int
    models: tuple[ModelInfo, ...] = ()


class ModelFile(msgspec.Struct, frozen=True):
    """A file of a model: its path relative to the model's folder, and its content."""

    path: str
    file: FileRef


class Deploy(msgspec.Struct, frozen=True, tag="deploy", tag_field="t"):
    """Plan and load a model, whose files the dispatcher already holds, and serve it; answered by `Deployed`.

    Attributes:
        name: Name to serve it under; a model already served under it is replaced without a gap.
        files: The ONNX file first, then the files of its external data.
        plan: A plan document in JSON; empty to make one.
        profile: A profile document in JSON; empty to measure.
        objective: What a plan that is made makes least; empty for what the stable version was deployed with, or
            `latency` where there is none.
        shapes: Input shapes that bind free dimensions for costs and warm-up.
        max_error: How far lossy codecs may move the output, as `--max-error` takes it; empty uses none.
        calibration: Requests (.npz) on which that is measured, held by the dispatcher; none makes some up.
        sample: Share of the requests that are compared with the lossless pipeline.
        batch: Numbers of requests that stages may run together; none leaves it to the plan.
        batch_delay_s: How long the first of a batch waits for others.
        standby: What is prepared for the loss of a device, as `--standby` takes it; empty for the usual.
        replicas: Whether several devices may share a stage's requests in a plan that is made.
    """

    id: int
    name: str
    files: tuple[ModelFile, ...]
    plan: str = ""
    profile: str = ""
    objective: Objective | Literal[""] = "latency"
    shapes: dict[str, tuple[int, ...]] = {}
    max_error: str = ""
    calibration: tuple[ModelFile, ...] = ()
    sample: float = 0.0
    batch: tuple[int, ...] = ()
    batch_delay_s: float = 0.0
    standby: str = ""
    replicas: bool = False


class GiveUp(msgspec.Struct, frozen=True, tag="give_up", tag_field="t"):
    """Ends the `Deploy` that was asked with the id `question` over the same connection; answered by `Done` at once.

    The `Deploy` is answered by a `Fault` with the code `cancelled` when it has ended, or by `Deployed` where this came
    too late. A connection that ends says the same.
    """

    id: int
    question: int


class Deployed(msgspec.Struct, frozen=True, tag="deployed", tag_field="t"):
    """Answers `Deploy`: a canary went through the whole pipeline, and the model is served.

    Attributes:
        model: As clients now see it.
        plan: The plan document in JSON.
        sent_bytes: Bytes shipped to agents.
        seconds: From the request to ready.
        canary_s: Seconds that the canary took.
    """

    id: int
    model: ModelInfo
    plan: str
    sent_bytes: int
    seconds: float
    canary_s: float


class GetTraces(msgspec.Struct, frozen=True, tag="get_traces", tag_field="t"):
    """Asks for what is known of traced requests, answered by `Traces`; without any it reads clocks.

    Attributes:
        traces: Trace contexts of the requests.
        rounds: How often each agent's clock is to be read.
    """

    id: int
    traces: tuple[str, ...] = ()
    rounds: int = 0


class RequestTrace(msgspec.Struct, frozen=True):
    """When a traced request was in the dispatcher, ns on its monotonic clock; 0 for what has not happened.

    Attributes:
        trace: Its trace context.
        epoch: Its deployment.
        request: The dispatcher's number for it.
        arrived_ns: It was read from the client's connection.
        sent_ns: It was about to be handed to ZeroMQ for the first stage, the last time where it was sent again.
        returned_ns: Its result was read from the last stage's connection.
        answered_ns: The result was about to be handed to ZeroMQ for the client.
        hops: Hops that the result has behind it.
    """

    trace: str
    epoch: int = 0
    request: int = 0
    arrived_ns: int = 0
    sent_ns: int = 0
    returned_ns: int = 0
    answered_ns: int = 0
    hops: int = 0


class AgentTraces(msgspec.Struct, frozen=True):
    """What one agent noted of traced requests, and how its clock stands.

    Attributes:
        device: Which.
        hops: What it noted, by its own clock.
        at_ns: When its clock was read, on the dispatcher's.
        ahead_ns: How far it was ahead.
        error_ns: The bound on that; -1 where it was not read.
    """

    device: str
    hops: tuple[HopTrace, ...] = ()
    at_ns: int = 0
    ahead_ns: int = 0
    error_ns: int = -1


class Traces(msgspec.Struct, frozen=True, tag="traces", tag_field="t"):
    """Answers `GetTraces`; `clock_ns` is the dispatcher's monotonic clock when it answered."""

    id: int
    clock_ns: int
    requests: tuple[RequestTrace, ...] = ()
    agents: tuple[AgentTraces, ...] = ()


class Undeploy(msgspec.Struct, frozen=True, tag="undeploy", tag_field="t"):
    """Stop serving a model: finish what is in flight, then free the agents. Answered by `Done`."""

    id: int
    name: str
    drain_s: float = 30.0


class Roll(msgspec.Struct, frozen=True, tag="roll", tag_field="t"):
    """Change which version of a model requests without a version take, or show it; answered by `Rolled`.

    Attributes:
        name: The model's name.
        action: `show`; `canary`: a share takes `version`; `promote`: all take it (or the one that is tried); `rollback`:
            end the canary, or go back to the version before.
        version: A version, or a deployment's whole name.
        share: Part of the requests for a canary, 0 to 1.
    """

    id: int
    name: str
    action: Literal["show", "canary", "promote", "rollback"] = "show"
    version: str = ""
    share: float = 0.0


class Rolled(msgspec.Struct, frozen=True, tag="rolled", tag_field="t"):
    """Answers `Roll`: what the name stands for now.

    Attributes:
        name: The model's name.
        stable: Deployment that its requests take; empty where only versions are left and none was promoted.
        canary: Deployment that is tried; empty for none.
        share: Part of the requests that takes it.
        before: What was stable before; empty for none.
        versions: Deployments of the model.
    """

    id: int
    name: str
    stable: str
    canary: str = ""
    share: float = 0.0
    before: str = ""
    versions: tuple[str, ...] = ()


ApiMessage = (
    Hello
    | Welcome
    | Fault
    | Progress
    | Done
    | Want
    | Have
    | Chunk
    | Taken
    | GetStatus
    | ServerStatus
    | ListModels
    | Models
    | Deploy
    | GiveUp
    | Deployed
    | Undeploy
    | Roll
    | Rolled
    | GetEvents
    | Events
    | GetTraces
    | Traces
)

MAX_MESSAGE = 8 << 20
"""Bytes of one api message at most, a chunk's frame aside; a plan takes kilobytes, a profile some hundred."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ApiMessage)


def encode(message: ApiMessage) -> bytes:
    """A message as one msgpack map."""
    return _encoder.encode(message)


def decode(data: bytes | memoryview) -> ApiMessage:
    """A message from its frame.

    Raises:
        ProtocolMismatch: It is none of ours, or too long.
    """
    if len(data) > MAX_MESSAGE:
        raise ProtocolMismatch(f"an api message of {len(data)} bytes is over the limit of {MAX_MESSAGE}")
    try:
        message: ApiMessage = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise ProtocolMismatch(f"not a message of defer's api: {exc}") from exc
    return message


MOST_DIMENSION: Final = 2**31 - 1
"""Largest size of one dimension of an input that is asked for."""

MOST_ELEMENTS: Final = 2**40
"""Elements of one such input at most: more are in the memory of no device, and sums of their bytes stay exact."""


def check_replicas(objective: str, *, given: bool = False) -> None:
    """Whether several devices may share a stage's requests.

    Args:
        objective: What is made least; empty where that is not known yet.
        given: Whether the plan is there already.

    Raises:
        UsageError: They may not.
    """
    if given:
        raise UsageError(
            "the plan that is given says what has replicas", hint="leave --replicas out, or the plan"
        )
    if objective not in ("throughput", ""):
        raise UsageError("replicas only raise the throughput", hint="add --objective throughput")


def check_shapes(shapes: Mapping[str, Sequence[int]]) -> None:
    """Check shapes of inputs that somebody has made up, before anything is computed with them.

    Raises:
        UsageError: A dimension is not positive, or one of them or their product is beyond every device.
    """
    for name, shape in shapes.items():
        if not all(0 < size <= MOST_DIMENSION for size in shape) or math.prod(shape) > MOST_ELEMENTS:
            raise UsageError(
                f"input {name!r:.80} cannot have the shape {','.join(map(str, shape)):.80}",
                hint=f"dimensions are 1 to {MOST_DIMENSION:,}, and an input has at most 2^40 elements",
            )


def check_model_path(path: str) -> PurePosixPath:
    """The path of a model's file, sure to stay inside the model's folder.

    Raises:
        InvalidModel: It is absolute, or climbs out.
    """
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or "\\" in path or "\0" in path:
        raise InvalidModel(
            f"the model's external data path {path!r} leaves the model's folder",
            hint="save the model with its weights beside it",
        )
    return pure
