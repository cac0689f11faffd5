"""Who this process is on the network, whom it believes, and what they may say: one value, and the rules.

The rule that everything follows: what stays on this machine works without keys; anything else has CURVE keys at both
ends, or was asked for as insecure. `node_agent.link` applies it wherever a socket is bound or dials.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from node_agent.errors import InsecureListenError, KeyFileError, NotAllowedError, UnauthorisedError
from node_agent.keys import SECRET, Certificate, Keyring, Role, read_certificate

KEYS_VARIABLE: Final = "DEFER_KEYS"
"""Environment variable that names the folder of keys, as `--keys` does."""

DISPATCHER: Final = "@dispatcher"
"""How a dispatcher's name on data connections begins; no device may be called so."""


def default_keys() -> Path:
    """The folder of keys unless another is named: `$XDG_CONFIG_HOME/defer/keys`, by default `~/.config/defer/keys`."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(base) if base else Path.home() / ".config") / "defer" / "keys"


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone; names but `localhost` are not looked up."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def host_of(endpoint: str) -> str:
    """The host of `tcp://host:port`."""
    return endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")


@dataclass(frozen=True, slots=True)
class Security:
    """How a process's connections are protected.

    Attributes:
        insecure: Addresses beyond this machine are wanted without keys.
        own: This process's certificate with its secret key; None where it has none, and all is open.
        keys: Its folder of keys, read again as it changes.
    """

    insecure: bool = False
    own: Certificate | None = None
    keys: Keyring | None = None

    @property
    def curve(self) -> bool:
        """Whether connections are encrypted and authenticated."""
        return self.own is not None and self.keys is not None

    def check(self, host: str, doing: str) -> None:
        """Checks that a socket may use an address.

        Args:
            host: Name or IP address.
            doing: `Listening on` or `Connecting to`, for the message.

        Raises:
            InsecureListenError: The address is beyond this machine, there are no keys, and nobody asked for that.
        """
        if not (self.curve or self.insecure or is_loopback(host)):
            raise InsecureListenError(
                f"{doing} {host} needs keys: whoever is on that network could read and command everything.",
                hint="make keys with `defer keys make` and name their folder with --keys, "
                "or say --insecure if the network is trusted",
            )

    def server_key(self, name: str) -> str:
        """The public key that the peer `name` must prove to have.

        Args:
            name: A device, or a name that begins with `@dispatcher`.

        Raises:
            UnauthorisedError: No key of it is known here.
        """
        assert self.keys is not None
        allowed = self.keys.allowed
        if self.own is not None and self.own.role == "agent" and name == self.own.name:
            return self.own.public
        if not name.startswith(DISPATCHER):
            found = allowed.named(name)
            if found is None or found.role != "agent":
                raise UnauthorisedError(
                    f"No key of agent {name!r} is known here.",
                    hint=f"defer keys authorise {name}.toml --keys {self.keys.folder}",
                )
            return found.public
        dispatchers = allowed.of_role("dispatcher")
        if self.own is not None and self.own.role == "dispatcher":
            dispatchers = dispatchers or (self.own,)
        if len(dispatchers) != 1:
            several = ", ".join(each.name for each in dispatchers)
            raise UnauthorisedError(
                f"Several dispatchers are authorised in {self.keys.folder}: {several}."
                if dispatchers
                else f"No dispatcher's key is known in {self.keys.folder}.",
                hint="defer keys revoke NAME, for those that are not this cluster's; a standby has the same key"
                if dispatchers
                else "copy the dispatcher's certificate here, then: defer keys authorise FILE",
            )
        return dispatchers[0].public

    def who(self, public: str) -> Certificate | None:
        """Whose a public key is, at this moment; None for a stranger's and for one that was revoked."""
        if self.keys is None:
            return None
        allowed = self.keys.allowed
        if self.own is not None and public == self.own.public and public not in allowed.revoked:
            return self.own.without_secret()
        return allowed.by_key.get(public)


OPEN: Final = Security()
"""No keys; this machine only."""


def security_of(socket: Any) -> Security:
    """What a socket follows: the security of its context, and none where it was made without `new_context`."""
    security: Security = getattr(socket.context, "security", OPEN)
    return security


def choose(
    folder: str | Path | None,
    *,
    roles: Sequence[Role],
    hosts: Iterable[str],
    insecure: bool = False,
    name: str = "",
) -> Security:
    """The security of a process, from what its user said.

    Args:
        folder: What `--keys` names: a folder of keys, or one certificate in its folder `secret`; None for what the
            environment says. Where that is silent too, the default folder is used for addresses beyond this machine.
        roles: What the process may be, the preferred role first.
        hosts: Where it will listen and whom it will dial, as far as is known.
        insecure: No keys are wanted, on any address.
        name: Name that its certificate must have; empty for any.

    Raises:
        KeyFileError: The keys cannot be used.
        InsecureListenError: An address is beyond this machine, and there are neither keys nor `insecure`.
    """
    folder = folder or os.environ.get(KEYS_VARIABLE) or None
    if folder is not None and insecure:
        raise KeyFileError(
            "Keys and --insecure contradict each other.",
            hint=f"Leave one out; keys may also come from the environment, {KEYS_VARIABLE}.",
        )
    outside = [host for host in hosts if not is_loopback(host)]
    if folder is None:
        if insecure:
            return Security(insecure=True)
        if not outside:
            return OPEN
        if not default_keys().is_dir():
            OPEN.check(outside[0], "Using the address")
        folder = default_keys()
    path = Path(folder).expanduser()
    if path.is_file():
        own, path = read_certificate(path, secret=True), path.resolve().parent.parent
        keys = Keyring(path)
        if own.public in keys.allowed.revoked:
            raise _revoked(keys, own)
        if own.role not in roles:
            raise KeyFileError(f"{own.name!r} has the role {own.role}; {' or '.join(roles)} is needed here.")
    else:
        keys = Keyring(path)
        own = _pick(keys, roles, name)
    if name and own.role == "agent" and own.name != name:
        raise KeyFileError(
            f"The certificate is that of {own.name!r}, and this agent is called {name!r}.",
            hint=f"Start it with --name {own.name}, or: defer keys make {name} --role agent",
        )
    return Security(own=own, keys=keys)


def _pick(keys: Keyring, roles: Sequence[Role], name: str) -> Certificate:
    every, revoked = keys.own(), keys.allowed.revoked
    own = [each for each in every if each.public not in revoked]
    for role in roles:
        found = [each for each in own if each.role == role]
        if name and role == "agent":
            found = [each for each in found if each.name == name] or found[:1]
        if len(found) > 1:
            raise KeyFileError(
                f"{keys.folder} holds several keys of role {role}: {', '.join(each.name for each in found)}.",
                hint=f"Name one: --keys {keys.folder / SECRET / f'{found[0].name}.toml'}",
            )
        if found:
            return found[0]
    for each in every:
        if (
            each.public in revoked
            and each.role in roles
            and (each.role != "agent" or name in ("", each.name))
        ):
            raise _revoked(keys, each)
    raise KeyFileError(
        f"{keys.folder} holds no secret key of role {' or '.join(roles)}.",
        hint=f"defer keys make {name or 'NAME'} --role {roles[0]} --keys {keys.folder}",
    )


def _revoked(keys: Keyring, own: Certificate) -> KeyFileError:
    return KeyFileError(
        f"The key of {own.name!r} is revoked in {keys.folder}, where its secret lies.",
        hint=f"Name another with --keys; or, for a new one of that name: defer keys rotate {own.name} --keys "
        f"{keys.folder}, and authorise its certificate where {own.name} is to be let in.",
    )


@dataclass(frozen=True, slots=True)
class Door:
    """A bound socket: who may come in, and what they may say.

    Attributes:
        name: ZAP domain; says in logs where somebody was refused.
        roles: Who is let in at all; others are refused before their first message.
        problem: What is wrong with a message from somebody who is in; empty if nothing.
    """

    name: str
    roles: frozenset[Role]
    problem: Callable[[Certificate, Any], str]

    def refusal(self, security: Security, public: str, message: Any) -> NotAllowedError | None:
        """What is wrong with a message from the owner of a key; a key that was revoked meanwhile may say nothing."""
        certificate = security.who(public)
        if certificate is None:
            return NotAllowedError(f"This key is not authorised (any more) at the {self.name} socket.")
        problem = self.problem(certificate, message)
        if not problem:
            return None
        return NotAllowedError(
            f"The key of {certificate.name!r}, role {certificate.role}, may not {problem}."
        )


def is_own_name(certificate: Certificate, name: str) -> bool:
    """Whether the owner of a certificate may call itself so on a data connection."""
    if certificate.role == "dispatcher":
        return name.startswith(DISPATCHER)
    return name == certificate.name
