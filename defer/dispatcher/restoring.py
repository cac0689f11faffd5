"""A deployment as the store keeps it, and back: agents hold its partitions still, so nothing is cut, sent or loaded.

The routes get new numbers. Requests of the process before carry the old ones, so what is still on its way from them is
nobody's answer; and an agent that is told to load partitions that it holds under another number shares them.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec

from defer.accuracy import parse_budget
from defer.agents import AgentPool
from defer.dispatcher.bringup import Order
from defer.dispatcher.events import InferArrived
from defer.dispatcher.keeper import Keeper
from defer.dispatcher.store import KeptModel, KeptRequest, KeptRoute, ModelDropped, ModelKept
from defer.documents.base import decode, encode
from defer.documents.cluster import Cluster
from defer.documents.plan import Objective, Plan
from defer.documents.profile import CostProfile
from defer.errors import AgentFault, DeferError, InvalidDocument
from defer.event_log import EventLog
from defer.hops import Place, channel_blocks, handed_over, lay_out, parts_of
from node_agent.messages import Load, Loaded

if TYPE_CHECKING:
    from defer.deployer import Deployment

logger = logging.getLogger("defer.dispatcher")

COMING_BACK = "coming back: the dispatcher restarted"
"""Why a model is not ready yet."""

APART = ("source", "digest", "given", "asked", "at")
"""What of an order says nothing about what is served."""

LOAD_S = 600.0
"""An agent that restarted meanwhile loads from its own files, and an engine may be compiled for that."""


def digest_of(order: Order) -> str:
    """Equal for two orders that ask for the same: the same files, plan and options."""
    asked = [
        (each.name, _asked(getattr(order, each.name)))
        for each in fields(order)
        if each.compare
        and each.name not in APART
        # Orders of before there were replicas are still the same.
        and (each.name != "replicas" or order.replicas)
    ]
    return hashlib.sha256(repr(asked).encode()).hexdigest()


def received(order: Order, asked: str) -> Order:
    """An order as it is carried out and kept: with its digest, when it came, and the objective of a plan that it brings.

    Args:
        order: As it was given.
        asked: Digest of what the command line last asked for under its name.
    """
    if not order.digest and order.model.is_file():
        order = replace(order, digest=digest_of(order))
    asked = order.digest if order.source == "serve" else asked
    return replace(with_its_objective(order), asked=asked, at=order.at or time.time())


def with_its_objective(order: Order) -> Order:
    """An order that brings a plan, with that plan's objective: plans for losses, and of versions, are made for it.

    A weighted one stays with its plan: nobody has asked for its weights in another.
    """
    plan = order.plan
    if plan is None or not order.given or plan.objective == "weighted":
        return order
    return replace(order, objective=plan.objective)


def _asked(value: object) -> object:
    """What of an option tells it from another one, in plain words."""
    if isinstance(value, Path):
        found = value.stat()
        return str(value.resolve()), found.st_size, found.st_mtime_ns
    if isinstance(value, msgspec.Struct):
        return msgspec.json.encode(value)
    return sorted(value.items()) if isinstance(value, Mapping) else repr(value)


def kept_of(order: Order, plan: Plan, made: Sequence[Deployment]) -> KeptModel:
    """What to keep of a deployment.

    Args:
        order: What was asked for, with the plan that it is to follow.
        plan: What it is served by; another one only while a device of its own plan is lost.
        made: Its routes, in the order of the plan's legs.
    """
    first = made[0]
    return KeptModel(
        name=order.name,
        source=order.source,
        digest=order.digest,
        model=str(order.model.resolve()),
        plan=encode(plan).decode(),
        inputs=first.inputs,
        outputs=first.outputs,
        warm_up=first.warm_up,
        routes=tuple(
            KeptRoute(each.epoch, fraction, dict(each.layout.hops))
            for (fraction, _), each in zip(plan.legs, made, strict=True)
        ),
        profile=encode(order.profile).decode() if order.profile is not None else "",
        objective=order.objective,
        replicas=order.replicas,
        shapes=dict(order.shapes),
        blocks=order.blocks,
        budget=str(order.budget) if order.budget is not None else "",
        calibration=str(order.calibration.resolve()) if order.calibration is not None else "",
        sample=order.sample,
        given=order.given,
        standby=order.standby,
        asked=order.asked,
        at=order.at,
        home=encode(order.plan).decode() if order.plan is not None and order.plan != plan else "",
    )


def plan_of(kept: KeptModel) -> Plan:
    """What a kept deployment was served by: its routes are the legs of this.

    Raises:
        InvalidDocument: It was written by another version of defer.
    """
    return decode(Plan, kept.plan.encode(), f"the plan kept for {kept.name}")


def order_of(kept: KeptModel) -> Order:
    """The order that a kept deployment came from, with the plan that it is to follow.

    Raises:
        InvalidDocument: That plan was written by another version of defer.
    """
    return Order(
        name=kept.name,
        model=Path(kept.model),
        plan=decode(Plan, (kept.home or kept.plan).encode(), f"the plan kept for {kept.name}"),
        profile=decode(CostProfile, kept.profile.encode(), f"the profile kept for {kept.name}")
        if kept.profile
        else None,
        objective=cast(Objective, kept.objective),
        replicas=kept.replicas,
        shapes=kept.shapes,
        blocks=kept.blocks,
        budget=parse_budget(kept.budget) if kept.budget else None,
        calibration=Path(kept.calibration) if kept.calibration else None,
        sample=kept.sample,
        source=kept.source,
        digest=kept.digest,
        given=kept.given,
        standby=kept.standby,
        asked=kept.asked,
        at=kept.at,
    )


class KeptModels:
    """Notes what is served, for the next process.

    Args:
        keeper: Writes to the store.
        log: Told where that fails: what is served is served all the same.
    """

    def __init__(self, keeper: Keeper, log: EventLog) -> None:
        self._keeper, self._log = keeper, log

    def put(self, order: Order, plan: Plan, made: Sequence[Deployment]) -> None:
        """A model is served like this; arguments as in `kept_of`."""
        try:
            self._keeper.commit((ModelKept(kept_of(order, plan, made)),))
        except DeferError as error:
            self._failed(order.name, f"{order.name} is served, but not after a restart: {error}")

    def drop(self, name: str) -> None:
        """The next process does not serve this model."""
        try:
            self._keeper.commit((ModelDropped(name),))
        except DeferError as error:
            self._failed(name, f"{name} is served again after a restart: {error}")

    def _failed(self, name: str, text: str) -> None:
        self._log.note("not-kept", text, level="error", model=name)
        logger.error("%s", text)


def kept_request(kept: KeptRequest) -> InferArrived:
    """An unanswered request of an earlier process, with what is left of its time."""
    left = max(0, int((kept.deadline - time.time()) * 1e9))
    infer = msgspec.structs.replace(kept.infer, remaining_ns=left)
    return InferArrived(b"", infer, kept.split(), kept=True)


def load_kept(
    pool: AgentPool,
    cluster: Cluster,
    kept: KeptModel,
    route: KeptRoute,
    leg: Plan,
    dispatcher: Place,
    epoch: int,
) -> Deployment:
    """Have the agents of a route take its partitions, which they hold, under a new number.

    Args:
        pool: Connections to the agents, all connected.
        cluster: Where the devices are.
        kept: The deployment.
        route: One of its routes.
        leg: That route's part of the plan.
        dispatcher: Where this dispatcher is reached: results come here from now on.
        epoch: The new number.

    Raises:
        AgentFault: An agent does not have a partition any more.
        AgentUnreachable: An agent did not answer.
        UnknownDevice: An agent is not connected.
    """
    from defer.deployer import Deployment, common_channel_block, in_parallel, place_of

    parts = parts_of(route.hops)
    if len(parts) != len(leg.stages):
        raise InvalidDocument(f"what is kept of model {kept.name!r} does not fit its plan")
    places = {device: place_of(pool, cluster, device) for device in sorted(route.hops)}
    if set(channel_blocks(parts).values()) - {common_channel_block(pool, cluster)}:
        # An agent is another one now, or was told otherwise: all take tensors in plain.
        parts = handed_over(parts, {})
    layout = lay_out(leg, parts, places, dispatcher)
    engines = {device.name: (device.engine, device.engine_options) for device in cluster.devices}

    def bring(device: str) -> Loaded:
        load = Load(0, epoch, kept.name, layout.hops[device], *engines[device])
        answer = pool.ask(device, load, timeout=LOAD_S)
        if not isinstance(answer, Loaded):
            raise AgentFault(f"agent {device!r} answered {type(answer).__name__} to Load")
        return answer

    brought = in_parallel(bring, list(layout.hops))
    return Deployment(
        model=kept.name,
        epoch=epoch,
        plan=leg,
        layout=layout,
        inputs=kept.inputs,
        outputs=kept.outputs,
        warm_up=kept.warm_up,
        sent_bytes=0,
        load_seconds={device: loaded.seconds for device, loaded in brought.items()},
    )
