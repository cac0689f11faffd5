"""Which items belong to which partition, and which of their tensors are run, passed on or dropped. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from node_agent.dtypes import RAW_BITS
from node_agent.errors import WrongInputError
from node_agent.flow import Window
from node_agent.messages import HopSpec, PeerRef, TensorHeader, TensorSpec

Kind = Literal["run", "relay"]


@dataclass(frozen=True, slots=True)
class Route:
    """What to do with items of one hop of one epoch.

    Attributes:
        epoch: The deployment.
        model: Its model's name, for status.
        spec: The hop as the dispatcher described it.
        inputs: The partition's inputs by name.
        bits: Wire types of outputs that the engine returns as raw bits.
        made: Names of the partition's outputs.
        passed: Names that came with the item and go on as they are.
    """

    epoch: int
    model: str
    spec: HopSpec
    inputs: Mapping[str, TensorSpec] = field(init=False)
    bits: Mapping[str, str] = field(init=False)
    made: frozenset[str] = field(init=False)
    passed: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        made = frozenset(spec.name for spec in self.spec.outputs)
        object.__setattr__(self, "inputs", {spec.name: spec for spec in self.spec.inputs})
        object.__setattr__(
            self, "bits", {spec.name: spec.dtype for spec in self.spec.outputs if spec.dtype in RAW_BITS}
        )
        object.__setattr__(self, "made", made)
        object.__setattr__(self, "passed", frozenset(self.spec.send) - made)

    @property
    def kind(self) -> Kind:
        """Whether the hop computes or forwards."""
        return "relay" if self.spec.graph is None else "run"

    @property
    def key(self) -> tuple[int, int]:
        """Epoch and hop."""
        return (self.epoch, self.spec.hop)

    def admit(self, headers: Sequence[TensorHeader]) -> tuple[list[int], list[int]]:
        """Which tensors of an item to decode for the partition, and which to pass on.

        Args:
            headers: The item's tensors; their sizes have been checked.

        Returns:
            Indices of the partition's inputs, and of those that are passed on. The rest is dropped.

        Raises:
            WrongInputError: One is missing, or has another type or shape than the partition takes.
        """
        decode: list[int] = []
        forward: list[int] = []
        inputs, passed = self.inputs, self.passed
        for index, header in enumerate(headers):
            spec = inputs.get(header.name)
            if spec is not None:
                if header.dtype != spec.dtype or not _fits(header.shape, spec.shape):
                    raise WrongInputError(
                        f"Tensor {header.name!r} is {header.dtype}{list(header.shape)}; hop {self.spec.hop} takes "
                        f"{spec.dtype}{list(spec.shape)}.",
                        hint="Send the shapes and types that the model's description states.",
                    )
                decode.append(index)
            if header.name in passed:
                forward.append(index)
        if len(decode) != len(inputs) or len(forward) != len(passed):
            lacking = (inputs.keys() | passed) - {header.name for header in headers}
            raise WrongInputError(
                f"Hop {self.spec.hop} lacks {', '.join(map(repr, sorted(lacking)))}; the item brought "
                f"{', '.join(repr(header.name) for header in headers) or 'no tensor'}.",
                hint="The hop before must send them: plan and agents disagree.",
            )
        return decode, forward


def _fits(shape: Sequence[int], declared: Sequence[int | str]) -> bool:
    if len(shape) != len(declared):
        return False
    for size, expected in zip(shape, declared, strict=True):
        if size != expected and not isinstance(expected, str):
            return False
    return True


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """All routes that are in force. Immutable: a change makes a new table, so that readers need no lock."""

    routes: Mapping[tuple[int, int], Route] = field(default_factory=dict)

    def with_routes(self, added: Sequence[Route]) -> RoutingTable:
        """A table that also holds `added`."""
        return RoutingTable({**self.routes, **{route.key: route for route in added}})

    def without_epoch(self, epoch: int) -> RoutingTable:
        """A table without one epoch."""
        return RoutingTable({key: route for key, route in self.routes.items() if key[0] != epoch})

    def peers(self, side: Literal["previous", "next"]) -> frozenset[PeerRef]:
        """Everybody at one side of any route."""
        return frozenset(getattr(route.spec, side) for route in self.routes.values())

    def windows(self, default: Window) -> dict[str, Window]:
        """What each peer before this agent may have under way, by name.

        The sum of what its routes ask for: items of one that wait must not keep those of another out.
        """
        items: dict[str, int] = {}
        for route in self.routes.values():
            name = route.spec.previous.name
            items[name] = items.get(name, 0) + (route.spec.credit or default.items)
        return {name: replace(default, items=count) for name, count in items.items()}
