"""What may be asked of a plan on the command line: objective, bounds, weights, and rules on blocks and devices."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, TypeVar

import click

from defer import units
from defer.cli.chains import replicas_option
from defer.documents.plan import Objective, Plan

F = TypeVar("F", bound=Callable[..., Any])

OBJECTIVES: Final = ("latency", "throughput", "cost", "energy", "weighted")


@dataclass(frozen=True, slots=True)
class Asked:
    """The options as they were typed.

    Attributes:
        typed: What is made least; None unless it was said.
        weights: As in `latency=1,cost=0.2`.
        max_latency, max_period, max_cost, max_energy: Bounds with their units.
        pin, forbid: As in `0:4=jetson`.
        exclude: Devices.
        replicas: Whether stages may be shared.
    """

    typed: Objective | None
    weights: str | None
    max_latency: str | None
    max_period: str | None
    max_cost: str | None
    max_energy: str | None
    pin: tuple[str, ...]
    forbid: tuple[str, ...]
    exclude: tuple[str, ...]
    replicas: bool

    @property
    def objective(self) -> Objective:
        """What is made least."""
        return self.typed or "latency"

    def after(self, running: Plan) -> Asked:
        """The same wishes with the running plan's objective and weights, where none are asked for."""
        if self.typed is not None:
            return self
        weights = ",".join(f"{name}={weight!r}" for name, weight in running.weights.items())
        return replace(self, typed=running.objective, weights=self.weights or weights or None)

    def limits(self, kept: Mapping[str, float] = MappingProxyType({})) -> Any:
        """The bounds and weights as `defer.wishes.Limits`.

        Args:
            kept: Bounds of an earlier plan, which hold unless others are asked for.

        Raises:
            UsageError: One of them is not what it should be.
        """
        from defer.wishes import Limits, parse_bound, parse_weights

        bounds = {
            "latency": ("--max-latency", self.max_latency, units.DURATION),
            "period": ("--max-period", self.max_period, units.DURATION),
            "cost": ("--max-cost", self.max_cost, None),
            "energy": ("--max-energy", self.max_energy, units.ENERGY),
        }
        given = {
            name: parse_bound(option, text, quantity)
            for name, (option, text, quantity) in bounds.items()
            if text is not None
        }
        return Limits(
            **{**kept, **given}, weights=parse_weights(self.weights) if self.weights is not None else {}
        )

    def rules(self) -> Any:
        """Pins, bans and replicas as `defer.wishes.Rules`; raises as `limits` does."""
        from defer.wishes import Rules, parse_tie

        return Rules(
            tuple(parse_tie("--pin", text) for text in self.pin),
            tuple(parse_tie("--forbid", text) for text in self.forbid),
            self.exclude,
            self.replicas,
        )


def wish_options(command: F) -> F:
    """Adds all of `Asked` (argument `asked`)."""

    @functools.wraps(command)
    def packed(**given: Any) -> Any:
        names = Asked.__slots__
        asked = Asked(**{name: given.pop(name) for name in names})
        return command(asked=asked, **given)

    wrapped: Any = packed
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]


_OPTIONS: Final = (
    click.option(
        "--objective",
        "typed",
        type=click.Choice(OBJECTIVES),
        help="What is made least: seconds of a request (latency, the default), seconds between results, money, joules, "
        "or a sum.",
    ),
    click.option(
        "--weights",
        metavar="latency=1,cost=0.2",
        help="What the objective `weighted` adds up: factors of seconds, money and joules.",
    ),
    click.option("--max-latency", metavar='"50 ms"', help="No request may take longer."),
    click.option("--max-period", metavar='"20 ms"', help="Results must not come further apart."),
    click.option(
        "--max-cost", metavar="0.001", help="No request may cost more, in the cluster file's money."
    ),
    click.option("--max-energy", metavar='"2 J"', help="No request may take more energy."),
    click.option(
        "--pin", multiple=True, metavar="0:4=DEV", help="These blocks run on this device. Repeat for more."
    ),
    click.option(
        "--forbid", multiple=True, metavar="0:4=DEV", help="These blocks do not run on this device."
    ),
    click.option(
        "--exclude", multiple=True, metavar="DEV", help="Do not use this device, not even to pass on."
    ),
    replicas_option,
)
