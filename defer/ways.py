"""Which of a device's addresses is used, where it has several: ethernet and wireless, say.

The fastest that answers from here, as measured; where the file declares the bandwidth to the device, what is declared is
believed, and the first that answers in the file's order is taken. One address per device: its neighbours reach it there
as well.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import msgspec

from defer.documents.address import Address, parse_address
from defer.documents.cluster import Cluster, Device
from defer.errors import DeferError
from defer.link_probe import measure_from_here
from defer.units import show_bandwidth
from node_agent.errors import AgentError
from node_agent.messages import PeerRef
from node_agent.security import Security

ANSWER_S = 1.0
"""An address where nobody accepts a connection within this is not reached now."""

BUDGET_S = 0.25
"""Seconds of probing per address."""

ALIKE = 1.1
"""An address further down the list must be faster by more than this."""


@dataclass(frozen=True, slots=True)
class Way:
    """An address of a device.

    Attributes:
        address: `host:port`.
        reached: Whether somebody accepts connections there.
        bytes_per_s: As measured; None where it was not.
    """

    address: str
    reached: bool
    bytes_per_s: float | None = None

    def __str__(self) -> str:
        if not self.reached:
            return f"{self.address} does not answer"
        speed = "" if self.bytes_per_s is None else f" at {show_bandwidth(self.bytes_per_s)}"
        return f"{self.address}{speed}"


def with_fastest(
    cluster: Cluster,
    *,
    security: Security,
    on_chosen: Callable[[str, Sequence[Way]], None] | None = None,
) -> Cluster:
    """The cluster with each device at its fastest address; waits for `ANSWER_S` and `BUDGET_S` per address.

    Args:
        cluster: As its file says.
        security: How connections are protected.
        on_chosen: Told of each device that has several addresses and what is known of them, the chosen one first.
    """
    home = cluster.dispatcher.device
    stated = {link.target for link in cluster.directed_links() if link.source == home and link.bandwidth}
    several = [device for device in cluster.devices if device.also]
    with ThreadPoolExecutor(max(1, len(several)), thread_name_prefix="defer-ways") as threads:
        reached = list(threads.map(_reached, several))
    for device, ways in zip(several, reached, strict=True):
        # One after the other, so that they do not share a wire.
        measured = ways if device.name in stated else _measured(device.name, ways, security)
        chosen = best(measured)
        cluster = at(cluster, device.name, chosen.address)
        if on_chosen is not None:
            on_chosen(device.name, [chosen, *(way for way in measured if way is not chosen)])
    return cluster


def best(ways: Sequence[Way]) -> Way:
    """The fastest that is reached, an earlier one where they are alike; the first where none is."""
    found = ways[0]
    for way in ways[1:]:
        if way.reached and (
            not found.reached or (way.bytes_per_s or 0.0) > ALIKE * (found.bytes_per_s or float("inf"))
        ):
            found = way
    return found


def at(cluster: Cluster, name: str, address: str) -> Cluster:
    """The cluster with a device at another of its addresses."""

    def moved(device: Device) -> Device:
        if device.name != name or device.address == address:
            return device
        others = tuple(each for each in (device.address, *device.also) if each != address)
        return msgspec.structs.replace(device, address=address, also=others)

    return msgspec.structs.replace(cluster, devices=tuple(moved(device) for device in cluster.devices))


def answers(address: str, timeout: float = ANSWER_S) -> bool:
    """Whether somebody accepts connections there; says nothing, and hangs up."""
    where = parse_address(address)
    with contextlib.suppress(OSError), socket.create_connection((where.host, where.port), timeout):
        return True
    return False


def _reached(device: Device) -> list[Way]:
    return [Way(address, answers(address)) for address in (device.address, *device.also)]


def _measured(name: str, ways: Sequence[Way], security: Security) -> list[Way]:
    if sum(way.reached for way in ways) < 2:
        return list(ways)
    found = []
    for way in ways:
        if way.reached:
            where = parse_address(way.address)
            data = Address(where.host, where.port + 1).endpoint()
            try:
                rate = measure_from_here(PeerRef(name, data), budget_s=BUDGET_S, security=security)
            except (AgentError, DeferError):
                way = replace(way, reached=False)
            else:
                way = replace(way, bytes_per_s=rate.bandwidth)
        found.append(way)
    return found
