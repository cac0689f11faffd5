"""What verbs that talk to a running dispatcher have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from defer.cli.access import access_options

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_ADDRESS: Final = "127.0.0.1:7600"


def timeout_option(seconds: float) -> Callable[[F], F]:
    """Adds `--timeout SECONDS` of a request (argument `timeout`)."""
    return click.option(
        "--timeout",
        default=seconds,
        show_default=True,
        type=click.FloatRange(0.001, 3600),
        help="Seconds per request.",
    )


def address_option(command: F) -> F:
    """Adds `--dispatcher HOST:PORT` (argument `address`), `--keys` and `--insecure`."""
    return click.option(
        "--dispatcher",
        "address",
        metavar="HOST:PORT[,…]",
        envvar="DEFER_DISPATCHER",
        default=DEFAULT_ADDRESS,
        show_default=True,
        help="Where `defer serve` runs, or each dispatcher of a shared state; also from DEFER_DISPATCHER.",
    )(access_options(command))
