"""`defer keys`: who may talk to whom."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from defer import keys
from defer.cli.output import common_options, console, examples, note, print_json, table
from node_agent.keys import ROLES, Role
from node_agent.security import KEYS_VARIABLE, default_keys

F = TypeVar("F", bound=Callable[..., Any])


def _folder_option(command: F) -> F:
    return click.option(
        "--keys",
        "folder",
        type=click.Path(path_type=Path, file_okay=False),
        envvar=KEYS_VARIABLE,
        metavar="DIR",
        default=default_keys,
        show_default="~/.config/defer/keys",
        help=f"Folder of keys; also from {KEYS_VARIABLE}.",
    )(command)


@click.group(
    epilog=examples(
        "defer keys make dispatcher --role dispatcher",
        "defer keys make edge1 --role agent --keys edge1-keys",
        "defer keys authorise edge1-keys/allowed/edge1.toml",
        "defer keys list",
        "defer keys revoke edge1",
    )
)
def command() -> None:
    """Make, list, authorise, rotate and revoke the keys of dispatchers, agents, clients and observers.

    A folder of keys holds secret keys of its own (`secret`, never hand them out) and the certificates of those who
    are let in (`allowed`). Running processes follow its changes at once.
    """


@command.command(
    "make",
    epilog=examples(
        "defer keys make dispatcher --role dispatcher",
        "defer keys make edge1 --role agent",
        "defer keys make screen --role observer --keys screen-keys --json",
    ),
)
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), required=True, help="What its owner may be.")
@_folder_option
@common_options
def make_key(name: str, role: Role, folder: Path, as_json: bool) -> None:
    """Make a key pair for NAME; an agent's is its device name."""
    public = keys.make(folder, name, role)
    secret = folder / "secret" / f"{name}.toml"
    if as_json:
        print_json({"name": name, "role": role, "secret": str(secret), "certificate": str(public)})
        return
    click.echo(f"made a key of {name}, role {role}: {secret} (keep it secret)")
    note(f"authorise {public} where {name} is to be let in")


@command.command("list", epilog=examples("defer keys list", "defer keys list --keys edge1-keys --json"))
@_folder_option
@common_options
def list_keys(folder: Path, as_json: bool) -> None:
    """List the keys of a folder: own ones, those that are let in, those that were revoked."""
    entries = keys.listing(folder)
    if as_json:
        print_json({"folder": str(folder), "keys": msgspec.to_builtins(entries)})
        return
    shown = table("name", "role", "state", "public key", "made")
    for entry in entries:
        shown.add_row(entry.name, entry.role, entry.state, entry.public, entry.made)
    console().print(shown)


@command.command(
    "authorise",
    epilog=examples(
        "defer keys authorise edge1.toml",
        "defer keys authorise visitor.toml --role observer",
        "defer keys authorise edge1.toml --replace",
    ),
)
@click.argument("certificate", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--role", type=click.Choice(ROLES), help="What its owner may be, whatever the certificate says."
)
@click.option(
    "--replace", is_flag=True, help="Revoke another key of that name; let one in again that was revoked."
)
@_folder_option
@common_options
def authorise_key(certificate: Path, role: Role | None, replace: bool, folder: Path, as_json: bool) -> None:
    """Let the owner of CERTIFICATE in; it comes from the folder `allowed` where its key was made.

    The folder of keys has to be there: `defer keys make` makes it, with the key of who lets others in.
    """
    made = keys.authorise(folder, certificate, role=role, replace=replace)
    if as_json:
        print_json({"name": made.name, "role": made.role, "public": made.public, "folder": str(folder)})
        return
    click.echo(f"{made.name} is let in as {made.role} by {folder}, public key {made.public}")


@command.command("rotate", epilog=examples("defer keys rotate edge1", "defer keys rotate dispatcher --json"))
@click.argument("name")
@_folder_option
@common_options
def rotate_key(name: str, folder: Path, as_json: bool) -> None:
    """Give NAME, whose secret key is here, a new pair; the old one is revoked.

    Others let the new key in once its certificate is authorised there with --replace. A process that listens takes its
    own new key when it is started again.
    """
    public = keys.rotate(folder, name)
    if as_json:
        print_json({"name": name, "certificate": str(public)})
        return
    click.echo(f"{name} has a new key; the old one is revoked")
    note(f"authorise {public} with --replace where {name} is let in, and start {name} again")


@command.command("revoke", epilog=examples("defer keys revoke edge1", "defer keys revoke visitor --json"))
@click.argument("name")
@_folder_option
@common_options
def revoke_key(name: str, folder: Path, as_json: bool) -> None:
    """Let NAME in no more; what it has under way ends within a second. Revoke it in every folder that allowed it."""
    revoked = keys.revoke(folder, name)
    if as_json:
        told = [{"name": each.name, "public": each.public} for each in revoked]
        print_json({"revoked": told, "folder": str(folder)})
        return
    click.echo(f"{name} is let in no more by {folder}")
