"""What an operator may ask of a plan beside its objective: bounds, weights, and rules on blocks and devices. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import router
from defer import units
from defer.api import check_replicas
from defer.documents.cluster import Cluster
from defer.errors import DeferError, NoRoute, UnknownDevice, UsageError

WEIGHED: Final = {
    "latency": "latency",
    "period": "period",
    "throughput": "period",
    "cost": "cost",
    "energy": "energy",
}
"""Names that `--weights` takes, and what the router calls them."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What no plan may exceed, and what a weighted objective adds up.

    Attributes:
        latency: Seconds of one request.
        period: Seconds between two results.
        cost: Money per request.
        energy: Joules per request.
        weights: Factor of each of `latency`, `period`, `cost` and `energy` in a weighted objective.
    """

    latency: float = math.inf
    period: float = math.inf
    cost: float = math.inf
    energy: float = math.inf
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def given(self) -> dict[str, float]:
        """The bounds that are set."""
        bounds = {"latency": self.latency, "period": self.period, "cost": self.cost, "energy": self.energy}
        return {name: bound for name, bound in bounds.items() if math.isfinite(bound)}


@dataclass(frozen=True, slots=True)
class Tie:
    """Blocks [start, stop) and a device that must, or must not, run them; `stop` None is the last block's end."""

    start: int
    stop: int | None
    device: str


@dataclass(frozen=True, slots=True)
class Rules:
    """Which blocks and devices are tied or forbidden.

    Attributes:
        pinned: Blocks that a device must run.
        forbidden: Blocks that a device must not run.
        excluded: Devices that must not be used, not even to pass tensors on.
        replicas: Whether several devices may share one stage's requests.
    """

    pinned: tuple[Tie, ...] = ()
    forbidden: tuple[Tie, ...] = ()
    excluded: tuple[str, ...] = ()
    replicas: bool = False


NO_LIMITS: Final = Limits()
NO_RULES: Final = Rules()


def parse_weights(text: str) -> dict[str, float]:
    """Weights from `latency=1,cost=0.2`.

    Raises:
        UsageError: Not of that form, or not a weight.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        known = WEIGHED.get(name.strip())
        try:
            weight = float(value)
        except ValueError:
            weight = math.nan
        if not equals or known is None or known in weights or not (math.isfinite(weight) and weight >= 0):
            raise UsageError(
                f"{part.strip()!r} is not a weight",
                hint="write --weights latency=1,cost=0.2, with any of latency, period, cost and energy",
            )
        weights[known] = weight
    if not any(weights.values()):
        raise UsageError("all weights are 0", hint="give at least one quantity a weight above 0")
    return weights


def parse_bound(option: str, text: str, quantity: units.Quantity | None) -> float:
    """A bound from `50 ms` or, without a quantity, a plain amount of money.

    Raises:
        UsageError: Not of that form, or nothing could keep it.
    """
    if quantity is not None:
        try:
            value = units.parse(text, quantity)
        except DeferError as exc:
            raise UsageError(f"{option}: {exc.message}", hint=f"for example {quantity.example!r}") from exc
    else:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
    if not (math.isfinite(value) and value > 0):
        example = quantity.example if quantity is not None else "0.001"
        raise UsageError(
            f"{option}: {text!r} is not a bound that a plan could keep", hint=f"for example {example!r}"
        )
    return value


def parse_tie(option: str, text: str) -> Tie:
    """Blocks and a device from `0:4=jetson`, `4:=nano` or, for one block, `7=jetson`.

    Raises:
        UsageError: Not of that form.
    """
    blocks, equals, device = text.partition("=")
    start, colon, stop = blocks.strip().partition(":")
    ends = [start, stop] if stop else [start]
    if not (equals and device.strip() and all(end.isdecimal() for end in ends)):
        raise UsageError(
            f"{option} {text!r} does not say which blocks and which device",
            hint=f"write {option} 0:4=jetson, {option} 4:=nano, or for one block {option} 7=nano",
        )
    first = int(start)
    last = int(stop) if stop else (None if colon else first + 1)
    return Tie(first, last, device.strip())


def make_pins(rules: Rules, cluster: Cluster, blocks: int) -> router.Pins:
    """The rules in the router's terms.

    Raises:
        UnknownDevice: A device that the cluster does not have, or that computes nothing.
        UsageError: Blocks that the chain does not have, or two devices for one block.
    """
    pinned: dict[int, str] = {}
    for tie in rules.pinned:
        _check_device(cluster, tie.device)
        for block in _blocks(tie, blocks):
            if pinned.setdefault(block, tie.device) != tie.device:
                raise UsageError(
                    f"block {block} is pinned to {pinned[block]!r} and to {tie.device!r}",
                    hint="keep one of them",
                )
    forbidden = []
    for tie in rules.forbidden:
        _check_device(cluster, tie.device)
        forbidden += [(block, tie.device) for block in _blocks(tie, blocks)]
    for name in rules.excluded:
        if cluster.device(name).name == cluster.dispatcher.device and not cluster.device(name).has_agent:
            raise UsageError(
                f"{name!r} is the dispatcher's device, where every request starts", hint="exclude another"
            )
    able = [device.name for device in cluster.devices if device.computes]
    if able and not set(able) - set(rules.excluded):
        raise NoRoute(
            "every device that computes is excluded", hint=f"leave one of them in: {', '.join(able)}"
        )
    home = cluster.dispatcher.device  # requests start there, so it is only spared from computing
    return router.Pins(
        blocks=pinned,
        forbidden=tuple(forbidden),
        excluded=tuple(name for name in rules.excluded if name == home),
        banned=tuple(name for name in rules.excluded if name != home),
    )


def _check_device(cluster: Cluster, name: str) -> None:
    device = cluster.device(name)
    if not (device.computes and device.has_agent):
        raise UnknownDevice(f"device {name!r} computes nothing", hint="name a device with an agent")


def _blocks(tie: Tie, blocks: int) -> Sequence[int]:
    stop = blocks if tie.stop is None else tie.stop
    if not 0 <= tie.start < stop <= blocks:
        raise UsageError(
            f"there are no blocks {tie.start}:{stop} in a chain of {blocks}",
            hint=f"blocks are 0 to {blocks - 1}; `defer analyze` lists them",
        )
    return range(tie.start, stop)


def check_wishes(objective: str, limits: Limits, rules: Rules, *, placed: bool = False) -> None:
    """Refuses wishes that contradict each other.

    Args:
        objective: What is made least.
        limits: Bounds and weights.
        rules: Blocks and devices.
        placed: Whether the operator also placed every block.

    Raises:
        UsageError: Names the two that do not go together.
    """
    if (objective == "weighted") != bool(limits.weights):
        raise UsageError(
            "the objective 'weighted', and no other, needs weights",
            hint="for example --weights latency=1,cost=0.2",
        )
    tied = bool(rules.pinned or rules.forbidden)
    if placed and tied:
        raise UsageError(
            "blocks are placed by hand and tied as well", hint="give --place, or --pin and --forbid"
        )
    if rules.replicas:
        check_replicas(objective)
    if rules.replicas and placed:
        raise UsageError(
            "blocks are placed by hand, and replicas are for the planner to place",
            hint="give --place, or --replicas with --pin and --forbid",
        )
