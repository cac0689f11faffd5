"""What can happen to an agent, and what it may decide to do. Pure values between the core and its shells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from node_agent.messages import (
    ControlMessage,
    FileRef,
    Load,
    Measure,
    MeasureLink,
)

Connection = tuple[str, bytes]
"""A control connection: where it came in (`listen` or the dialled endpoint) and its routing id there."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """Who waits for the answer to which request."""

    connection: Connection
    id: int


@dataclass(frozen=True, slots=True)
class Gauge:
    """How the data path stands; see `Heartbeat`."""

    progress: int = 0
    item_age_s: float = 0.0
    queued: int = 0
    resident_bytes: int = 0
    run_cpu_s: float = 0.0


# ---------------------------------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Received:
    """A control message came in."""

    connection: Connection
    message: ControlMessage
    payload: Any = None


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Something came in that is no control message."""

    connection: Connection
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Dialled:
    """A connection that this agent dials stands."""

    connection: Connection


@dataclass(frozen=True, slots=True)
class Lost:
    """A control connection is gone."""

    connection: Connection


@dataclass(frozen=True, slots=True)
class Tick:
    """Time to say how this agent is."""

    gauge: Gauge


@dataclass(frozen=True, slots=True)
class Finished:
    """A job for one request ended; its answer, and whether it wrote a piece of a file."""

    ticket: Ticket
    answer: ControlMessage
    chunk: bool = False


@dataclass(frozen=True, slots=True)
class LoadProgressed:
    """How far a load is."""

    epoch: int
    what: str
    fraction: float


@dataclass(frozen=True, slots=True)
class PartitionsLoaded:
    """Every partition of an epoch is loaded and warm."""

    epoch: int
    seconds: float
    resident_bytes: int
    engine: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """An epoch cannot be loaded; nothing of it is held."""

    epoch: int
    code: str
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Retired:
    """The data path holds nothing of an epoch any more."""

    epoch: int


@dataclass(frozen=True, slots=True)
class StopAsked:
    """The operator wants the process to end: finish what is queued for at most `patience_s`."""

    patience_s: float


Event = (
    Received
    | Unreadable
    | Dialled
    | Lost
    | Tick
    | Finished
    | LoadProgressed
    | PartitionsLoaded
    | LoadFailed
    | Retired
    | StopAsked
)

# ---------------------------------------------------------------------------------------------- instructions


@dataclass(frozen=True, slots=True)
class Say:
    """Send a control message."""

    connection: Connection
    message: ControlMessage


@dataclass(frozen=True, slots=True)
class CheckFiles:
    """Find out how much of these files is held; answer `Have`."""

    ticket: Ticket
    files: tuple[FileRef, ...]


@dataclass(frozen=True, slots=True)
class StoreChunk:
    """Write a piece of a file; answer `Taken`."""

    ticket: Ticket
    file: FileRef
    offset: int
    data: Any


@dataclass(frozen=True, slots=True)
class LoadPartitions:
    """Load an epoch's partitions; ends in `PartitionsLoaded` or `LoadFailed`."""

    load: Load


@dataclass(frozen=True, slots=True)
class Install:
    """Put an epoch's routes in force."""

    load: Load


@dataclass(frozen=True, slots=True)
class Retire:
    """Take an epoch's routes out of force, drop what waits; ends in `Retired`."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Release:
    """Free an epoch's partitions."""

    epoch: int


@dataclass(frozen=True, slots=True)
class RunMeasure:
    """Measure a block; answer `Measured`."""

    ticket: Ticket
    measure: Measure


@dataclass(frozen=True, slots=True)
class ForgetMeasured:
    """Drop the activations that measuring kept."""


@dataclass(frozen=True, slots=True)
class RunProbe:
    """Measure a link; answer `LinkMeasured`."""

    ticket: Ticket
    measure: MeasureLink


@dataclass(frozen=True, slots=True)
class ReportStatus:
    """Answer with `AgentStatus`."""

    ticket: Ticket
    state: str


@dataclass(frozen=True, slots=True)
class ReportTraces:
    """Answer at once with `TraceReport`: the asker reads this clock by it."""

    ticket: Ticket
    traces: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StopCredit:
    """Grant no more credit: the agent is draining."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End the process."""


@dataclass(frozen=True, slots=True)
class Log:
    """Tell the operator; `news` also where no more than warnings are wanted."""

    level: int
    text: str
    news: bool = False


Instruction = (
    Say
    | CheckFiles
    | StoreChunk
    | LoadPartitions
    | Install
    | Retire
    | Release
    | RunMeasure
    | ForgetMeasured
    | RunProbe
    | ReportStatus
    | ReportTraces
    | StopCredit
    | Stop
    | Log
)
