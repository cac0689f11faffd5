"""What the dispatcher has deployed: bringing models up, replacing them without a gap, taking them down.

Everything here blocks and runs under one lock, so that two deployments never interleave.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from defer.agents import AgentPool
from defer.dispatcher import events as e
from defer.dispatcher.bringup import OnProgress, Order, Places, load, make_ready
from defer.dispatcher.epochs import EpochLog
from defer.dispatcher.foresight import Foreseen
from defer.dispatcher.keeper import Keeper
from defer.dispatcher.proving import (
    Canary,
    came_back,
    devices_of,
    files_of,
    prove,
    route_of,
    send_canary,
)
from defer.dispatcher.report import Served
from defer.dispatcher.restoring import KeptModels, digest_of, load_kept, order_of
from defer.dispatcher.rollouts import Rollouts
from defer.dispatcher.sampling import Sampler, Tally, reference_of
from defer.dispatcher.shell import DataShell
from defer.dispatcher.store import KeptModel, KeptRoute, Snapshot
from defer.dispatcher.unloading import UNLOAD_S, Unloader
from defer.documents.address import Address
from defer.documents.cluster import Cluster
from defer.documents.profile import CostProfile
from defer.errors import AgentUnreachable, DeferError, OutOfMemory, translate
from defer.event_log import EventLog
from defer.hops import Place

if TYPE_CHECKING:
    from defer.deployer import Deployment
    from defer.documents.plan import Plan
    from partitioner import BlockChain

logger = logging.getLogger("defer.dispatcher")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What deploying a model gave; `profile` is None where the plan was given."""

    deployment: Deployment
    profile: CostProfile | None
    seconds: float
    canary_s: float


class Deployments:
    """The deployments of one dispatcher.

    Args:
        cluster: Its devices.
        pool: Connections to their agents.
        shell: The data thread.
        state: Directory for epochs, partitions and profiles.
        profiles: Directory of measured profiles.
        keeper: Where epochs and deployments are kept.
        log: Told what is deployed and undeployed.
    """

    def __init__(
        self,
        cluster: Cluster,
        pool: AgentPool,
        shell: DataShell,
        state: Path,
        profiles: Path,
        keeper: Keeper,
        log: EventLog | None = None,
    ) -> None:
        self.cluster = cluster
        self.log = log or EventLog(time.time)
        self._pool, self._shell, self._state, self._profiles = pool, shell, state, profiles
        self.kept = KeptModels(keeper, self.log)
        self.rollouts = Rollouts(shell, keeper, self.log)
        self._epochs = EpochLog(keeper)
        self._lock = threading.RLock()
        self.served: dict[int, Served] = {}
        self.standing: set[int] = set()
        self.freed = 0
        """Routes that served and were unloaded: there is more memory than before."""
        self._has_served: set[int] = set()
        self.orders: dict[str, Order] = {}
        self._unloader = Unloader(pool, self._epochs)
        self.clean = self._unloader.clean
        self.canaries: dict[int, float] = {}
        self.files_ahead: Callable[[], set[str]] = set
        self.clear_standbys: Callable[[], bool] = bool
        self.resume_standbys: Callable[[], None] = lambda: None
        self.changed: Callable[[], None] = lambda: None
        self._chains: dict[str, tuple[Path, BlockChain]] = {}
        self._switching = threading.Lock()
        self._changing = 0
        self.sampler = Sampler(shell)

    def open(self, snapshot: Snapshot) -> None:
        """Learn what an earlier process left on agents; `clean` has them forget it."""
        self._unloader.left = dict(self._epochs.load(snapshot))

    # ------------------------------------------------------------------------------------------- after a restart

    def restore(self, kept: KeptModel) -> None:
        """Serve a model again that an earlier process served, from what its agents still hold.

        Raises:
            DeferError: They do not hold it any more, or one is not there.
        """
        with self._lock:
            order = order_of(kept)
            plan = order.plan
            assert plan is not None
            self.orders[order.name] = order
            self._shell.post(e.ModelAnnounced(order.name, "coming back, because the dispatcher restarted"))
            if order.sample > 0:  # its reference is loaded too, in the ordinary way
                self.bring_up(order, lambda _what, _fraction: None)
                return
            opened: list[Deployment] = []
            try:
                for route, (fraction, leg) in zip(kept.routes, plan.legs, strict=True):
                    made = self._adopt(kept, route, leg)
                    self.served[made.epoch] = Served(made, order.objective)
                    opened.append(made)
                    self._shell.open_route(replace(route_of(made), fraction=fraction), made.layout.first)
                    self.canaries[made.epoch] = prove(self._shell, made)
            except BaseException as error:
                for made in opened:
                    self._shell.post(e.RouteDropped(made.epoch, f"it could not be taken over: {error}"))
                raise
            self._has_served.update(made.epoch for made in opened)
            self._shell.post(e.RouteReady(opened[0].epoch, tuple(made.epoch for made in opened[1:])))
            self.kept.put(order, plan, order.profile, opened)
            epochs = ", ".join(str(made.epoch) for made in opened)
            self.log.note("restored", f"{order.name} is served again as {epochs}", model=order.name)

    def _adopt(self, kept: KeptModel, route: KeptRoute, leg: Plan) -> Deployment:
        devices = tuple(route.hops)
        epoch = self._epochs.begin(devices)
        try:
            return load_kept(self._pool, self.cluster, kept, route, leg, self.places().dispatcher, epoch)
        except BaseException:
            self._unloader.unload(epoch, devices)
            raise

    def postpone(self, kept: KeptModel, reason: str) -> None:
        """A model could not be restored yet: `load_again` tries."""
        self.orders[kept.name] = order_of(kept)
        self._shell.post(e.ModelAnnounced(kept.name, reason))

    # ------------------------------------------------------------------------------------------------------- up

    def bring_up(self, order: Order, on_progress: OnProgress) -> Outcome:
        """Deploy a model, prove the whole pipeline with a canary, and serve it; the older one of its name drains.

        Raises:
            DeferError: It cannot be planned, shipped, loaded or run; what was served before is served on.
        """
        begin = time.monotonic()
        if not order.digest and order.model.is_file():
            order = replace(order, digest=digest_of(order))
        with self._lock:
            first = order.name not in self.orders

            def report(what: str, fraction: float) -> None:
                if first:
                    self._shell.post(e.ModelAnnounced(order.name, what))
                on_progress(what, fraction)

            self.log.note("deploying", f"deploying {order.name}", model=order.name)
            try:
                outcome = self._bring_up(order, report, begin)
            except BaseException as error:
                text = f"{order.name} could not be deployed: {error}"
                self.log.note("deploy-failed", text, level="error", model=order.name)
                if first:
                    self._shell.post(e.ModelForgotten(order.name))
                if isinstance(error, Exception):
                    raise translate(error) from error
                raise
            made = outcome.deployment
            text = f"{order.name} is deployed as {made.epoch} on {', '.join(devices_of(made))}"
            self.log.note("deployed", text, model=order.name, epoch=made.epoch)
            self.rollouts.deployed(order.name, self.orders)
            self._tidy()
            self.changed()
            return outcome

    def _bring_up(self, order: Order, on_progress: OnProgress, begin: float) -> Outcome:
        chain, plan, profile = make_ready(self._pool, self.cluster, order, self.places(), on_progress)
        self._chains[order.name] = (order.model, chain)
        opened = self._load_in_room(order, chain, plan, None, on_progress)
        canary_s = max(self.canaries.get(made.epoch, 0.0) for made in opened)
        with self._switching:
            self._switch(order, plan, profile, opened)
            # The same plan is loaded again when an agent restarts, so the order keeps it.
            self.orders[order.name] = replace(order, plan=plan, profile=profile)
        deployment = replace(opened[0], plan=plan, sent_bytes=sum(made.sent_bytes for made in opened))
        return Outcome(deployment, profile, time.monotonic() - begin, canary_s)

    def _switch(
        self,
        order: Order,
        plan: Plan,
        profile: CostProfile | None,
        opened: Sequence[Deployment],
        *,
        the_same: bool = False,
    ) -> None:
        first, *beside = opened
        self._has_served.update(made.epoch for made in opened)
        self._shell.post(e.RouteReady(first.epoch, tuple(made.epoch for made in beside), the_same))
        self.kept.put(order, plan, profile, opened)

    def _load_in_room(
        self,
        order: Order,
        chain: BlockChain,
        plan: Plan,
        foreseen: Foreseen | None,
        on_progress: OnProgress,
        *,
        hurry: bool = False,
    ) -> list[Deployment]:
        """`_load_plan`, for which what stands by gives way where memory does not do for both."""
        try:
            return self._load_plan(order, chain, plan, foreseen, on_progress, hurry=hurry)
        except OutOfMemory:
            if not self.clear_standbys():
                raise
        try:
            return self._load_plan(order, chain, plan, foreseen, on_progress, hurry=hurry)
        finally:
            self.resume_standbys()
            self.changed()  # there may be room for some of it beside that

    def _load_plan(
        self,
        order: Order,
        chain: BlockChain,
        plan: Plan,
        foreseen: Foreseen | None,
        on_progress: OnProgress,
        *,
        patient: bool = False,
        hurry: bool = False,
    ) -> list[Deployment]:
        """Load every route of a plan and prove each.

        With `hurry` those are left for later which are loaded while nothing else serves the model: `_prove_later`.
        """
        # What stands by takes no memory for a reference: while it serves, nothing is sampled.
        every = max(1, round(1 / order.sample)) if order.sample > 0 and not patient else 0
        opened: list[Deployment] = []
        try:
            # Routes that share a stage share its partition on the device: agents load it once.
            for fraction, leg in plan.legs:
                made = self._load_route(order, chain, leg, foreseen, on_progress, patient=patient)
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
                    self._load_reference(order, chain, exact, made, on_progress)
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
        chain: BlockChain,
        leg: Plan,
        foreseen: Foreseen | None,
        on_progress: OnProgress,
        *,
        patient: bool = False,
    ) -> Deployment:
        """Load one route's stages under an epoch of its own."""
        passed = [device for transfer in leg.transfers for device in transfer.path[1:-1]]
        devices = tuple(dict.fromkeys([*(stage.device for stage in leg.stages), *passed]))
        epoch, noted = self._epochs.begin_soon(devices)
        try:
            made = load(
                self._pool,
                self.cluster,
                order,
                chain,
                leg,
                self.places(),
                epoch=epoch,
                on_progress=on_progress,
                foreseen=foreseen,
                patient=patient,
                noted=noted,
            )
        except BaseException:
            self._unloader.unload(epoch, devices)
            raise
        if patient:
            self.standing.add(epoch)
        self.served[epoch] = Served(made, order.objective)
        return made

    def _require_alive(self, made: Deployment) -> None:
        """Nobody waits for a canary whose way has a device that is lost.

        Raises:
            AgentUnreachable: Names the device.
        """
        for device in devices_of(made):
            known = self._pool.liveness(device)
            if known is None or known.state != "alive":
                raise AgentUnreachable("it was lost while the model was loaded", where=device)

    def in_service(self) -> dict[int, Served]:
        """What agents hold, without what only stands by."""
        return {epoch: each for epoch, each in list(self.served.items()) if epoch not in self.standing}

    def _load_reference(
        self, order: Order, chain: BlockChain, exact: Plan, of: Deployment, on_progress: OnProgress
    ) -> None:
        """Load a deployment's lossless reference, which samples are compared with; serving goes on without it."""
        devices = devices_of(of)
        epoch = self._epochs.begin(devices)
        try:
            made = load(
                self._pool,
                self.cluster,
                order,
                chain,
                exact,
                self.places(),
                epoch=epoch,
                on_progress=on_progress,
            )
        except BaseException as error:
            self._unloader.unload(epoch, devices)
            if not isinstance(error, DeferError):
                raise
            logger.warning("model %s is served without sampling: %s", order.name, error)
            return
        self.served[epoch] = Served(made, order.objective)
        route = replace(route_of(made), reference_of=of.epoch)
        self._shell.open_route(route, made.layout.first)
        metric = of.plan.accuracy.metric if of.plan.accuracy is not None else "relative"
        self.sampler.tallies[of.epoch] = Tally(epoch, metric)

    @property
    def parts(self) -> Path:
        """Where partitions lie."""
        return self._state / "parts"

    def widen(self, order: Order, profile: CostProfile) -> Order | None:
        """Have an order's model planned with more devices from now on; None where another order is served by now."""
        with self._switching:
            if self.orders.get(order.name) is not order:
                return None
            self.orders[order.name] = wider = replace(order, profile=profile)
        return wider

    def places(self) -> Places:
        """Where partitions and measurements lie, and where agents reach this dispatcher's data sockets."""
        host = self.cluster.dispatcher_host
        data, fetch = Address(host, self._shell.data_port), Address(host, self._shell.fetch_port)
        here = Place(self._shell.name, data.endpoint(), fetch.endpoint())
        return Places(here, self.parts, self._profiles)

    # ----------------------------------------------------------------------------------------------------- down

    def take_down(self, name: str, drain_s: float) -> None:
        """Serve a model, or one version of it, no more; what is in flight has `drain_s` seconds to end.

        Raises:
            UnknownModel: No such model is served.
            UsageError: Requests for its model take this version, and there are others.
        """
        with self._lock:
            for deployment in self.rollouts.leave(name, self.orders):
                self._take_down(deployment, drain_s)
            self._tidy()

    def _take_down(self, name: str, drain_s: float) -> None:
        with self._lock:
            with self._switching:  # what has taken over is not kept after this
                del self.orders[name]
                self.kept.drop(name)
            self.log.note("undeployed", f"{name} is no longer served", model=name)
            mine = [epoch for epoch, served in list(self.served.items()) if served.deployment.model == name]
            self._shell.post(e.ModelForgotten(name))
            for epoch in mine:
                self._shell.post(e.RouteRetired(epoch))
            if not self.gone(mine, drain_s):
                for epoch in mine:
                    self._shell.post(e.RouteDropped(epoch, f"model {name!r} was undeployed"))
                self.gone(mine, 2 * UNLOAD_S)

    def _tidy(self) -> None:
        """Remove partitions that no deployment uses: agents hold theirs, and cutting again gives the same files."""
        if self._changing:
            return  # what is being cut now is not in use yet
        used = files_of([served.deployment for served in list(self.served.values())])
        used |= self.files_ahead()
        folder = self.parts
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name not in used and path.is_file():
                path.unlink(missing_ok=True)

    def gone(self, epochs: Sequence[int], seconds: float) -> bool:
        """Wait until `forget` was done for all."""
        deadline = time.monotonic() + seconds
        while any(epoch in self.served for epoch in epochs):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def forget(self, epoch: int) -> None:
        """Tell the agents of a route on which nothing is in flight any more to unload it. Takes no lock."""
        tally = self.sampler.tallies.pop(epoch, None)
        if tally is not None:
            self._shell.post(
                e.RouteDropped(tally.reference, "the deployment that it is the reference of is gone")
            )
        served = self.served.get(epoch)
        if served is not None:
            self._unloader.unload(epoch, devices_of(served.deployment))
            self.served.pop(epoch, None)
            self.freed += epoch in self._has_served
            self._has_served.discard(epoch)
            self.standing.discard(epoch)
            self.canaries.pop(epoch, None)

    # -------------------------------------------------------------------------------------------------- changes

    def change(
        self,
        order: Order,
        plan: Plan,
        foreseen: Foreseen | None,
        wanted: Callable[[], bool],
        *,
        for_good: bool = False,
        switched: Callable[[Deployment], None] = lambda _: None,
        on_progress: OnProgress = lambda _what, _fraction: None,
    ) -> Deployment | None:
        """Load another plan of a model that is served, beside what serves it, and switch to it.

        Where an agent has no room for both, and what serves is lost anyway, that is unloaded first. While nothing serves
        the model, the switch waits for no canary: each stage has run when its agent says that it is loaded, and requests
        that wait lose nothing by being the first. The canary goes before them, and is waited for after the switch.

        Args:
            order: What is served; where that is not so any more, nothing is done.
            plan: What it is to be served by.
            foreseen: The plan's partitions where they are cut already; None has them cut.
            wanted: Asked before the switch, when all is loaded.
            for_good: The plan is what the model is to follow from now on, not what helps out while a device is lost.
            switched: Told the new deployment as soon as it serves.
            on_progress: Told what is being done.

        Returns:
            The new deployment, or None where it is not wanted any more.

        Raises:
            DeferError: It cannot be loaded or run. Where something else served the model that still does; else the
                model is served by nothing, as before.
        """
        self._changing += 1
        try:
            chain = self.chain_of(order)
            try:
                opened = self._load_in_room(order, chain, plan, foreseen, on_progress, hurry=True)
            except OutOfMemory:
                if not self._make_room(order.name):
                    raise
                opened = self._load_plan(order, chain, plan, foreseen, on_progress, hurry=True)
            sent: dict[int, Canary] = {}
            with self._switching:
                if not (self.orders.get(order.name) is order and wanted()):
                    for made in opened:
                        self._shell.post(e.RouteDropped(made.epoch, "it is not needed any more"))
                    return None
                for made in opened:
                    if made.epoch not in self.canaries:
                        sent[made.epoch] = send_canary(self._shell, made)
                self._switch(order, plan, order.profile, opened, the_same=True)
                if for_good:
                    self.orders[order.name] = replace(order, plan=plan)
            switched(opened[0])
            self._prove_later(opened, sent)
            return opened[0]
        finally:
            self._changing -= 1

    def stand(
        self,
        order: Order,
        foreseen: Foreseen,
        wanted: Callable[[], bool],
        about_to: Callable[[Sequence[Deployment]], None],
    ) -> list[Deployment] | None:
        """Load another plan of a model that is served, slowly, and have it stand by.

        Args:
            order: What is served; where that is not so any more, nothing stands by.
            foreseen: The plan, and its partitions.
            wanted: Asked when all is loaded.
            about_to: Told the routes just before they can take over.

        Returns:
            Its routes, or None where they are not wanted any more.

        Raises:
            DeferError: It cannot be loaded or run; nothing has changed then.
        """
        plan = foreseen.plan
        assert plan is not None
        self._changing += 1
        try:
            chain = self.chain_of(order)
            opened = self._load_plan(order, chain, plan, foreseen, lambda _w, _f: None, patient=True)
            first, *beside = opened
            with self._switching:
                if self.orders.get(order.name) is order and wanted():
                    about_to(opened)
                    self._shell.post(
                        e.RouteStands(first.epoch, tuple(made.epoch for made in beside), plan.value)
                    )
                    return opened
            for made in opened:
                self._shell.post(e.RouteDropped(made.epoch, "it is not needed any more"))
            return None
        finally:
            self._changing -= 1

    def keep_served(self, made_for: Order, plan: Plan, opened: Sequence[Deployment]) -> None:
        """What stood by serves a model now; the next process is to know, unless something else serves it by then."""
        epochs = {made.epoch for made in opened}
        self.standing -= epochs
        self._has_served |= epochs & self.served.keys()
        name = made_for.name
        with self._switching:
            order = self.orders.get(name)
            if order is None or (order.digest, order.model) != (made_for.digest, made_for.model):
                return
            serving = self._shell.call(lambda core, _: core.routes.serving.get(name, ())).result(5)
            if opened[0].epoch in serving:
                self.kept.put(order, plan, order.profile, opened)

    def _make_room(self, name: str) -> bool:
        """Unload the routes of a model that are lost; whether there were any."""
        lost = self._shell.call(lambda core, _: core.routes.lost_of(name)).result(5)
        for epoch in lost:
            self._shell.post(e.RouteVoid(epoch, "it was unloaded to make room for what takes its place"))
            served = self.served.get(epoch)
            if served is not None:
                self._unloader.unload(epoch, devices_of(served.deployment))
        return bool(lost)

    def chain_of(self, order: Order) -> BlockChain:
        """A model's blocks; analysed where they are not known."""
        import partitioner

        known = self._chains.get(order.name)
        if known is None or known[0] != order.model:
            chain = partitioner.analyze(order.model, order.shapes or None)
            known = self._chains[order.name] = (order.model, chain)
        return known[1]
