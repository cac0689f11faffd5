"""What the dispatcher's core is told (events) and what it asks for (instructions), as plain values: its whole language.

`Event` is what `DispatcherCore.handle` takes, `Instruction` what it returns.
"""

from __future__ import annotations

from defer.dispatcher.events.changes import (
    Closing,
    DeviceBack,
    DeviceLost,
    DevicesQuiet,
    ModelAnnounced,
    ModelForgotten,
    ModelStuck,
    Resumed,
    RouteDropped,
    RouteLoaded,
    RouteReady,
    RouteRetired,
    RouteStands,
    RouteStandsDown,
    RouteVoid,
    SplitForgotten,
    SplitSet,
    Stopped,
    Tick,
)
from defer.dispatcher.events.instructions import (
    Acknowledge,
    CancelItems,
    CutLink,
    Deliver,
    Drained,
    Keep,
    Recall,
    Reject,
    Sampled,
    SendItem,
    TookOver,
)
from defer.dispatcher.events.traffic import (
    CancelArrived,
    CreditArrived,
    FailureReturned,
    InferArrived,
    ItemReturned,
    Kept,
    LinkDown,
    LinkUp,
    RecallArrived,
    Recalled,
    ResultsBroke,
)
from defer.dispatcher.events.values import HERE, Frames, Limits, Route

Event = (
    InferArrived
    | ItemReturned
    | FailureReturned
    | CreditArrived
    | LinkUp
    | LinkDown
    | ResultsBroke
    | DeviceLost
    | DeviceBack
    | DevicesQuiet
    | CancelArrived
    | ModelStuck
    | ModelAnnounced
    | RouteLoaded
    | RouteReady
    | RouteStands
    | RouteStandsDown
    | RouteVoid
    | RouteRetired
    | RouteDropped
    | ModelForgotten
    | SplitSet
    | SplitForgotten
    | RecallArrived
    | Kept
    | Recalled
    | Resumed
    | Closing
    | Stopped
    | Tick
)

Instruction = (
    SendItem
    | Deliver
    | Reject
    | Drained
    | CutLink
    | CancelItems
    | TookOver
    | Sampled
    | Keep
    | Recall
    | Acknowledge
)

__all__ = [
    "HERE",
    "Acknowledge",
    "CancelArrived",
    "CancelItems",
    "Closing",
    "CreditArrived",
    "CutLink",
    "Deliver",
    "DeviceBack",
    "DeviceLost",
    "DevicesQuiet",
    "Drained",
    "Event",
    "FailureReturned",
    "Frames",
    "InferArrived",
    "Instruction",
    "ItemReturned",
    "Keep",
    "Kept",
    "Limits",
    "LinkDown",
    "LinkUp",
    "ModelAnnounced",
    "ModelForgotten",
    "ModelStuck",
    "Recall",
    "RecallArrived",
    "Recalled",
    "Reject",
    "ResultsBroke",
    "Resumed",
    "Route",
    "RouteDropped",
    "RouteLoaded",
    "RouteReady",
    "RouteRetired",
    "RouteStands",
    "RouteStandsDown",
    "RouteVoid",
    "Sampled",
    "SendItem",
    "SplitForgotten",
    "SplitSet",
    "Stopped",
    "Tick",
    "TookOver",
]
