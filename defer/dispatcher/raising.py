"""Brings plans onto agents: has partitions loaded, opens their routes and proves them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from defer.agents import AgentPool
from defer.dispatcher import events as e
from defer.dispatcher.bringup import Cuts, OnProgress, Order, Places
from defer.dispatcher.core import DispatcherCore
from defer.dispatcher.epochs import EpochLog
from defer.dispatcher.keeper import Keeper
from defer.dispatcher.planner import Conversation, Planner
from defer.dispatcher.proving import Canary, came_back, devices_of, prove, route_of
from defer.dispatcher.questions import Foreseen
from defer.dispatcher.report import Served
from defer.dispatcher.sampling import Sampler, Tally, reference_of
from defer.dispatcher.shell import DataShell
from defer.dispatcher.unloading import Unloader
from defer.documents.address import Address
from defer.documents.cluster import Cluster
from defer.errors import AgentUnreachable, DeferError, OutOfMemory
from defer.hops import Place

if TYPE_CHECKING:
    from defer.deployer import Deployment
    from defer.documents.plan import Plan

logger = logging.getLogger("defer.dispatcher")

STAGGER_S = 1.0
"""Beside what serves, agents get files and load one after the other; but none waits longer than this for another."""

PartsOf = Callable[["Plan"], Foreseen]
"""The partitions of a route."""


class Raising:
    """What agents have loaded, and how more of it is loaded.

    Args:
        cluster: Its devices.
        pool: Connections to their agents.
        shell: The data thread.
        state: Directory for partitions.
        profiles: Directory of measured profiles.
        keeper: Where epochs are kept.
    """

    def __init__(
        self,
        cluster: Cluster,
        pool: AgentPool,
        shell: DataShell,
        state: Path,
        profiles: Path,
        keeper: Keeper,
    ) -> None:
        self.cluster = cluster
        self._pool, self._shell, self._state, self._profiles = pool, shell, state, profiles
        self._epochs = EpochLog(keeper)
        self.unloader = Unloader(pool, self._epochs)
        self.clean = self.unloader.clean
        self.served: dict[int, Served] = {}
        self.standing: set[int] = set()
        self.canaries: dict[int, float] = {}
        self.clear_standbys: Callable[[], bool] = bool
        self.resume_standbys: Callable[[], None] = lambda: None
        self.changed: Callable[[], None] = lambda: None
        self.sampler = Sampler(shell)
        self.planner = Planner()
        self._cuts = Cuts(self.parts)

    def _load_in_room(
        self,
        order: Order,
        plan: Plan,
        made_of: PartsOf,
        on_progress: OnProgress,
        *,
        hurry: bool = False,
    ) -> list[Deployment]:
        """`_load_plan`, for which what stands by gives way where memory does not do for both."""
        try:
            return self._load_plan(order, plan, made_of, on_progress, hurry=hurry)
        except OutOfMemory:
            if not self.clear_standbys():
                raise
        try:
            return self._load_plan(order, plan, made_of, on_progress, hurry=hurry)
        finally:
            self.resume_standbys()
            self.changed()  # there may be room for some of it beside that

    def _load_plan(
        self,
        order: Order,
        plan: Plan,
        made_of: PartsOf,
        on_progress: OnProgress,
        *,
        patient: bool = False,
        hurry: bool = False,
    ) -> list[Deployment]:
        """Load every route of a plan and prove each.

        `made_of` gives their partitions. With `hurry` those are left for later which are loaded while nothing else
        serves the model: `_prove_later`.
        """
        # What stands by takes no memory for a reference: while it serves, nothing is sampled.
        every = max(1, round(1 / order.sample)) if order.sample > 0 and not patient else 0
        alone = not self.in_service() or (hurry and self.unserved(order.name))
        stagger_s = math.inf if patient else 0.0 if alone else STAGGER_S
        opened: list[Deployment] = []
        try:
            # Routes that share a stage share its partition on the device: agents load it once.
            for fraction, leg in plan.legs:
                made = self._load_route(order, leg, made_of, on_progress, stagger_s, standing=patient)
                opened.append(made)
                exact = reference_of(leg) if every else None
                route = replace(route_of(made), sample_every=every if exact else 0, fraction=fraction)
                self._shell.open_route(route, made.layout.first)
                # The loss of a device that died before is told of no route that came after it.
                self._require_alive(made)
                if not (hurry and self.unserved(order.name)):
                    on_progress("sending a canary through the pipeline", 0.0)
                    self.canaries[made.epoch] = prove(self._shell, made)
                if exact is not None:
                    self._load_reference(order, exact, made, made_of, on_progress)
            if len(opened) > 1 and hurry and not self.unserved(order.name):
                # What stood by took over meanwhile: nothing that is not proved takes its place.
                for made in opened:
                    if made.epoch not in self.canaries:
                        self.canaries[made.epoch] = prove(self._shell, made)
        except BaseException as error:
            for made in opened:
                self._shell.post(e.RouteDropped(made.epoch, f"the deployment failed: {error}"))
            raise
        return opened

    def _prove_later(self, opened: Sequence[Deployment], sent: Mapping[int, Canary]) -> None:
        """Wait for the canaries of routes that serve already; where one fails its route is lost, and mended anew.

        Raises:
            DeferError: A canary failed.
        """
        for made in opened:
            if made.epoch not in sent:
                continue
            try:
                self.canaries[made.epoch] = came_back(sent[made.epoch])
            except DeferError as error:
                # What waits there, or was sent, waits for what is loaded in its place.
                self._shell.post(e.RouteVoid(made.epoch, str(error)))
                raise

    def unserved(self, name: str) -> bool:
        """Whether no route of a model takes requests now."""
        return not self._shell.call(lambda core, _: core.routes.ready_for(name)).result(5)

    def _load_route(
        self,
        order: Order,
        leg: Plan,
        made_of: PartsOf,
        on_progress: OnProgress,
        stagger_s: float,
        *,
        standing: bool,
    ) -> Deployment:
        """Load one route's stages under an epoch of its own."""
        passed = [device for transfer in leg.transfers for device in transfer.path[1:-1]]
        devices = tuple(dict.fromkeys([*(stage.device for stage in leg.stages), *passed]))
        made = self._load(order, leg, made_of, devices, on_progress, stagger_s)
        if standing:
            self.standing.add(made.epoch)
        self.served[made.epoch] = Served(made, order.objective)
        return made

    def _load(
        self,
        order: Order,
        leg: Plan,
        made_of: PartsOf,
        devices: tuple[str, ...],
        on_progress: OnProgress,
        stagger_s: float,
        beside: Deployment | None = None,
    ) -> Deployment:
        """Have agents load partitions under a new epoch; where that fails they are told to forget it."""
        from defer.deployer import deploy

        epoch, noted = self._epochs.begin_soon(devices)
        try:
            foreseen, places = made_of(leg), self.places()
            made = deploy(
                self._pool,
                self.cluster,
                leg,
                foreseen.written(places.parts),
                foreseen.signature,
                places.dispatcher,
                epoch=epoch,
                name=order.name,
                on_step=lambda where, what, fraction: on_progress(f"{where}: {what}", fraction),
                stagger_s=stagger_s,
                noted=noted,
                wanted=order.withdrawal.check,
                beside=beside,
            )
            order.withdrawal.check()
            return made
        except BaseException:
            self.unloader.unload(epoch, devices)
            raise

    def _require_alive(self, made: Deployment) -> None:
        """Nobody waits for a canary whose way has a device that is lost.

        Raises:
            AgentUnreachable: Names the device.
        """
        for device in devices_of(made):
            known = self._pool.liveness(device)
            if known is None or known.state != "alive":
                raise AgentUnreachable("it was lost while the model was loaded", where=device)

    def _load_reference(
        self, order: Order, exact: Plan, of: Deployment, made_of: PartsOf, on_progress: OnProgress
    ) -> None:
        """Load a deployment's lossless reference, which samples are compared with; serving goes on without it."""
        try:
            made = self._load(order, exact, made_of, devices_of(of), on_progress, STAGGER_S, beside=of)
        except DeferError as error:
            logger.warning("model %s is served without sampling: %s", order.name, error)
            return
        self.served[made.epoch] = Served(made, order.objective)
        route = replace(route_of(made), reference_of=of.epoch)
        self._shell.open_route(route, made.layout.first)
        metric = of.plan.accuracy.metric if of.plan.accuracy is not None else "relative"
        self.sampler.tallies[of.epoch] = Tally(made.epoch, metric)

    def planning(self, name: str) -> Conversation:
        """The planner, asked about a model; it leaves the processor to what is served, unless requests wait for it."""
        return self.planner.conversation(lambda: self._in_no_hurry(name))

    def _in_no_hurry(self, name: str) -> bool:
        """Whether something is served, and no request waits for this model."""

        def look(core: DispatcherCore, _: float) -> bool:
            routes = core.routes
            some = any(routes.ready_for(model) for model in routes.serving)
            return some and (name not in routes.serving or bool(routes.ready_for(name)))

        return self._shell.call(look).result(5)

    def parts_of(self, order: Order, planning: Conversation, on_progress: OnProgress) -> PartsOf:
        """Has each route of an order's plans cut, where that was not done before."""
        from defer.precision import precisions_of

        def cut(leg: Plan) -> Foreseen:
            precisions = precisions_of(self.cluster, (stage.device for stage in leg.stages))
            return self._cuts.of(order, leg, precisions, planning, on_progress)

        return cut

    def in_service(self) -> dict[int, Served]:
        """What agents hold, without what only stands by."""
        return {epoch: each for epoch, each in list(self.served.items()) if epoch not in self.standing}

    @property
    def parts(self) -> Path:
        """Where partitions lie."""
        return self._state / "parts"

    def places(self) -> Places:
        """Where partitions and measurements lie, and where agents reach this dispatcher's data sockets."""
        host = self.cluster.dispatcher_host
        data, fetch = Address(host, self._shell.data_port), Address(host, self._shell.fetch_port)
        here = Place(self._shell.name, data.endpoint(), fetch.endpoint())
        return Places(here, self.parts, self._profiles)

    def _make_room(self, name: str) -> bool:
        """Unload the routes of a model that are lost; whether there were any."""
        lost = self._shell.call(lambda core, _: core.routes.lost_of(name)).result(5)
        for epoch in lost:
            self._shell.post(e.RouteVoid(epoch, "it was unloaded to make room for what takes its place"))
            served = self.served.get(epoch)
            if served is not None:
                self.unloader.unload(epoch, devices_of(served.deployment))
        return bool(lost)
