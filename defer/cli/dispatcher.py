"""What verbs that talk to a running dispatcher have in common: which one they ask, and how long they wait."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import click
from click.core import ParameterSource

from defer.cli.access import access_options
from defer.documents.address import Address, parse_address, parse_addresses
from defer.errors import DeferError, UsageError
from node_agent.finite import Finite

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_ADDRESS: Final = "127.0.0.1:7600"

CLUSTER_FILE: Final = "cluster.toml"
"""What the cluster file is called where nobody says another name."""

DISPATCHER_VARIABLE: Final = "DEFER_DISPATCHER"
CLUSTER_VARIABLE: Final = "DEFER_CLUSTER"

ABOUT_WHOM: Final = frozenset(
    ("dispatcher-unreachable", "unknown-model", "not-ready", "standby", "unauthorised", "protocol-mismatch")
)
"""Codes of errors that may mean no more than that the wrong dispatcher was asked."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Whom a verb asks.

    Attributes:
        address: `HOST:PORT`, or several with commas.
        why: Where it is from, as the end of a sentence that begins with the address; empty where it was just typed.
    """

    address: str
    why: str = ""


def whom_to_ask(dispatcher: str | None = None, cluster: str | None = None, *, typed: bool = True) -> Asked:
    """The one rule: what is typed, then the environment, then this folder's cluster.toml, then the usual address.

    Args:
        dispatcher: `--dispatcher`, or `DEFER_DISPATCHER`.
        cluster: `--cluster`.
        typed: `dispatcher` is not from the environment.

    Raises:
        InvalidCluster, FileProblem: The cluster file, or the address, cannot be used; says which.
        UsageError: The file says any port.
    """
    if dispatcher is not None and (typed or cluster is None):
        parse_addresses(dispatcher, "--dispatcher" if typed else DISPATCHER_VARIABLE)
        return Asked(dispatcher, "" if typed else f"is from {DISPATCHER_VARIABLE}")
    if cluster is not None:
        return Asked(str(_dispatcher_of(cluster)), f"is that of {cluster}")
    if named := os.environ.get(CLUSTER_VARIABLE):
        return Asked(str(_dispatcher_of(named)), f"is that of {named}, which {CLUSTER_VARIABLE} names")
    if Path(CLUSTER_FILE).is_file():
        return Asked(str(_dispatcher_of(CLUSTER_FILE)), f"is that of {CLUSTER_FILE} in this folder")
    nothing = f"there is no --dispatcher, no {DISPATCHER_VARIABLE}, and no {CLUSTER_FILE} in this folder"
    return Asked(DEFAULT_ADDRESS, f"is the usual one: {nothing}")


def _dispatcher_of(path: str) -> Address:
    """Where the dispatcher of a cluster file is reached: where its agents reach it."""
    from defer.documents.cluster import Cluster  # a verb that is told an address needs no TOML

    try:
        cluster = Cluster.load(Path(path).expanduser())
    except DeferError as error:
        error.hint = f"{error.hint}; or say whom to ask: --dispatcher HOST:PORT".removeprefix("; ")
        raise
    port = parse_address(cluster.dispatcher.listen, "dispatcher.listen").port
    if port == 0:
        raise UsageError(
            "the dispatcher listens on any port, which nobody can know",
            where=path,
            hint="say which it took: --dispatcher HOST:PORT",
        )
    return Address(cluster.dispatcher_host, port)


@contextmanager
def explained(asked: Asked) -> Iterator[None]:
    """Errors that may come from asking the wrong dispatcher say why it was this one, where nobody typed it."""
    try:
        yield
    except DeferError as error:
        about = error.code in ABOUT_WHOM or (error.code == "permission-denied" and not error.where)
        if asked.why and about:
            reason = f"{asked.address} {asked.why}"
            error.hint = f"{error.hint}; {reason}" if error.hint else reason
        raise


def timeout_option(seconds: float) -> Callable[[F], F]:
    """Adds `--timeout SECONDS` of a request (argument `timeout`)."""
    return click.option(
        "--timeout",
        default=seconds,
        show_default=True,
        type=Finite(0.001, 3600),
        help="Seconds per request.",
    )


def address_option(command: F) -> F:
    """Adds `--dispatcher`, `--cluster` (both are argument `address`, always given), `--keys` and `--insecure`."""
    inner = access_options(command)

    @functools.wraps(inner)
    def run(*args: Any, address: str | None, ask_cluster: str | None, **more: Any) -> Any:
        if more.get("url"):  # `defer bench` on another server: no dispatcher is asked
            return inner(*args, address=DEFAULT_ADDRESS, **more)
        source = click.get_current_context().get_parameter_source("address")
        typed = source is ParameterSource.COMMANDLINE
        if typed and ask_cluster is not None:
            raise UsageError("--dispatcher and --cluster exclude each other", hint="say one of them")
        asked = whom_to_ask(address, ask_cluster, typed=typed)
        with explained(asked):
            return inner(*args, address=asked.address, **more)

    decorated = click.option(
        "--cluster",
        "ask_cluster",
        metavar="FILE",
        help=f"Ask the dispatcher of this cluster file; also from {CLUSTER_VARIABLE}, and {CLUSTER_FILE} of this "
        "folder by default.",
    )(run)
    return cast(
        F,
        click.option(
            "--dispatcher",
            "address",
            metavar="HOST:PORT[,…]",
            envvar=DISPATCHER_VARIABLE,
            help=f"Where `defer serve` runs, or each dispatcher of a shared state; also from {DISPATCHER_VARIABLE}. "
            f"Without it and --cluster, {DEFAULT_ADDRESS}.",
        )(decorated),
    )
