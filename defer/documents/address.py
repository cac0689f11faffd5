"""`host:port`, as documents and options write it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from defer.errors import InvalidCluster

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,253}[A-Za-z0-9.])?$")


@dataclass(frozen=True, slots=True)
class Address:
    """Where something listens.

    Attributes:
        host: Name or IP address; an IPv6 address without its brackets.
        port: 0 to 65535; 0 where the system chooses.
    """

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        ip = _ip(self.host)
        return self.host == "localhost" if ip is None else ip.is_loopback

    @property
    def is_wildcard(self) -> bool:
        """Whether it names all interfaces."""
        ip = _ip(self.host)
        return ip is not None and ip.is_unspecified

    def endpoint(self, offset: int = 0) -> str:
        """ZeroMQ's way of writing it, `offset` ports further."""
        return f"tcp://{self._bracketed}:{self.port + offset}"

    @property
    def _bracketed(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host

    def __str__(self) -> str:
        return f"{self._bracketed}:{self.port}"


def parse_address(text: str, where: str = "") -> Address:
    """An address from `host:port` or `[v6]:port`.

    Args:
        text: What was written.
        where: Key or option that holds it, for messages.

    Raises:
        InvalidCluster: No host, no port, or a port out of range.
    """
    host, colon, port = text.strip().rpartition(":")
    hint = "write host:port, for example 192.168.1.11:7700 or [fe80::1]:7700"
    if "://" in text:
        scheme = text.strip().partition("://")[0]
        raise InvalidCluster(
            f"{text!r} has a scheme",
            where=where,
            hint=f"without {scheme}://: {hint}",
        )
    if not colon or not host:
        raise InvalidCluster(f"{text!r} has no {'host' if colon else 'port'}", where=where, hint=hint)
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise InvalidCluster(
            f"{port!r} is not a port", where=where, hint="a port is a number from 1 to 65535"
        )
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not isinstance(_ip(host), ipaddress.IPv6Address):
            raise InvalidCluster(f"{host!r} is not an IPv6 address", where=where, hint=hint)
    elif not _HOST.match(host):
        raise InvalidCluster(f"{host!r} is not a host", where=where, hint=hint)
    return Address(host, int(port))


def parse_addresses(text: str | Sequence[str], where: str = "") -> tuple[Address, ...]:
    """Several addresses, from a list or a text with commas: the dispatchers that share a state.

    Raises:
        InvalidCluster: As in `parse_address`.
    """
    each = text.split(",") if isinstance(text, str) else text
    return tuple(dict.fromkeys(parse_address(one, where) for one in each)) or (parse_address("", where),)


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
