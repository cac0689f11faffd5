"""A dispatcher's core with one route, and what clients and agents tell it."""

from __future__ import annotations

from defer.dispatcher import events as e
from defer.dispatcher.core import DispatcherCore
from node_agent.messages import (
    NO_DEADLINE,
    Credit,
    Infer,
    Item,
    Rejection,
    TensorHeader,
    TensorSpec,
)

INPUTS = (TensorSpec("x", "float32", ("N", 4)),)
OUTPUTS = (TensorSpec("y", "float32", ("N", 2)), TensorSpec("z", "int64", ("N",)))
Y = TensorHeader("y", "float32", (1, 2), "raw", 8)
Z = TensorHeader("z", "int64", (1,), "raw", 8)
S = 10**9


def route(
    epoch: int = 1, model: str = "m", link: str = "L", devices: tuple[str, ...] = ("a", "b")
) -> e.Route:
    return e.Route(model, epoch, INPUTS, OUTPUTS, link, 2, devices)


def x(rows: int = 1) -> TensorHeader:
    return TensorHeader("x", "float32", (rows, 4), "raw", rows * 16)


def infer(
    name: str,
    *,
    model: str = "",
    left: int = 5 * S,
    tensors: tuple[TensorHeader, ...] = (),
    outputs: tuple[str, ...] = (),
    priority: int = 0,
) -> Infer:
    return Infer(name.encode().ljust(16), model, left, tensors or (x(),), outputs, priority=priority)


def ready_core(items: int = 100, limits: e.Limits | None = None) -> DispatcherCore:
    core = DispatcherCore(limits)
    core.handle(e.RouteLoaded(route()), 0)
    core.handle(e.RouteReady(1), 0)
    core.handle(e.LinkUp("L"), 0)
    if items:
        core.handle(e.CreditArrived("L", Credit(items, 1 << 20)), 0)
    return core


def ask(
    core: DispatcherCore, name: str, now: float = 0, client: bytes = b"c", **more: object
) -> list[e.Instruction]:
    return core.handle(e.InferArrived(client, infer(name, **more), ("fx",)), now)  # type: ignore[arg-type]


def back(
    core: DispatcherCore, request: int, now: float = 0, *, epoch: int = 1, hop: int = 2
) -> list[e.Instruction]:
    return core.handle(e.ItemReturned(Item(epoch, request, hop, NO_DEADLINE, (Z, Y)), ("fz", "fy")), now)


def refused(out: list[e.Instruction]) -> Rejection:
    (only,) = out
    assert isinstance(only, e.Reject)
    return only.rejection
