"""A model whose result says which layers ran, in which order and of which version: the whole of one version, or wrong.

A model of version v has `LAYERS` layers; layer k makes of x: 31·x + 1000·v + k, modulo 2⁶¹ − 1. The last one also adds
the model's input where the model has a skip connection, so that a tensor travels beside the activations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from defer.documents.plan import Plan
from defer.hops import DISPATCHER, Layout, Part, Place, lay_out
from node_agent.messages import FileRef, TensorSpec

LAYERS = 6
PRIME = (1 << 61) - 1
Values = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Version:
    """One version of the model.

    Attributes:
        number: Enters the result.
        skip: Whether the last layer adds the model's input.
    """

    number: int
    skip: bool

    def layers(self, values: Sequence[int], first: int, last: int) -> list[int]:
        """Layers `first` up to, not including, `last` of some values."""
        for layer in range(first, last):
            values = [(31 * x + 1000 * self.number + layer) % PRIME for x in values]
        return list(values)

    def whole(self, values: Sequence[int]) -> list[int]:
        """What the whole model makes of some values."""
        out = self.layers(values, 0, LAYERS)
        return [(y + x) % PRIME for x, y in zip(values, out, strict=True)] if self.skip else out


@dataclass(frozen=True, slots=True)
class Piece:
    """The layers of one partition, as an engine's session."""

    version: Version
    first: int
    last: int
    engine: str = "simulated"
    notes: tuple[str, ...] = ()

    def run(self, inputs: Mapping[str, Values]) -> dict[str, Values]:
        """The activation after the last layer."""
        out = self.version.layers(inputs[name_of(self.first)].tolist(), self.first, self.last)
        if self.last == LAYERS and self.version.skip:
            out = [(y + x) % PRIME for x, y in zip(inputs["x"].tolist(), out, strict=True)]
        return {name_of(self.last): np.array(out, np.int64)}

    def close(self) -> None:
        """Nothing is held."""


def name_of(boundary: int) -> str:
    """The tensor before layer `boundary`."""
    return "x" if boundary == 0 else "y" if boundary == LAYERS else f"h{boundary}"


def spec(name: str) -> TensorSpec:
    """Its type: any number of integers."""
    return TensorSpec(name, "int64", ("N",))


def file_of(version: Version, first: int, last: int) -> FileRef:
    """The file of a partition."""
    text = f"{version.number} {version.skip} {first} {last}"
    return FileRef(hashlib.sha256(text.encode()).hexdigest(), 1000, ".onnx")


class _Bare(SimpleNamespace):
    """A plan's part with what numbering hops needs; of what else it may have it has nothing."""

    def __getattr__(self, name: str) -> None:
        return None


def layout(
    version: Version,
    stages: Sequence[tuple[str, int, int]],
    relays: Mapping[int, Sequence[str]],
    places: Mapping[str, Place],
    dispatcher: Place,
    credit_bytes: int,
    codec: str = "raw",
) -> Layout:
    """The hops of a chain of stages, numbered by the product's own code.

    Args:
        version: The model.
        stages: Device, first layer and end of each.
        relays: Devices passed on the way to stage number so-and-so.
        places: Where devices are.
        dispatcher: Where the dispatcher is.
        credit_bytes: Assumed bytes of an activation, from which credits follow.
        codec: Of what travels between stages.
    """
    parts: list[Part] = []
    transfers: list[Any] = []
    before = DISPATCHER
    for number, (device, first, last) in enumerate(stages):
        skipped = ("x",) if version.skip and first > 0 else ()
        names = (name_of(first), *skipped)
        path = (before, *relays.get(number, ()), device)
        transfers.append(_Bare(path=path, tensors=names, codec=codec, seconds=0.001, nbytes=credit_bytes))
        takes = (name_of(first), *(skipped if last == LAYERS else ()))
        specs = tuple(map(spec, takes))
        parts.append(Part(file_of(version, first, last), (), specs, (spec(name_of(last)),), specs))
        before = device
    transfers.append(_Bare(path=(before, DISPATCHER), tensors=("y",), codec="raw", seconds=0.001, nbytes=1))
    plan = _Bare(transfers=transfers, stages=[_Bare(device=d, seconds=0.002) for d, _, _ in stages])
    return lay_out(cast(Plan, plan), parts, places, dispatcher)
