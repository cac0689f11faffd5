"""Devices that the cluster file does not name and that have registered: how they become part of the cluster. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec

from defer.documents.cluster import Cluster, Device, Link
from defer.documents.plan import Plan
from defer.errors import DeferError, InvalidCluster
from node_agent.messages import Offer


def with_joined(cluster: Cluster, name: str, offer: Offer | None, joined: Collection[str] = ()) -> Cluster:
    """The cluster with a device that has registered by itself.

    It dials, unless its offer says where it can be dialled. Where only declared links carry anything (`mesh = false`),
    it gets one to the dispatcher's device.

    Args:
        cluster: As it is.
        name: What the agent is called.
        offer: What it brings; None for one that is not there yet, of which only the name is known.
        joined: Devices that joined before: one of them takes its place again, as it says now.

    Raises:
        InvalidCluster: The name or the address cannot be one, or is taken by a device of the file.
    """
    if name in cluster.names and name not in joined:
        raise InvalidCluster(f"the cluster file has a device {name!r} already", where=name)
    address = offer.address if offer is not None else ""
    others = tuple(device for device in cluster.devices if device.name != name)
    links = tuple(link for link in cluster.links if all(name not in pair for pair in link.pairs))
    if not cluster.network.mesh:
        links += (Link(between=(cluster.dispatcher.device, name)),)
    added = Device(name=name, address=address, dials=not address)
    changed = msgspec.structs.replace(cluster, devices=(*others, added), links=links)
    changed.problems()
    return changed


def expecting(cluster: Cluster, plans: Iterable[Plan]) -> tuple[Cluster, frozenset[str]]:
    """The cluster with the devices that plans of an earlier process use and the file does not name, and which they are.

    They had joined, and will again: until then they are missing, as a device of the file would be.
    """
    names: set[str] = set()
    for plan in plans:
        for _, leg in plan.legs:
            names |= {device for transfer in leg.transfers for device in transfer.path}
            names |= {stage.device for stage in leg.stages}
    expected: set[str] = set()
    for name in sorted(names - set(cluster.names)):
        try:
            cluster = with_joined(cluster, name, None)
        except DeferError:
            continue  # a name that a device cannot have: its plan cannot be served, and says so itself
        expected.add(name)
    return cluster, frozenset(expected)
