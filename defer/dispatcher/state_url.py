"""Where several dispatchers keep what they share: `nats://host:4222/name`, with files for credentials and TLS."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from defer import units
from defer.documents.address import Address, parse_address
from defer.errors import DeferError, FileMissing, InvalidKey, PermissionDenied, UsageError

SCHEMES = ("nats", "tls")
PORT = 4222

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_FILES = ("creds", "nkey", "ca", "cert", "key")
_EXAMPLE = "write nats://HOST:4222/NAME, or tls://HOST:4222/NAME?ca=ca.pem&creds=defer.creds"

LEASE_S = (0.5, 60.0)
"""Shortest and longest lease: below, an ordinary pause of a machine costs the leadership."""


@dataclass(frozen=True, slots=True)
class StateUrl:
    """A shared state.

    Attributes:
        servers: NATS servers of one cluster.
        name: What the dispatchers that share it call it.
        encrypted: Whether connections are TLS.
        user: User name; empty for none.
        password: Never shown.
        creds: Credentials file of a user (JWT and seed).
        nkey: File with the seed of an NKey.
        ca: Certificates of authorities that the servers' are checked with; the system's by default.
        cert: Certificate of this client.
        key: Its key.
        replicas: Servers that keep each record.
        lease_s: After how many silent seconds a leader is replaced.
        files_bytes: Bytes of models' files that are kept for the other dispatchers.
    """

    servers: tuple[Address, ...]
    name: str
    encrypted: bool = False
    user: str = ""
    password: str = ""
    creds: Path | None = None
    nkey: Path | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    replicas: int = 1
    lease_s: float = 1.8
    files_bytes: int = 8 << 30

    def __str__(self) -> str:
        servers = ",".join(str(each) for each in self.servers)
        return f"{'tls' if self.encrypted else 'nats'}://{servers}/{self.name}"

    def __repr__(self) -> str:
        return f"StateUrl({self})"

    def urls(self) -> list[str]:
        """The servers, as the client library wants them; without secrets."""
        return [f"{'tls' if self.encrypted else 'nats'}://{each}" for each in self.servers]

    def check_exposure(self, *, insecure: bool) -> None:
        """Requests and answers are in there: beyond this machine they travel encrypted, or the operator says otherwise.

        Raises:
            PermissionDenied: They would not be.
        """
        outside = [str(each) for each in self.servers if not each.is_loopback]
        if outside and not self.encrypted and not insecure:
            raise PermissionDenied(
                f"the state at {', '.join(outside)} is beyond this machine, and nothing protects what travels there",
                hint="write tls:// and give its ca, or say --insecure where nobody else is on that network",
            )

    def tls(self) -> ssl.SSLContext | None:
        """How connections are encrypted; None where they are not.

        Raises:
            InvalidKey: A certificate or key cannot be used.
        """
        if not self.encrypted:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.cert is not None:
                context.load_cert_chain(self.cert, self.key)
        except (OSError, ssl.SSLError) as error:
            files = ", ".join(str(each) for each in (self.ca, self.cert, self.key) if each is not None)
            raise InvalidKey(f"the certificates of the state cannot be used: {error}", where=files) from error
        return context


def is_state_url(text: str) -> bool:
    """Whether this is no path of a directory."""
    return "://" in text


def parse_state_url(text: str, where: str = "--state") -> StateUrl:
    """A shared state from its URL.

    Args:
        text: `nats://[user:password@]host:4222[,host:4222…]/name[?option=value&…]`.
        where: Key or option that holds it, for messages.

    Raises:
        UsageError: It is no such URL; the message has no part of it that may be secret.
        FileMissing: A file that it names does not exist.
        PermissionDenied: Others may read a file with a secret.
    """
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise UsageError("this is no URL of a state", where=where, hint=_EXAMPLE) from error
    if parts.scheme not in SCHEMES:
        raise UsageError(
            f"states of kind {parts.scheme!r} are unknown; known: {', '.join(SCHEMES)}",
            where=where,
            hint=_EXAMPLE,
        )
    name = parts.path.strip("/")
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            "the URL of a state ends with its name: letters, digits, - and _", where=where, hint=_EXAMPLE
        )
    login, _, hosts = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    servers = tuple(_server(host, where) for host in hosts.split(","))
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    files = {key: _file(key, options.pop(key), where) for key in _FILES if key in options}
    replicas = _whole("replicas", options.pop("replicas", "3" if len(servers) > 2 else "1"), where)
    try:
        lease_s = units.parse_duration(options.pop("lease", "1.8 s"))
        files_bytes = units.parse_size(options.pop("files", "8 GiB"))
    except DeferError as error:
        raise UsageError(error.message, where=where, hint=error.hint) from error
    if options:
        known = ", ".join((*_FILES, "replicas", "lease", "files"))
        raise UsageError(f"unknown option {min(options)!r}; known: {known}", where=where, hint=_EXAMPLE)
    if not LEASE_S[0] <= lease_s <= LEASE_S[1]:
        raise UsageError(f"a lease lasts {LEASE_S[0]:g} to {LEASE_S[1]:g} s, not {lease_s:g} s", where=where)
    if replicas not in (1, 3, 5):
        raise UsageError(f"a record is kept by 1, 3 or 5 servers, not {replicas}", where=where)
    if ("cert" in files) != ("key" in files):
        raise UsageError("a certificate needs its key, and a key its certificate", where=where)
    return StateUrl(
        servers,
        name,
        encrypted=parts.scheme == "tls",
        user=unquote(user),
        password=unquote(password),
        replicas=replicas,
        lease_s=lease_s,
        files_bytes=files_bytes,
        **files,
    )


def _server(text: str, where: str) -> Address:
    bare = text.endswith("]") or ":" not in text
    return parse_address(f"{text}:{PORT}" if bare else text, where)


def _whole(key: str, text: str, where: str) -> int:
    if not text.isdecimal() or len(text) > 6:
        raise UsageError(f"{key} is a number, not {text!r}", where=where)
    return int(text)


def _file(key: str, text: str, where: str) -> Path:
    path = Path(text).expanduser()
    if not path.is_file():
        raise FileMissing(f"the {key} of the state is no file", where=f"{where}: {path}")
    if key in ("creds", "nkey", "key") and path.stat().st_mode & 0o077:
        raise PermissionDenied(
            f"others may read the {key} of the state", where=str(path), hint=f"chmod 600 {path}"
        )
    return path
