"""Which keys a process of the product uses: what its user said on the command line or in Python, in one place.

`--keys` and `--insecure` are the same for every verb, so verbs do not hand them on: `using` holds them while one runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from defer.translating import translate
from node_agent.errors import AgentError
from node_agent.keys import Role
from node_agent.security import Security, choose

CLIENT_ROLES: Final[tuple[Role, ...]] = ("client", "observer", "dispatcher")
"""What somebody who asks a dispatcher may be; which verbs it is allowed then is in `defer.doors`."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What the user said.

    Attributes:
        keys: Folder of keys, or a certificate in its folder `secret`; None for what the environment says.
        insecure: No keys are wanted on addresses beyond this machine.
    """

    keys: str | Path | None = None
    insecure: bool = False


_NOTHING: Final = Choice()
_said: ContextVar[Choice] = ContextVar("defer_access", default=_NOTHING)


@contextlib.contextmanager
def using(choice: Choice) -> Iterator[None]:
    """While the block runs, connections made in this thread that say nothing else follow `choice`."""
    token = _said.set(choice)
    try:
        yield
    finally:
        _said.reset(token)


def said() -> Choice:
    """What `using` holds."""
    return _said.get()


def security_for(
    roles: Sequence[Role],
    hosts: Iterable[str],
    *,
    keys: str | Path | None = None,
    insecure: bool = False,
) -> Security:
    """The security of connections to or at `hosts`; see `node_agent.security.choose`.

    Args:
        roles: What this process may be, the preferred role first.
        hosts: Where it will listen and whom it will dial.
        keys: As in `Choice`; what `using` holds where neither this nor `insecure` says anything.
        insecure: As in `Choice`.

    Raises:
        InvalidKey: The keys cannot be used.
        PermissionDenied: An address is beyond this machine, and there are neither keys nor `insecure`.
    """
    choice = Choice(keys, insecure) if keys is not None or insecure else said()
    try:
        return choose(choice.keys, roles=roles, hosts=hosts, insecure=choice.insecure)
    except AgentError as error:
        raise translate(error) from error


def client_security(*hosts: str, keys: str | Path | None = None, insecure: bool = False) -> Security:
    """The security of a client of the dispatcher at one of `hosts`; errors as in `security_for`."""
    return security_for(CLIENT_ROLES, hosts, keys=keys, insecure=insecure)
