"""Tells the local network by multicast DNS (zeroconf) that a process of defer listens here.

Only where it was asked for, and only on the interfaces that the process listens on. An announcement is a hint where to
look, and never more: it carries a name, a port and whether keys are needed, nobody is let in or believed because of it,
and whoever looks greets the address as if a person had typed it. Imports `zeroconf` (extra `discovery`) when used.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from node_agent.errors import AddressInvalidError, PackageMissingError

if TYPE_CHECKING:
    from zeroconf import ServiceInfo, Zeroconf

log = logging.getLogger(__name__)

AGENT = "_defer-agent._tcp.local."
DISPATCHER = "_defer._tcp.local."
"""Service types, at most 15 characters each (RFC 6335)."""

LABEL_BYTES = 63
"""Longest label of a DNS name."""

VERSION = b"1"
"""Of the keys in the TXT record."""

LEAVE_S = 3.0
"""Longest that saying goodbye may take."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """What is told.

    Attributes:
        service: `AGENT` or `DISPATCHER`.
        name: Device name of the agent, or the dispatcher's.
        host: Where it listens: an address or name of this machine, or all interfaces.
        port: Its first port.
        boot: Differs for each start of the process.
        keys: Whether connections need keys.
    """

    service: str
    name: str
    host: str
    port: int
    boot: str
    keys: bool = False

    @property
    def instance(self) -> str:
        """Its name as a service: the device's, and part of the boot, so that two of one name are both seen."""
        tail = f"-{self.boot[:6]}"
        head = self.name.encode()[: LABEL_BYTES - len(tail)].decode(errors="ignore")
        return f"{head}{tail}.{self.service}"

    @property
    def text(self) -> dict[bytes, bytes]:
        """The TXT record: `v`, `name`, and `keys` as 0 or 1."""
        record = {b"v": VERSION, b"keys": b"1" if self.keys else b"0"}
        name = self.name.encode()
        # An entry has 255 bytes; the instance tells a name that is longer, as far as it goes.
        return record | ({b"name": name} if len(name) < 240 else {})


@contextlib.contextmanager
def announcing(announcement: Announcement) -> Iterator[None]:
    """Announce while the block runs; what fails on the network is logged and hinders nothing.

    Raises:
        PackageMissingError: The package is not installed.
        AddressInvalidError: The host has no address.
    """
    module = _zeroconf()
    interfaces, addresses = _where(announcement.host)
    info = module.ServiceInfo(
        announcement.service,
        announcement.instance,
        port=announcement.port,
        properties=announcement.text,
        # A host name of its own: the machine's belongs to whatever else announces it.
        server=f"defer-{announcement.boot[:16]}.local.",
        addresses=[ipaddress.ip_address(each).packed for each in addresses],
    )
    stop = threading.Event()
    # Sockets are opened and closed there: joining multicast groups may take long, and hinders nobody.
    thread = threading.Thread(
        target=_announce, args=(module, info, interfaces, stop), name="defer-announce", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(LEAVE_S)


def _announce(module: Any, info: ServiceInfo, interfaces: Any, stop: threading.Event) -> None:
    try:
        zeroconf: Zeroconf = module.Zeroconf(interfaces=interfaces)
    except OSError as error:
        log.warning("Nothing is announced: multicast does not work here (%s).", error.strerror or error)
        return
    try:
        # Without asking around first: the instance's name holds the boot, which nobody else has.
        zeroconf.register_service(info, cooperating_responders=True)
        stop.wait()
    except Exception as error:  # the library's own errors as well: serving goes on without it
        log.warning("Nothing is announced: %s", error)
    finally:
        with contextlib.suppress(OSError):
            zeroconf.close()  # takes the announcement back


def _zeroconf() -> Any:
    try:
        import zeroconf
    except ImportError:
        raise PackageMissingError(
            "Announcing needs the package zeroconf, which is not installed.",
            hint='pip install "defer-edge[discovery]"',
        ) from None
    return zeroconf


def _where(host: str) -> tuple[Any, list[str]]:
    """Interfaces to announce on, and the addresses to tell."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError as error:
        raise AddressInvalidError(
            f"Cannot announce {host}: {error.strerror or error}.",
            hint="Listen on an address of this machine.",
        ) from None
    addresses = sorted(str(each) for each in found)
    if all(not ipaddress.ip_address(each.partition("%")[0]).is_unspecified for each in addresses):
        # One family of addresses: a name is listened on by its IPv4 address.
        old = [each for each in addresses if ":" not in each]
        return old or addresses, old or addresses
    import ifaddr

    version6 = ":" in host
    own = [
        str(ip.ip[0] if isinstance(ip.ip, tuple) else ip.ip)
        for adapter in ifaddr.get_adapters()
        for ip in adapter.ips
        if version6 or not isinstance(ip.ip, tuple)
    ]
    reached = [each for each in own if not _only_here(each)]
    chosen = reached or own
    return [each for each in chosen if ":" not in each] or chosen, chosen


def _only_here(address: str) -> bool:
    """Whether an address means nothing to others without saying on which link."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    return ip.is_loopback or ip.is_link_local
