"""What a cluster file must not say, beyond types. Every error names the place and the way out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from defer import units
from defer.documents.address import Address, parse_address
from defer.errors import DeferError, InvalidCluster
from node_agent.codecs import CODECS
from node_agent.engines.fallback import FALLBACK
from node_agent.quantities import NAME_RULE, is_name

if TYPE_CHECKING:
    from defer.documents.cluster import Cluster, Device


CHOSEN_PORTS = 32768
"""From here on the system hands ports out (Linux' `ip_local_port_range`): an agent that listens on port 0 gets three
that do not follow each other, and the cluster file does not tell."""


def check_cluster(cluster: Cluster) -> None:
    """Finds the first contradiction.

    Raises:
        InvalidCluster: A name twice or unknown, an address that nobody can dial, a wrong unit, or a link that
            cannot be.
    """
    _check_devices(cluster)
    _check_dispatcher(cluster)
    _check_ports(cluster)
    _check_links(cluster)
    _check_network(cluster)


def check_serving(cluster: Cluster) -> None:
    """Checks what a dispatcher needs that starts on this file, and planning does not.

    Raises:
        InvalidCluster: Agents on other machines could not hand results back.
    """
    listen = parse_address(cluster.dispatcher.listen, "dispatcher.listen")
    if cluster.device(cluster.dispatcher.device).dials:
        return
    away = [
        device.name
        for device in cluster.agents
        if device.address and not parse_address(device.address, "address").is_loopback
    ]
    if listen.is_loopback and away:
        raise InvalidCluster(
            f"the dispatcher listens on {listen.host}, where {away[0]!r} cannot reach it",
            where="dispatcher.listen",
            hint='write listen = "0.0.0.0:7600" and advertise = "this machine\'s address"',
        )
    if listen.is_wildcard and not cluster.dispatcher.advertise and away:
        raise InvalidCluster(
            "the dispatcher listens on all interfaces and does not say at which one agents reach it",
            where="dispatcher.advertise",
            hint='write advertise = "this machine\'s address"',
        )


def _check_devices(cluster: Cluster) -> None:
    seen: dict[str, int] = {}
    for number, device in enumerate(cluster.devices):
        place = f"device[{number}]"
        _check_name(device.name, f"{place}.name")
        if device.name in seen:
            raise InvalidCluster(
                f"the name {device.name!r} is taken by device[{seen[device.name]}]",
                where=f"{place}.name",
                hint="give each device its own name",
            )
        seen[device.name] = number
        _check_address(cluster, device, place)
        _parsed(units.SIZE, device.memory, f"{place}.memory", least=1)
        _parsed(units.SPEED, device.speed, f"{place}.speed", least=1)
        _check_costs(device, place)
        _check_fallback(device, place)
    if not any(device.computes for device in cluster.devices):
        raise InvalidCluster(
            "no device computes",
            where="device",
            hint='add [[device]] with a name and an address = "host:port"',
        )


def _check_fallback(device: Device, place: str) -> None:
    """The one option of engines that is ours; what the others may be, the agent knows."""
    for key, value in device.engine_options.items():
        if (key == FALLBACK or key.endswith(f".{FALLBACK}")) and value not in ("yes", "no"):
            raise InvalidCluster(
                f"{value!r} is neither yes nor no",
                where=f"{place}.engine_options.{key}",
                hint='write "yes" (the usual: the CPU takes over what the engine cannot run) or "no" (that is an error)',
            )


def _check_costs(device: Device, place: str) -> None:
    _finite(device.price, f"{place}.price")
    _parsed(units.POWER, device.power, f"{place}.power")
    _parsed(units.POWER, device.idle_power, f"{place}.idle_power")
    _parsed(units.BANDWIDTH, device.encryption, f"{place}.encryption", least=1)
    if device.added_watts < 0:
        raise InvalidCluster(
            f"{device.name!r} would draw less while it works ({device.power or 'no power given'}) than while it "
            f"idles ({device.idle_power})",
            where=f"{place}.idle_power",
            hint="power is what it draws in all while it works",
        )


def _finite(value: float, place: str) -> None:
    # TOML knows inf, which no price can be; nan and a minus sign are refused by the type.
    if not math.isfinite(value):
        raise InvalidCluster(f"{value} is not an amount", where=place, hint="for example 0.12")


def _check_address(cluster: Cluster, device: Device, place: str) -> None:
    if device.address and device.dials:
        raise InvalidCluster(
            f"{device.name!r} has an address and dials out as well",
            where=f"{place}.address",
            hint="remove `address` if nobody can dial it, or `dials` if the dispatcher can",
        )
    if device.also and not device.address:
        raise InvalidCluster(
            f"{device.name!r} has further addresses and no first one",
            where=f"{place}.also",
            hint="write the address that you prefer as `address`, and the others as `also`",
        )
    for where, text in _addresses(device, place):
        _check_dialled(parse_address(text, where), where)
    home = device.name == cluster.dispatcher.device and not device.computes
    if not device.has_agent and not home:
        raise InvalidCluster(
            f"{device.name!r} has no address",
            where=place,
            hint='add address = "host:port" of its agent, or dials = true if its agent dials out'
            + (", or computes = false" if device.name == cluster.dispatcher.device else ""),
        )


def _addresses(device: Device, place: str) -> list[tuple[str, str]]:
    """Where each of its addresses stands, and what it says."""
    first = [(f"{place}.address", device.address)] if device.address else []
    return first + [(f"{place}.also[{number}]", text) for number, text in enumerate(device.also)]


def _check_dialled(address: Address, where: str) -> None:
    if address.port == 0:
        raise InvalidCluster(
            "port 0 means any port, which nobody can dial",
            where=where,
            hint="name the port that the agent prints when it starts",
        )
    if address.is_wildcard:
        raise InvalidCluster(
            f"{address.host} is an address to listen on, not one to dial",
            where=where,
            hint="name the device's own address",
        )


def _check_dispatcher(cluster: Cluster) -> None:
    _parsed(units.DURATION, cluster.dispatcher.routing_v, "dispatcher.routing_v")
    for key, least in (
        ("replan_after", 0.1),
        ("replan_pause", 0.1),
        ("replan_horizon", 0.0),
        ("canary", 0.0),
    ):
        _parsed(units.DURATION, getattr(cluster.dispatcher, key), f"dispatcher.{key}", least=least)
    if cluster.dispatcher.device not in cluster.names:
        raise InvalidCluster(
            f"no [[device]] is named {cluster.dispatcher.device!r}",
            where="dispatcher.device",
            hint=f'add [[device]] with name = "{cluster.dispatcher.device}" and computes = false',
        )
    parse_address(cluster.dispatcher.listen, "dispatcher.listen")
    if cluster.dispatcher.advertise:
        parse_address(f"{cluster.dispatcher.advertise}:1", "dispatcher.advertise")


def _check_ports(cluster: Cluster) -> None:
    """Whoever listens takes three ports, so two on one host must be three apart."""
    listen = parse_address(cluster.dispatcher.listen, "dispatcher.listen")
    taken: list[tuple[str, int, str]] = []
    if listen.port:
        host = cluster.dispatcher.advertise or ("localhost" if listen.is_wildcard else listen.host)
        taken.append((_host(host), listen.port, "the dispatcher"))
    places = [
        (device, *each)
        for number, device in enumerate(cluster.devices)
        for each in _addresses(device, f"device[{number}]")
    ]
    for device, where, text in places:
        address = parse_address(text, where)
        host = _host(address.host)
        for other, port, who in taken:
            near = abs(port - address.port) < 3 and max(port, address.port) < CHOSEN_PORTS
            if other == host and (port == address.port or near):
                raise InvalidCluster(
                    f"{device.name!r} has the address of {who}, {address}"
                    if port == address.port
                    else f"{device.name!r} takes the ports {address.port} to {address.port + 2} of {address.host}, "
                    f"and {who} takes {port} to {port + 2}",
                    where=where,
                    hint="each takes its port and the next two: keep ports of one host at least three apart",
                )
        taken.append((host, address.port, repr(device.name)))


def _host(host: str) -> str:
    address = Address(host, 1)
    # 127.0.0.2 is another host on purpose; localhost and ::1 are what people write for the same one.
    return "127.0.0.1" if host == "localhost" or (address.is_loopback and ":" in host) else host.lower()


def _check_links(cluster: Cluster) -> None:
    seen: dict[tuple[str, str], int] = {}
    for number, link in enumerate(cluster.links):
        place = f"link[{number}]"
        if (link.between is None) == (not link.source and not link.target) or (
            link.between is None and not (link.source and link.target)
        ):
            raise InvalidCluster(
                "say either between = [a, b] or from = a and to = b",
                where=place,
                hint='for example between = ["desk", "jetson"]',
            )
        for pair in link.pairs:
            _check_pair(cluster, pair, place)
            if pair in seen:
                raise InvalidCluster(
                    f"the link {pair[0]} → {pair[1]} is described by link[{seen[pair]}] already",
                    where=place,
                    hint="keep one of them",
                )
            seen[pair] = number
        _parsed(units.BANDWIDTH, link.bandwidth, f"{place}.bandwidth", least=1)
        _parsed(units.DURATION, link.delay, f"{place}.delay")
        _finite(link.price_per_gb, f"{place}.price_per_gb")
        _finite(link.joules_per_gb, f"{place}.joules_per_gb")
        if link.half_duplex and (link.between is None or link.medium is not None):
            raise InvalidCluster(
                "half_duplex is for a link both ways that shares its capacity with no other",
                where=f"{place}.half_duplex",
                hint="write between = [a, b] without medium; links that name the same medium share it anyway",
            )


def _check_pair(cluster: Cluster, pair: tuple[str, str], place: str) -> None:
    for name in pair:
        if name not in cluster.names:
            raise InvalidCluster(
                f"no [[device]] is named {name!r}",
                where=place,
                hint=f"devices are {', '.join(cluster.names)}",
            )
    if pair[0] == pair[1]:
        raise InvalidCluster(f"a link from {pair[0]!r} to itself", where=place, hint="name two devices")
    if cluster.device(pair[0]).dials and cluster.device(pair[1]).dials:
        raise InvalidCluster(
            f"{pair[0]!r} and {pair[1]!r} both dial out, so neither can reach the other",
            where=place,
            hint="remove the link, or give one of them an address",
        )


def _check_network(cluster: Cluster) -> None:
    _parsed(units.BANDWIDTH, cluster.network.bandwidth, "network.bandwidth", least=1)
    _parsed(units.DURATION, cluster.network.delay, "network.delay")
    name = cluster.network.codec
    if name != "auto" and name not in CODECS:
        raise InvalidCluster(
            f"codec {name!r} is unknown", where="network.codec", hint=f"known: auto, {', '.join(CODECS)}"
        )


def _check_name(name: str, place: str) -> None:
    if not is_name(name):
        raise InvalidCluster(f"{name!r:.80} is not a name", where=place, hint=NAME_RULE)


def _parsed(quantity: units.Quantity, text: str | None, place: str, least: float = 0.0) -> None:
    if text is None:
        return
    try:
        value = units.parse(text, quantity)
    except DeferError as exc:
        raise InvalidCluster(exc.message, where=place, hint=exc.hint) from exc
    if value < least:
        raise InvalidCluster(f"{text!r} is too small", where=place, hint=f"for example {quantity.example!r}")
