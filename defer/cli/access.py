"""`--keys` and `--insecure`, the same for every verb that connects."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from defer.access import Choice, using
from defer.cli.output import note
from defer.documents.address import parse_addresses
from node_agent.security import KEYS_VARIABLE, is_loopback

F = TypeVar("F", bound=Callable[..., Any])


def access_options(command: F) -> F:
    """Adds `--keys` and `--insecure`; the verb finds what they say in `defer.access`, and takes no argument for them."""

    @functools.wraps(command)
    def run(*args: Any, keys: Path | None, insecure: bool, **more: Any) -> Any:
        with using(Choice(keys, insecure)):
            address = more.get("address")
            if insecure and isinstance(address, str):
                warn_insecure(
                    [each.host for each in parse_addresses(address)], as_json=bool(more.get("as_json"))
                )
            return command(*args, **more)

    run = click.option(
        "--insecure",
        is_flag=True,
        help="Use addresses beyond this machine without keys (a gateway's without a token): whoever is on that network "
        "may read and command.",
    )(run)
    run = click.option(
        "--keys",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help=f"Folder of keys made by `defer keys`, or one certificate of its folder `secret`; also from "
        f"{KEYS_VARIABLE}. Beyond this machine ~/.config/defer/keys by default.",
    )(run)
    return cast(F, run)


def warn_insecure(hosts: list[str], *, as_json: bool) -> None:
    """Says on the user's screen what `--insecure` means, where it means something."""
    beyond = [host for host in hosts if not is_loopback(host)]
    if beyond:
        note(
            f"warning: {beyond[0]} is used without keys: whoever is on that network may read and command",
            as_json=as_json,
        )
