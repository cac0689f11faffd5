"""Agents and dispatchers that announce themselves on the local network by multicast DNS (zeroconf).

What is found is a hint: a name and addresses that anybody on the network could have sent. It is greeted as an address
that was typed in, and where connections have keys, whoever answers must prove to have one that is authorised here.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from defer.documents.address import Address
from defer.errors import MissingExtra, NotReady
from node_agent.announcing import AGENT, DISPATCHER
from node_agent.quantities import is_name

Kind = Literal["agent", "dispatcher"]

KINDS: dict[Kind, str] = {"agent": AGENT, "dispatcher": DISPATCHER}

ASK_MS = 2000
"""Longest wait for the address of something that was announced."""

MOST = 256
"""Announcements that are looked at: anybody can send any number."""


@dataclass(frozen=True, slots=True)
class Announced:
    """Something that announced itself.

    Attributes:
        kind: What it says it is.
        name: What it says it is called; empty where that is no name.
        addresses: Where it says it listens.
        keys: Whether it says that it needs keys.
    """

    kind: Kind
    name: str
    addresses: tuple[Address, ...]
    keys: bool


def browse(
    seconds: float,
    kinds: Sequence[Kind] = ("agent", "dispatcher"),
    *,
    interfaces: Sequence[str] | None = None,
    on_found: Callable[[Announced], None] | None = None,
) -> tuple[Announced, ...]:
    """Listen for announcements.

    Args:
        seconds: How long.
        kinds: Of what.
        interfaces: Own addresses to listen at; all interfaces by default, loopback included.
        on_found: Told of each as it is found, in another thread.

    Returns:
        All that were heard, by kind and name.

    Raises:
        MissingExtra: zeroconf is not installed.
        NotReady: Multicast does not work on this machine.
    """
    try:
        from zeroconf import InterfaceChoice, ServiceBrowser, ServiceListener, Zeroconf
    except ImportError as error:
        raise MissingExtra(
            "finding agents by their announcements needs the package zeroconf, which is not installed",
            hint='pip install "defer-edge[discovery]", or give addresses: HOST:PORT',
        ) from error

    found: dict[str, Announced] = {}

    class Listener(ServiceListener):
        def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
            if len(found) >= MOST:
                return
            info = zc.get_service_info(type_, name, ASK_MS)
            if info is None or not info.port:
                return
            known = _read(type_, name, info.parsed_scoped_addresses(), info.port, info.properties)
            if known is not None:
                found[name] = known
                if on_found is not None:
                    on_found(known)

        def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
            self.add_service(zc, type_, name)

        def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:  # noqa: ARG002
            found.pop(name, None)

    try:
        zeroconf = Zeroconf(interfaces=list(interfaces) if interfaces else InterfaceChoice.All)
    except OSError as error:
        raise NotReady(
            f"multicast does not work on this machine: {error.strerror or error}",
            hint="give addresses instead: HOST:PORT",
        ) from error
    try:
        browser = ServiceBrowser(zeroconf, [KINDS[kind] for kind in kinds], Listener())
        time.sleep(seconds)
        browser.cancel()
    finally:
        zeroconf.close()
    return tuple(sorted(set(found.values()), key=lambda each: (each.kind, each.name, str(each.addresses))))


def _read(
    service: str, instance: str, addresses: Sequence[str], port: int, text: dict[bytes, bytes | None]
) -> Announced | None:
    """An announcement as far as it makes sense; None where it names no address."""
    kind: Kind = "agent" if service == AGENT else "dispatcher"
    name = (text.get(b"name") or b"").decode(errors="replace")
    if not name:
        name = instance.removesuffix(f".{service}").rpartition("-")[0]
    places = tuple(Address(each, port) for each in addresses if _is_address(each))
    if not places:
        return None
    return Announced(kind, name if is_name(name) else "", places, text.get(b"keys") == b"1")


def _is_address(text: str) -> bool:
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return False
    # What needs a scope to be dialled would be written into a file that knows none.
    return not (ip.is_unspecified or ip.is_multicast or (ip.version == 6 and ip.is_link_local))
