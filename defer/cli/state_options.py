"""Where `defer serve` keeps what must survive a restart, and what it takes over from the process before."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from defer.dispatcher.bringup import Order
from defer.dispatcher.commanded import Commanded, commanded
from defer.dispatcher.deployments import Deployments
from defer.dispatcher.restoring import digest_of
from defer.dispatcher.rollout import alone, check_name
from defer.dispatcher.state_url import StateUrl, is_state_url, parse_state_url
from defer.documents.address import parse_address
from defer.documents.cluster import Cluster
from defer.errors import UsageError
from defer.serving import brief_state


def state_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--state` and `--no-state`."""
    function = click.option(
        "--no-state", is_flag=True, help="Keep nothing: after a restart no model is served."
    )(function)
    return click.option(
        "--state",
        metavar="DIR|URL",
        help="Directory for what must survive a restart, ~/.local/state/defer/dispatcher-PORT by default; or "
        "nats://HOST:4222/NAME for a state that several dispatchers share, of which one leads.",
    )(function)


@dataclass(frozen=True, slots=True)
class StatePlace:
    """A directory, whether it is still there after the process, and the state that is shared instead, if one is."""

    folder: Path
    lasting: bool
    url: StateUrl | None = None


def state_place(cluster: Cluster, state: str | None, stack: ExitStack, *, none: bool) -> StatePlace:
    """Where a dispatcher keeps its state.

    Args:
        cluster: Where it listens.
        state: The directory or URL that was asked for; the cluster file's by default.
        stack: Deletes a directory that is for this process only.
        none: Keep nothing.

    Raises:
        UsageError: Both a directory and none, a URL that is none, or a shared state at a port that nobody can know.
    """
    if none and state is not None:
        raise UsageError("--state and --no-state exclude each other", hint="say one of them")
    wanted = "" if none else state or cluster.dispatcher.state
    port = parse_address(cluster.dispatcher.listen).port
    url = None
    if is_state_url(wanted):
        url = parse_state_url(wanted, "--state" if state else "dispatcher.state")
        if port == 0:
            raise UsageError(
                "dispatchers that share a state need a port that clients know", hint="give --listen HOST:PORT"
            )
    elif wanted:
        # Absolute: what is kept of models names their files, and the next start may be in another directory.
        return StatePlace(Path(wanted).expanduser().absolute(), lasting=True)
    if none or port == 0:  # at any port nobody can find it again after a restart
        return StatePlace(brief_state(stack), lasting=False)
    home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    folder = Path(home).expanduser().absolute() / "defer" / f"dispatcher-{port}"
    return StatePlace(folder, lasting=True, url=url)


def still_asked(deployments: Deployments, order: Order) -> Commanded:
    """What the command line asks for beyond what the process before served, which is back, or will be.

    What else the command line before asked for is served no more.

    Raises:
        UsageError: Its name is no name of a deployment.
    """
    check_name(order.name)
    rollouts = deployments.rollouts
    for name, old in list(deployments.orders.items()):
        if old.source == "serve" and name != order.name:
            # Versions that nothing was decided about, or that requests take, are not the command line's.
            split = rollouts.split(name)
            mine = split is not None and split.stable == name
            deployments.take_down(name if mine else alone(name), 0.0)
    order = order if order.digest else replace(order, digest=digest_of(order))
    deployments.asked[order.name] = order.digest
    held = deployments.orders.get(order.name)
    found = commanded(order, held, rollouts.split(order.name), deployments.orders)
    if found.told:
        deployments.log.note("not-served", found.told, level="warning", model=order.name)
    return found
