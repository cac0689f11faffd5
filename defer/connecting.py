"""Reach every agent of a cluster, side by side, and learn what each offers."""

from __future__ import annotations

from collections.abc import Mapping

from defer.agents import AgentPool
from defer.deployer import in_parallel
from defer.documents.address import parse_address
from defer.documents.cluster import Cluster
from node_agent.messages import Offer


def agent_hosts(cluster: Cluster) -> list[str]:
    """Hosts of the agents that are dialled."""
    return [
        parse_address(address).host
        for device in cluster.agents
        if device.address and not device.dials
        for address in (device.address, *device.also)
    ]


def connect_all(pool: AgentPool, cluster: Cluster, *, timeout: float) -> Mapping[str, Offer]:
    """Connect to every device that has an agent.

    Args:
        pool: Started; agents that dial out need one that listens.
        cluster: The devices.
        timeout: Seconds to wait for each.

    Returns:
        The agents' offers, by device name.

    Raises:
        AgentUnreachable: One did not answer in time.
        ProtocolMismatch: One speaks no protocol version that we do.
    """

    def connect(name: str) -> Offer:
        device = cluster.device(name)
        return pool.connect(name, "" if device.dials else f"tcp://{device.address}", timeout=timeout)

    return in_parallel(connect, [device.name for device in cluster.agents])
