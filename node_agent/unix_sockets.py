"""Connections within one machine: a Unix domain socket beside each TCP port, which costs the kernel less per message.

Whoever listens on a port of the loopback interface listens on an abstract Unix socket as well, whose name follows from
user, network, host and port. Whoever dials such a port takes that socket if it is there and its listener belongs to
the same user. The bytes on it are those of the TCP connection, keys and all, and so are the rules of who may come in.

Source: unix(7), abstract sockets and SO_PEERCRED.
"""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

from node_agent import lending
from node_agent.security import host_of, is_loopback

_ALL = ("0.0.0.0", "::", "*")  # noqa: S104 - compared with, not listened on
"""Hosts that stand for every interface, the loopback among them."""

_LONGEST = 100
"""Bytes of a name; Linux takes 107."""

_CREDENTIALS = struct.Struct("3i")
_REACH_S = 0.2


def beside(host: str, port: int) -> str | None:
    """The endpoint to listen on beside `tcp://host:port`; None where nobody on this machine would look there."""
    if not lending.possible() or not (host in _ALL or is_loopback(host)):
        return None
    return _endpoint(host, port)


def instead(endpoint: str, *, keys: bool) -> str:
    """What to dial for `tcp://host:port`: the Unix socket beside it where there is one, else the same.

    Only for addresses of the loopback interface: any other may belong to another machine tomorrow, and the connection
    is made again by ZeroMQ without asking here.

    Args:
        endpoint: `tcp://host:port`.
        keys: Whoever answers must prove who it is by its key; without, it must belong to this process's user.
    """
    host, port = host_of(endpoint), endpoint.rpartition(":")[2]
    if not port.isdigit() or not is_loopback(host) or not lending.possible():
        return endpoint
    hosts = ("localhost", "127.0.0.1", "::1", *_ALL) if host == "localhost" else (host, *_ALL)
    for each in hosts:
        there = _endpoint(each, int(port))
        if there is not None and (_listed(there) if keys else _ours(there)):
            return there
    return endpoint


def _endpoint(host: str, port: int) -> str | None:
    name = f"@defer-{os.geteuid()}-{lending.network()}-{host}-{port}"
    return f"ipc://{name}" if len(name) <= _LONGEST else None


def _listed(endpoint: str) -> bool:
    """Whether anybody listens there. Nothing is connected: a listener with keys would tell of a broken handshake."""
    name = endpoint.removeprefix("ipc://")
    try:
        lines = Path("/proc/net/unix").read_text().splitlines()
    except OSError:
        return False
    return any(line.endswith(f" {name}") for line in lines)


def _ours(endpoint: str) -> bool:
    """Whether a process of this user listens there: the name could be taken by anybody."""
    name = "\0" + endpoint.removeprefix("ipc://@")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.settimeout(_REACH_S)
        try:
            probe.connect(name)
            told = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        except OSError:
            return False
    _, user, _ = _CREDENTIALS.unpack(told)
    return bool(user == os.geteuid())
