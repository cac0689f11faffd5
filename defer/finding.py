"""From addresses to a cluster: greet the agents, learn how they are reached from here, time the links between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from defer.agents import AgentPool
from defer.cluster_writing import Findings, FoundDevice, FoundLink, cluster_text
from defer.connecting import connect_all
from defer.documents.address import Address
from defer.documents.cluster import Cluster, loads_cluster
from defer.errors import AgentUnreachable, DeferError, InvalidCluster
from defer.greeting import Answered, Greeted, Silent, way_to
from defer.hops import DISPATCHER
from defer.link_probe import probe_responder
from node_agent.security import Security

Step = Callable[[str, float], None]

PORT = 7600
"""Where a dispatcher listens unless another port is given."""


def findings(greeted: Sequence[Greeted], *, port: int = PORT, at: str = "") -> Findings:
    """What answered, and where the dispatcher is to listen so that all of it can reach this machine.

    Args:
        greeted: As `greeting.greet` returned it.
        port: The dispatcher's first port.
        at: When, for the file.

    Raises:
        AgentUnreachable: Nobody answered; where one address was tried, what happened there.
        InvalidCluster: Two agents have one name.
    """
    answered = [each for each in greeted if isinstance(each, Answered)]
    silent = [each for each in greeted if isinstance(each, Silent)]
    if not answered:
        raise silent[0].error if len(silent) == 1 else _nobody(silent)
    first: dict[str, Answered] = {}
    also: dict[str, list[str]] = {}
    for each in answered:
        before = first.setdefault(each.name, each)
        if before is not each:
            also.setdefault(each.name, []).append(str(each.address))
        if before.boot != each.boot:
            raise InvalidCluster(
                f"the agents at {before.address} and {each.address} are both called {each.name!r}",
                hint="start one of them with another --name",
            )
    devices = tuple(
        FoundDevice(each.name, str(each.address), each.offer, tuple(also.get(each.name, ())))
        for each in first.values()
    )
    listen, advertise = _doorstep([each.address for each in first.values()], port)
    reasons = {str(each.address): str(each.error) for each in silent}
    return Findings(devices, (), str(listen), advertise, reasons, at)


def with_links(found: Findings, *, security: Security, timeout: float, on_step: Step) -> Findings:
    """The same with every direction between two devices timed, one after the other.

    Args:
        found: As `findings` returned it.
        security: How connections are protected; this process is a dispatcher.
        timeout: Seconds to wait for each agent.
        on_step: Told what is being measured, and how far it is.

    Raises:
        AgentUnreachable: An agent that answered before does not answer any more.
    """
    # Here, because these need the planner's packages, and a file can be written without.
    from defer.deployer import place_of
    from defer.link_measuring import encryption_costs, measure_one, without_encryption

    cluster = loads_cluster(cluster_text(found), "what `defer init` found")
    host = cluster.dispatcher_host
    with probe_responder(host, security) as here, AgentPool(DISPATCHER, security=security) as pool:
        connect_all(pool, cluster, timeout=timeout)
        places = {device.name: place_of(pool, cluster, device.name) for device in cluster.agents}
        encryption = encryption_costs(pool, cluster)
        links: list[FoundLink] = []
        wanted = cluster.directed_links()
        for number, link in enumerate(wanted):
            on_step(f"{link.source} → {link.target}", number / len(wanted))
            try:
                measured = measure_one(
                    pool, link.source, link.target, cluster.dispatcher.device, places, here
                )
            except DeferError as error:
                links.append(FoundLink(link.source, link.target, problem=error.message))
                continue
            if measured is not None:
                [plain] = without_encryption([measured], encryption)
                links.append(FoundLink(link.source, link.target, plain.bytes_per_s, plain.delay_s))
    return Findings(
        found.devices, tuple(links), found.listen, found.advertise, found.silent, found.at, found.home
    )


def checked(text: str) -> Cluster:
    """The cluster of a file that was just made, as `defer serve` would take it."""
    cluster = loads_cluster(text, "what `defer init` found")
    cluster.check_serving()
    return cluster


def _doorstep(agents: Sequence[Address], port: int) -> tuple[Address, str]:
    """Where to listen, and what to advertise: one address where all agents are reached from the same one."""
    own = Counter(way_to(address) for address in agents if not address.is_loopback)
    if not own:
        return Address("127.0.0.1", port), ""
    [(host, _)] = own.most_common(1)
    if len(own) == 1 and all(not address.is_loopback for address in agents):
        return Address(host, port), ""
    return Address("::" if ":" in host else "0.0.0.0", port), host  # noqa: S104 - the way that most agents take is advertised


def _nobody(silent: Sequence[Silent]) -> AgentUnreachable:
    return AgentUnreachable(
        f"none of {len(silent)} addresses answered; the first: {silent[0].error.message}"
        if silent
        else "no agent was found",
        hint=silent[0].error.hint if silent else "give addresses: `defer init 10.0.0.2:7700 10.0.0.3:7700`",
    )
