"""`defer serve` on a shared state: it waits until it leads, and stands by again when it leads no more."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from defer.access import said
from defer.cli.stopping import Stop
from defer.dispatcher.bringup import Order
from defer.dispatcher.state_url import StateUrl
from defer.documents.address import Address, parse_address
from defer.documents.cluster import Cluster
from defer.errors import NotReady
from node_agent.security import Security

if TYPE_CHECKING:
    from defer.dispatcher.sharing import Shared


SWITCH_S = 0.001
"""Longest turn of a thread while others wait, s."""


def led(
    url: StateUrl,
    folder: Path,
    cluster: Cluster,
    order: Order | None,
    pages: list[Address],
    security: Security,
    stop: Stop,
    stack: ExitStack,
    *,
    as_json: bool,
) -> Shared | None:
    """Stand for election, and stand by until this process leads.

    Args:
        url: The shared state.
        folder: This dispatcher's own directory.
        cluster: Where this dispatcher listens.
        order: What its command line asks for.
        pages: Where its gateway and metrics will listen: probes are answered there meanwhile.
        security: How connections are protected.
        stop: Ends the wait.
        stack: Releases the lease at the end.
        as_json: Whether a program reads the output.

    Returns:
        The state, or None where the process was told to stop.

    Raises:
        PermissionDenied: Requests would travel to the state unprotected.
        MissingExtra: The client library is not installed.
        NotReady: No server answers.
    """
    from defer.dispatcher.leadership import Leadership
    from defer.dispatcher.shared_files import Follower
    from defer.dispatcher.sharing import Shared, content_digest
    from defer.dispatcher.standby import StandbyDoor, connected, spoken, start_again, wait_for_lead

    url.check_exposure(insecure=said().insecure)
    listen = parse_address(cluster.dispatcher.listen)
    if order is not None:
        order = replace(order, digest=content_digest(order))
    address = str(replace(listen, host=cluster.dispatcher_host))
    # Planning keeps an interpreter busy for seconds; the thread that renews the lease is not to wait for it.
    sys.setswitchinterval(SWITCH_S)
    leadership = connected(
        lambda: Leadership(url, address),
        lambda: stop.number != 0,
        lambda known: StandbyDoor(listen, pages, known, security, None),
    )
    if leadership is None:
        return None
    stack.callback(leadership.close)
    follower = Follower(url, folder, str(listen))
    leads = wait_for_lead(
        leadership,
        lambda: stop.number != 0,
        lambda: StandbyDoor(listen, pages, leadership, security, follower),
        lambda leader: click.echo(spoken(leader, as_json=as_json)),
    )
    if not leads:
        return None

    def lost(reason: str) -> None:
        if stop.number == 0:
            start_again(reason, [sys.executable, *sys.orig_argv[1:]])

    leadership.when_lost(lost)
    shared = Shared(leadership, folder, order)
    stack.callback(shared.close)
    return shared


@contextmanager
def handing_over(shared: Shared | None) -> Iterator[None]:
    """A process that begins to lead, and does not reach the state any more, stands by again."""
    from defer.dispatcher.standby import start_again

    try:
        yield
    except NotReady as error:
        if shared is None:
            raise
        start_again(str(error), [sys.executable, *sys.orig_argv[1:]])
