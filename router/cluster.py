"""What the plan runs on: devices and the directed links between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import networkx as nx

from router.errors import InvalidProblem


@dataclass(frozen=True, slots=True)
class Device:
    """One machine of the cluster.

    Attributes:
        name: unique in the cluster.
        memory: bytes that stages may fill; None = no limit.
        computes: False for a machine that may only relay, be the source or be the sink.
        power: watts drawn above idle while busy (joules per busy second).
        price: money per busy second.
        crypt_seconds_per_byte: seconds to encrypt or decrypt one byte of an encrypted link.
    """

    name: str
    memory: int | None = None
    computes: bool = True
    power: float = 0.0
    price: float = 0.0
    crypt_seconds_per_byte: float = 0.0


@dataclass(frozen=True, slots=True)
class Link:
    """A directed link; the way back is a link of its own.

    Attributes:
        source: name of the sending device.
        target: name of the receiving device.
        bandwidth: bytes per second, may be `math.inf`.
        delay: propagation delay in seconds.
        medium: links that name the same medium share one capacity: at any time one of them sends. A
            half-duplex link is two links on one medium of their own.
        encrypted: whether both ends pay their `crypt_seconds_per_byte`.
        joules_per_byte: energy of sending one byte, both ends together.
        price_per_byte: money for sending one byte.
    """

    source: str
    target: str
    bandwidth: float
    delay: float = 0.0
    medium: str | None = None
    encrypted: bool = False
    joules_per_byte: float = 0.0
    price_per_byte: float = 0.0


def _finite(value: float, *, positive: bool = False) -> bool:
    return math.isfinite(value) and (value > 0 if positive else value >= 0)


@dataclass(frozen=True)
class Cluster:
    """Devices and links; checked when made.

    Raises:
        InvalidProblem: a name used twice, a link to an unknown device or to itself, two links between the
            same two devices, or a number that is negative or not a number.
    """

    devices: Sequence[Device]
    links: Sequence[Link]
    _by_name: dict[str, Device] = field(init=False, repr=False, compare=False)
    _by_ends: dict[tuple[str, str], Link] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "devices", tuple(self.devices))
        object.__setattr__(self, "links", tuple(self.links))
        by_name: dict[str, Device] = {}
        for device in self.devices:
            if device.name in by_name:
                raise InvalidProblem(
                    f"device {device.name!r} is listed twice", hint="give each device its own name"
                )
            numbers = (device.power, device.price, device.crypt_seconds_per_byte)
            if not all(map(_finite, numbers)) or (device.memory is not None and device.memory < 0):
                raise InvalidProblem(f"device {device.name!r} has a negative or non-finite number")
            by_name[device.name] = device
        by_ends: dict[tuple[str, str], Link] = {}
        for link in self.links:
            where = f"link {link.source!r} -> {link.target!r}"
            for end in (link.source, link.target):
                if end not in by_name:
                    raise InvalidProblem(f"{where}: device {end!r} is not in the cluster")
            if link.source == link.target:
                raise InvalidProblem(f"{where} leads from a device to itself")
            if (link.source, link.target) in by_ends:
                raise InvalidProblem(f"{where} is listed twice", hint="keep the faster one")
            if not link.bandwidth > 0:
                raise InvalidProblem(f"{where}: bandwidth must be positive, not {link.bandwidth}")
            if not all(map(_finite, (link.delay, link.joules_per_byte, link.price_per_byte))):
                raise InvalidProblem(f"{where} has a negative or non-finite number")
            by_ends[link.source, link.target] = link
        object.__setattr__(self, "_by_name", by_name)
        object.__setattr__(self, "_by_ends", by_ends)

    def device(self, name: str) -> Device:
        """Return the device of that name; `InvalidProblem` when there is none."""
        try:
            return self._by_name[name]
        except KeyError:
            known = ", ".join(sorted(self._by_name))
            raise InvalidProblem(f"device {name!r} is not in the cluster", hint=f"known: {known}") from None

    def link(self, source: str, target: str) -> Link:
        """Return the link between two devices; `InvalidProblem` when there is none."""
        try:
            return self._by_ends[source, target]
        except KeyError:
            raise InvalidProblem(f"there is no link {source!r} -> {target!r}") from None

    def graph(self) -> nx.DiGraph[str]:
        """The cluster on networkx; nodes and edges carry their value as attribute `device` or `link`."""
        graph: nx.DiGraph[str] = nx.DiGraph()
        for device in self.devices:
            graph.add_node(device.name, device=device)
        for link in self.links:
            graph.add_edge(link.source, link.target, link=link)
        return graph
