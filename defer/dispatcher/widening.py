"""Costs of a device that has joined, beside those of the devices that were there when a model was planned. Blocks."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec

from defer.agents import AgentPool
from defer.documents.cluster import Cluster, Network
from defer.documents.profile import CostProfile, LinkProfile
from defer.errors import DeferError
from defer.hops import Place
from node_agent.errors import AgentError

if TYPE_CHECKING:
    from defer.dispatcher.bringup import Order, Places
    from defer.dispatcher.planner import Conversation

logger = logging.getLogger("defer.dispatcher")


def widened(
    pool: AgentPool, cluster: Cluster, order: Order, planning: Conversation, places: Places, device: str
) -> CostProfile:
    """An order's profile with one more device: its blocks measured (or remembered), and its links to all others.

    Args:
        pool: Connections to the agents.
        cluster: With the device.
        order: With a profile.
        planning: Asked what computes for long.
        places: Where partitions and earlier measurements lie.
        device: Its name.

    Raises:
        DeferError: It could not be measured.
    """
    from defer.dispatcher.bringup import measure_all
    from defer.dispatcher.questions import Topic

    known = order.profile
    assert known is not None
    topic = Topic.of(order, places.parts)
    new = measure_all(pool, _alone(cluster, device), topic, places, planning, known=known)
    links = _links(pool, cluster, device, places.dispatcher, {**known.encryption, **new.encryption})
    return merged(known, msgspec.structs.replace(new, links=links))


def _alone(cluster: Cluster, device: str) -> Cluster:
    """The device, and the dispatcher's own, which computes nothing here; no links."""
    home = cluster.dispatcher.device
    devices = tuple(
        each if each.name == device else msgspec.structs.replace(each, computes=False)
        for each in cluster.devices
        if each.name in (device, home)
    )
    return msgspec.structs.replace(cluster, devices=devices, links=(), network=Network(mesh=False))


def _links(
    pool: AgentPool, cluster: Cluster, device: str, dispatcher: Place, encryption: dict[str, float]
) -> tuple[LinkProfile, ...]:
    """Both directions between a device and every other one that may talk to it, where the file does not say them."""
    from defer.deployer import place_of
    from defer.link_measuring import measure_one, without_encryption

    places: dict[str, Place] = {}
    for each in cluster.agents:
        known = pool.liveness(each.name)
        if known is not None and known.state == "alive":
            places[each.name] = place_of(pool, cluster, each.name)
    home, found = cluster.dispatcher.device, []
    for link in cluster.directed_links():
        ends = {link.source, link.target}
        if link.bandwidth is not None or device not in ends or not ends <= places.keys() | {home}:
            continue
        try:
            measured = measure_one(pool, link.source, link.target, home, places, dispatcher)
        except (DeferError, AgentError) as error:
            logger.warning("link %s → %s was not measured: %s", link.source, link.target, error)
            continue
        if measured is not None:
            found.append(measured)
    return without_encryption(found, encryption)


def merged(known: CostProfile, new: CostProfile) -> CostProfile:
    """Two profiles of the same blocks: what the second one says of a device or link goes before the first."""
    ends = {(link.source, link.target) for link in new.links}
    kept = tuple(link for link in known.links if (link.source, link.target) not in ends)
    ratios = {
        codec: tuple(map(min, known.codecs.get(codec, values), values))
        for codec, values in new.codecs.items()
    }
    return msgspec.structs.replace(
        known,
        devices={**known.devices, **new.devices},
        links=(*kept, *new.links),
        codecs={**known.codecs, **ratios},
        encryption={**known.encryption, **new.encryption},
    )


def compatible(first: CostProfile, second: CostProfile) -> bool:
    """Whether one is the other with more devices, so that what is believed of the one holds for the other."""
    common = first.devices.keys() & second.devices.keys()
    one, other = ({(link.source, link.target): link for link in each.links} for each in (first, second))
    return (
        first.digest == second.digest
        and first.positions == second.positions
        and all(first.devices[name] == second.devices[name] for name in common)
        and all(one[ends] == other[ends] for ends in one.keys() & other.keys())
    )
