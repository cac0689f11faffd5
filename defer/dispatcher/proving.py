"""A loaded deployment as the data path sees it, and the canary that proves it."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np

from defer.burdens import latency_of, work_of
from defer.dispatcher import events as e
from defer.dispatcher.neighbours import link_of
from defer.dispatcher.shell import Answer, DataShell
from defer.errors import DeferError, from_code
from node_agent.dtypes import storage
from node_agent.frames import pack_item
from node_agent.messages import TensorHeader

if TYPE_CHECKING:
    from defer.deployer import Deployment

Canary = Future[Answer]
"""A canary under way."""

CANARY_S = 60.0
"""Seconds in which the first request must come back; engines may still optimise."""


def devices_of(deployment: Deployment) -> tuple[str, ...]:
    """Every device of a deployment, in the order in which requests pass."""
    passed = sorted((spec.hop, device) for device, hops in deployment.layout.hops.items() for spec in hops)
    return tuple(dict.fromkeys(device for _, device in passed))


def files_of(deployments: Iterable[Deployment]) -> set[str]:
    """Names of the files that deployments were loaded from."""
    hops = (spec for each in deployments for specs in each.layout.hops.values() for spec in specs)
    return {f"{ref.sha256}{ref.suffix}" for spec in hops for ref in (spec.graph, *spec.weights) if ref}


def route_of(deployment: Deployment) -> e.Route:
    """What the data path must know of a deployment."""
    headers, _ = zeros(deployment)
    return e.Route(
        model=deployment.model,
        epoch=deployment.epoch,
        inputs=deployment.inputs,
        outputs=deployment.outputs,
        link=link_of(deployment.layout.first),
        hops=deployment.layout.count,
        devices=devices_of(deployment),
        codec=deployment.plan.transfers[0].codec,
        last=deployment.layout.last.name,
        latency_s=latency_of(deployment.plan),
        work=work_of(deployment.plan),
        typical_bytes=sum(header.nbytes for header in headers),
    )


def prove(shell: DataShell, deployment: Deployment) -> float:
    """Send one request of zeros through the whole pipeline; the seconds that it took.

    Raises:
        DeferError: It did not come back as it should.
    """
    return came_back(send_canary(shell, deployment))


def send_canary(shell: DataShell, deployment: Deployment) -> Canary:
    """Send one request of zeros through the whole pipeline, before whatever is given to its route after this."""
    headers, frames = zeros(deployment)
    return shell.canary(deployment.epoch, headers, frames, CANARY_S)


def came_back(canary: Canary) -> float:
    """Wait for a canary; the seconds that it took.

    Raises:
        DeferError: It did not come back as it should.
    """
    try:
        *_, seconds = canary.result(CANARY_S + 5)
    except DeferError as error:
        hint = error.hint or "the logs of the agents on its route say more"
        raise from_code(error.code, f"the canary failed: {error.message}", hint) from error
    return float(seconds)


def zeros(deployment: Deployment) -> tuple[tuple[TensorHeader, ...], list[Any]]:
    """Headers and frames of a request of zeros, of the shapes that were planned with."""
    arrays = {}
    for spec in deployment.warm_up:
        shape = [dim for dim in spec.shape if isinstance(dim, int)]
        arrays[spec.name] = np.zeros(shape, storage(spec.dtype))
    return pack_item(arrays, "raw", {spec.name: spec.dtype for spec in deployment.warm_up})
