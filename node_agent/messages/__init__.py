"""Every message that defer's processes exchange, as typed values. One place; both ends import it.

Two families share one rule for growing: a new field goes last and has a default, so that a peer one protocol
version older reads what it knows and leaves the rest (msgspec skips unknown fields and fills missing ones).

* **Data headers** (`data` between hops, `requests` between a client and the dispatcher) are the first frame of a
  message on a data socket. They are encoded as msgpack arrays: small and fast.
* **Control messages** (`orders`, `measuring`, `status`, made of `values`) travel on control sockets as msgpack maps.
  A request carries an `id`; its answer carries the same. `Chunk` alone is followed by one raw frame.

`DataHeader` and `ControlMessage` are the whole protocol: `node_agent.frames` decodes what is in them and nothing else.
See docs/wire.md for the sockets and the order in which these are said.
"""

from __future__ import annotations

from node_agent.messages.data import (
    LOWEST_PRIORITY,
    NO_DEADLINE,
    USUAL_PRIORITY,
    Cancel,
    Credit,
    Failure,
    Greeting,
    Item,
    Offered,
    Probe,
    ProbeEcho,
    Refusal,
    TensorHeader,
)
from node_agent.messages.measuring import LinkMeasured, Measure, Measured, MeasureLink, TensorStats
from node_agent.messages.orders import (
    CHUNK_BYTES,
    CHUNK_WINDOW,
    Chunk,
    Done,
    Drain,
    Fault,
    Have,
    Hello,
    Load,
    Loaded,
    Progress,
    Taken,
    Unload,
    Want,
    Welcome,
)
from node_agent.messages.requests import ID_BYTES, Accepted, GiveUp, Infer, Recall, Rejection, Result
from node_agent.messages.status import (
    HEARTBEAT_S,
    AgentStatus,
    Heartbeat,
    HopStatus,
    HopTrace,
    StatusRequest,
    TraceReport,
    TraceRequest,
)
from node_agent.messages.values import AUTO_ENGINE, EngineInfo, FileRef, HopSpec, Offer, PeerRef, TensorSpec

PROTOCOL_VERSION = 1
"""The newest protocol version that this build speaks."""

PROTOCOL_MINIMUM = 1
"""The oldest one that it still understands."""

DataHeader = (
    Greeting
    | Item
    | Failure
    | Credit
    | Probe
    | ProbeEcho
    | Refusal
    | Infer
    | Result
    | Rejection
    | Recall
    | Accepted
    | Cancel
    | GiveUp
)

ControlMessage = (
    Hello
    | Welcome
    | Fault
    | Want
    | Have
    | Chunk
    | Taken
    | Load
    | Progress
    | Loaded
    | Unload
    | Done
    | Measure
    | Measured
    | MeasureLink
    | LinkMeasured
    | StatusRequest
    | AgentStatus
    | Drain
    | Heartbeat
    | TraceRequest
    | TraceReport
)

__all__ = [
    "AUTO_ENGINE",
    "CHUNK_BYTES",
    "CHUNK_WINDOW",
    "HEARTBEAT_S",
    "ID_BYTES",
    "LOWEST_PRIORITY",
    "NO_DEADLINE",
    "PROTOCOL_MINIMUM",
    "PROTOCOL_VERSION",
    "USUAL_PRIORITY",
    "Accepted",
    "AgentStatus",
    "Cancel",
    "Chunk",
    "ControlMessage",
    "Credit",
    "DataHeader",
    "Done",
    "Drain",
    "EngineInfo",
    "Failure",
    "Fault",
    "FileRef",
    "GiveUp",
    "Greeting",
    "Have",
    "Heartbeat",
    "Hello",
    "HopSpec",
    "HopStatus",
    "HopTrace",
    "Infer",
    "Item",
    "LinkMeasured",
    "Load",
    "Loaded",
    "Measure",
    "MeasureLink",
    "Measured",
    "Offer",
    "Offered",
    "PeerRef",
    "Probe",
    "ProbeEcho",
    "Progress",
    "Recall",
    "Refusal",
    "Rejection",
    "Result",
    "StatusRequest",
    "Taken",
    "TensorHeader",
    "TensorSpec",
    "TensorStats",
    "TraceReport",
    "TraceRequest",
    "Unload",
    "Want",
    "Welcome",
]
