"""`defer serve`'s options about being watched: metrics and health over HTTP, and how log lines look."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from defer.documents.address import Address, parse_address
from node_agent.announcing import DISPATCHER, Announcement, announcing
from node_agent.json_log import FORMATS, formatter
from node_agent.pages import PageServer

if TYPE_CHECKING:
    from defer.live.watcher import Watcher

F = TypeVar("F", bound=Callable[..., Any])

LINE: Final = "%(asctime)s %(levelname)s %(message)s"


@dataclass(frozen=True, slots=True)
class ObservingWish:
    """What the command line says.

    Attributes:
        metrics: Where to serve /metrics, /healthz and /readyz; None for nowhere.
        log_format: `text` or `json`.
        announce: Tell the local network that a dispatcher is here.
    """

    metrics: Address | None = None
    log_format: str = "text"
    announce: bool = False


def observing_options(command: F) -> F:
    """Adds `--metrics`, `--log-format` and `--announce` (argument `observing`, an `ObservingWish`)."""

    @functools.wraps(command)
    def wrapped(*args: Any, metrics: str | None, log_format: str, announce: bool, **more: Any) -> Any:
        where = parse_address(metrics, "--metrics") if metrics else None
        return command(*args, observing=ObservingWish(where, log_format, announce), **more)

    decorated: Any = click.option(
        "--metrics",
        metavar="HOST:PORT",
        help="Serve /metrics (Prometheus), /healthz and /readyz over HTTP there, to whoever reaches it.",
    )(wrapped)
    decorated = click.option(
        "--announce",
        is_flag=True,
        help="Tell the local network by multicast DNS that a dispatcher is here, for `defer discover` "
        "(extra discovery).",
    )(decorated)
    return click.option(  # type: ignore[no-any-return]
        "--log-format",
        default="text",
        show_default=True,
        type=click.Choice(FORMATS),
        help="Log lines as text, or as JSON objects.",
    )(decorated)


@contextmanager
def serving_metrics(wish: ObservingWish, watcher: Watcher) -> Iterator[Address | None]:
    """Serve the pages while the block runs; yields where, the port resolved, or None where nobody asked.

    Raises:
        AgentError: The address cannot be used.
    """
    if wish.metrics is None:
        yield None
        return
    with PageServer(wish.metrics.host, wish.metrics.port, watcher.pages()) as server:
        yield Address(wish.metrics.host, server.port)


@contextmanager
def announced(wish: ObservingWish, where: Address, boot: str, *, keys: bool) -> Iterator[None]:
    """Tell the local network where the dispatcher listens while the block runs, where that was asked for.

    Raises:
        AgentError: The package for it is not installed.
    """
    if not wish.announce:
        yield
        return
    with announcing(Announcement(DISPATCHER, "dispatcher", where.host, where.port, boot, keys)):
        yield


def log_to_stderr(wish: ObservingWish, *, quiet: bool) -> None:
    """What happens while serving, on standard error.

    Args:
        wish: How lines look.
        quiet: Errors alone: a program reads the output, and did not ask for log lines.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(wish.log_format, LINE))
    log = logging.getLogger("defer")
    log.addHandler(handler)
    log.setLevel(logging.ERROR if quiet else logging.WARNING)
    # Whom the sockets refuse is told at any rate.
    room = logging.getLogger("node_agent")
    room.addHandler(handler)
    room.setLevel(logging.WARNING)
    # What an operator asked for meanwhile is news, whatever level the rest has.
    logging.getLogger("defer.dispatcher.models").setLevel(logging.ERROR if quiet else logging.INFO)
