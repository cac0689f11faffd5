"""How fast the links between devices are: one direction at a time, timed by the processes at its ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from defer.agents import AgentPool
from defer.asking import ask_again
from defer.documents.cluster import Cluster
from defer.documents.profile import LinkProfile
from defer.errors import AgentFault
from defer.hops import Place
from defer.link_probe import measure_from_here
from node_agent import messages as m
from node_agent.encryption import measure_encryption

LINK_BUDGET_S = 0.25
"""Seconds of probing per direction of a link."""

MEASURE_LINK_TIMEOUT_S = 60.0
"""A probe over a link of 1 Mbit/s takes seconds."""


def measure_one(
    pool: AgentPool, left: str, right: str, source: str, places: Mapping[str, Place], dispatcher: Place
) -> LinkProfile | None:
    """One direction of a link; None where its sender cannot dial its receiver.

    Probes go the way that items go. Where the receiver is the one that dials, the other direction's figure would be a
    guess, and the planner falls back to the cluster file's.

    Args:
        pool: Connections to the agents.
        left: The sending device.
        right: The receiving device.
        source: The dispatcher's device.
        places: Where each agent is reached on the data plane.
        dispatcher: Where the dispatcher's data socket answers probes.

    Raises:
        AgentFault: The sender could not reach the receiver.
        AgentUnreachable: The sender did not answer.
    """
    peer = dispatcher if right == source and right not in places else places[right]
    if peer.dials:
        return None
    target = m.PeerRef(peer.name, peer.data)
    if left == source and left not in places:
        answer: m.ControlMessage = measure_from_here(target, budget_s=LINK_BUDGET_S, security=pool.security)
    else:
        question = m.MeasureLink(0, target, budget_s=LINK_BUDGET_S)
        answer = ask_again(pool, left, question, timeout=MEASURE_LINK_TIMEOUT_S)
    if not isinstance(answer, m.LinkMeasured):
        raise AgentFault(f"agent {left!r} answered {type(answer).__name__} to MeasureLink")
    link = LinkProfile.of(left, right, answer.bandwidth, answer.delay)
    return msgspec.structs.replace(
        link,
        send_byte_s=_of_device(pool, left, answer.send_byte_s),
        receive_byte_s=_of_device(pool, right, answer.receive_byte_s),
    )


def _of_device(pool: AgentPool, name: str, processor_s: float) -> float:
    """Seconds that a byte takes a device, without encryption; a dispatcher's own device is not planned with."""
    known = pool.liveness(name)
    if known is None or known.offer is None:
        return processor_s
    encrypting = known.offer.encryption_byte_s if pool.security.curve else 0.0
    return max(0.0, processor_s - encrypting) / (known.offer.cores or 1.0)


def encryption_costs(pool: AgentPool, cluster: Cluster) -> dict[str, float]:
    """Seconds per encrypted byte of each device; empty where connections have no keys."""
    if not pool.security.curve:
        return {}
    known = {device.name: pool.liveness(device.name) for device in cluster.agents}
    found = {
        name: agent.offer.encryption_byte_s
        for name, agent in known.items()
        if agent is not None and agent.offer is not None
    }
    return {cluster.dispatcher.device: measure_encryption()} | found


def without_encryption(
    links: Sequence[LinkProfile], encryption: Mapping[str, float]
) -> tuple[LinkProfile, ...]:
    """Links as they would carry plain bytes.

    A probe is encrypted, sent and decrypted one after the other; planning counts encryption as work of the devices,
    and would count it twice. At least a tenth of a probe's time is the link's own, whatever the devices' figures say.
    """
    if not encryption:
        return tuple(links)
    plain = []
    for link in links:
        per_byte = 1 / link.bytes_per_s
        coded = encryption.get(link.source, 0.0) + encryption.get(link.target, 0.0)
        seconds = max(per_byte - coded, per_byte / 10)
        bare = LinkProfile.of(link.source, link.target, 1 / seconds, link.delay_s)
        work = {"send_byte_s": link.send_byte_s, "receive_byte_s": link.receive_byte_s}
        plain.append(msgspec.structs.replace(bare, **work))
    return tuple(plain)
