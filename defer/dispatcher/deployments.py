"""What the dispatcher has deployed: bringing models up, replacing them without a gap, taking them down.

Everything here blocks and runs under one lock, so that two deployments never interleave.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from defer.agents import AgentPool
from defer.burdens import latency_of, work_of
from defer.dispatcher import events as e
from defer.dispatcher.bringup import OnProgress, Order, Places, load, make_ready
from defer.dispatcher.epochs import EpochLog
from defer.dispatcher.keeper import Keeper
from defer.dispatcher.neighbours import link_of
from defer.dispatcher.report import Served
from defer.dispatcher.restoring import KeptModels, digest_of, load_kept, order_of
from defer.dispatcher.sampling import Sampler, Tally, reference_of
from defer.dispatcher.shell import DataShell
from defer.dispatcher.store import KeptModel, KeptRoute, Snapshot
from defer.documents.address import Address
from defer.documents.cluster import Cluster
from defer.documents.profile import CostProfile
from defer.errors import AgentUnreachable, DeferError, UnknownModel, from_code, translate
from defer.event_log import EventLog
from defer.hops import Place
from node_agent.dtypes import storage
from node_agent.frames import pack_item
from node_agent.messages import Unload

if TYPE_CHECKING:
    from defer.deployer import Deployment
    from defer.documents.plan import Plan
    from partitioner import BlockChain

logger = logging.getLogger("defer.dispatcher")

CANARY_S = 60.0
"""Seconds in which the first request must come back; engines may still optimise."""

UNLOAD_S = 10.0
"""Seconds in which an agent forgets an epoch."""


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
        self._epochs = EpochLog(keeper)
        self._lock = threading.RLock()
        self.served: dict[int, Served] = {}
        self.orders: dict[str, Order] = {}
        self._left: dict[int, tuple[str, ...]] = {}
        self.sampler = Sampler(shell)

    def open(self, snapshot: Snapshot) -> None:
        """Learn what an earlier process left on agents; `clean` has them forget it."""
        self._left = dict(self._epochs.load(snapshot))

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
                    self._shell.open_route(replace(_route(made), fraction=fraction), made.layout.first)
                    self._canary(made)
            except BaseException as error:
                for made in opened:
                    self._shell.post(e.RouteDropped(made.epoch, f"it could not be taken over: {error}"))
                raise
            self._shell.post(e.RouteReady(opened[0].epoch, tuple(made.epoch for made in opened[1:])))
            self.kept.put(order, plan, order.profile, opened)
            epochs = ", ".join(str(made.epoch) for made in opened)
            self.log.note("restored", f"{order.name} is served again as {epochs}", model=order.name)

    def _adopt(self, kept: KeptModel, route: KeptRoute, leg: Plan) -> Deployment:
        devices = tuple(route.hops)
        epoch = self._epochs.begin(devices)
        try:
            return load_kept(self._pool, self.cluster, kept, route, leg, self._places().dispatcher, epoch)
        except BaseException:
            self.unload(epoch, devices)
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
            # The same plan is loaded again when an agent restarts, so the order keeps it.
            self.orders[order.name] = replace(order, plan=outcome.deployment.plan, profile=outcome.profile)
            self._tidy()
            return outcome

    def _bring_up(self, order: Order, on_progress: OnProgress, begin: float) -> Outcome:
        places = self._places()
        chain, plan, profile = make_ready(self._pool, self.cluster, order, places, on_progress)
        every = max(1, round(1 / order.sample)) if order.sample > 0 else 0
        opened: list[Deployment] = []
        canary_s = 0.0
        try:
            # Routes that share a stage share its partition on the device: agents load it once.
            for fraction, leg in plan.legs:
                made = self._load_route(order, chain, leg, places, on_progress)
                opened.append(made)
                exact = reference_of(leg) if every else None
                route = replace(_route(made), sample_every=every if exact else 0, fraction=fraction)
                self._shell.open_route(route, made.layout.first)
                on_progress("sending a canary through the pipeline", 0.0)
                canary_s = max(canary_s, self._canary(made))
                if exact is not None:
                    self._load_reference(order, chain, exact, made, on_progress)
        except BaseException as error:
            for made in opened:
                self._shell.post(e.RouteDropped(made.epoch, f"the deployment failed: {error}"))
            raise
        first, *beside = opened
        self._shell.post(e.RouteReady(first.epoch, tuple(made.epoch for made in beside)))
        self.kept.put(order, plan, profile, opened)
        deployment = replace(first, plan=plan, sent_bytes=sum(made.sent_bytes for made in opened))
        return Outcome(deployment, profile, time.monotonic() - begin, canary_s)

    def _load_route(
        self, order: Order, chain: BlockChain, leg: Plan, places: Places, on_progress: OnProgress
    ) -> Deployment:
        """Load one route's stages under an epoch of its own."""
        passed = [device for transfer in leg.transfers for device in transfer.path[1:-1]]
        devices = tuple(dict.fromkeys([*(stage.device for stage in leg.stages), *passed]))
        epoch = self._epochs.begin(devices)
        try:
            made = load(
                self._pool, self.cluster, order, chain, leg, places, epoch=epoch, on_progress=on_progress
            )
        except BaseException:
            self.unload(epoch, devices)
            raise
        self.served[epoch] = Served(made, order.objective)
        return made

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
                self._places(),
                epoch=epoch,
                on_progress=on_progress,
            )
        except BaseException as error:
            self.unload(epoch, devices)
            if not isinstance(error, DeferError):
                raise
            logger.warning("model %s is served without sampling: %s", order.name, error)
            return
        self.served[epoch] = Served(made, order.objective)
        route = replace(_route(made), reference_of=of.epoch)
        self._shell.open_route(route, made.layout.first)
        metric = of.plan.accuracy.metric if of.plan.accuracy is not None else "relative"
        self.sampler.tallies[of.epoch] = Tally(epoch, metric)

    def _canary(self, deployment: Deployment) -> float:
        """Seconds of one request of zeros through the whole pipeline."""
        arrays = {}
        for spec in deployment.warm_up:
            shape = [dim for dim in spec.shape if isinstance(dim, int)]
            arrays[spec.name] = np.zeros(shape, storage(spec.dtype))
        dtypes = {spec.name: spec.dtype for spec in deployment.warm_up}
        headers, frames = pack_item(arrays, "raw", dtypes)
        try:
            *_, seconds = self._shell.canary(deployment.epoch, headers, frames, CANARY_S).result(CANARY_S + 5)
        except DeferError as error:
            hint = error.hint or "the logs of the agents on its route say more"
            raise from_code(error.code, f"the canary failed: {error.message}", hint) from error
        return float(seconds)

    def _places(self) -> Places:
        host = self.cluster.dispatcher_host
        data, fetch = Address(host, self._shell.data_port), Address(host, self._shell.fetch_port)
        here = Place(self._shell.name, data.endpoint(), fetch.endpoint())
        return Places(here, self._state / "parts", self._profiles)

    # ----------------------------------------------------------------------------------------------------- down

    def take_down(self, name: str, drain_s: float) -> None:
        """Serve a model no more; what is in flight has `drain_s` seconds to end.

        Raises:
            UnknownModel: No such model is served.
        """
        with self._lock:
            if self.orders.pop(name, None) is None:
                known = ", ".join(sorted(self.orders)) or "none"
                raise UnknownModel(f"no model {name!r} is served; served: {known}")
            self.log.note("undeployed", f"{name} is no longer served", model=name)
            self.kept.drop(name)
            mine = [epoch for epoch, served in list(self.served.items()) if served.deployment.model == name]
            self._shell.post(e.ModelForgotten(name))
            for epoch in mine:
                self._shell.post(e.RouteRetired(epoch))
            if not self._gone(mine, drain_s):
                for epoch in mine:
                    self._shell.post(e.RouteDropped(epoch, f"model {name!r} was undeployed"))
                self._gone(mine, 2 * UNLOAD_S)
            self._tidy()

    def _tidy(self) -> None:
        """Remove partitions that no deployment uses: agents hold theirs, and cutting again gives the same files."""
        hops = [
            spec
            for served in list(self.served.values())
            for specs in served.deployment.layout.hops.values()
            for spec in specs
        ]
        used = {f"{ref.sha256}{ref.suffix}" for spec in hops for ref in (spec.graph, *spec.weights) if ref}
        folder = self._places().parts
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name not in used and path.is_file():
                path.unlink(missing_ok=True)

    def _gone(self, epochs: list[int], seconds: float) -> bool:
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
            self.unload(epoch, devices_of(served.deployment))
            self.served.pop(epoch, None)

    def unload(self, epoch: int, devices: tuple[str, ...]) -> None:
        """Tell agents to forget an epoch; where one cannot be told now, `clean` tells it later."""
        asked = []
        left = []
        for device in devices:
            known = self._pool.liveness(device)
            try:
                if known is None or known.state != "alive":
                    raise AgentUnreachable(f"agent {device!r} is out of reach")
                asked.append((device, self._pool.submit(device, Unload(0, epoch), timeout=UNLOAD_S)))
            except AgentUnreachable:  # or the control thread has ended
                left.append(device)
        for device, future in asked:
            try:
                self._pool.result(future, device, UNLOAD_S)
            except AgentUnreachable as error:
                logger.warning("agent %s was not told to unload %d: %s", device, epoch, error)
                left.append(device)
            except DeferError as error:  # it answered: it does not hold the epoch
                logger.info("agent %s: %s", device, error)
        if left:
            self._left[epoch] = tuple(left)
        else:
            self._left.pop(epoch, None)
            self._epochs.end(epoch)

    def clean(self, device: str | None = None) -> None:
        """Tell agents (one, or all) to forget epochs that they could not be told of before."""
        for epoch, devices in list(self._left.items()):
            if device is None or device in devices:
                self.unload(epoch, devices)

    # ---------------------------------------------------------------------------------------------------- repair

    def hit_by(self, device: str) -> set[str]:
        """Models that are served through a device."""
        return {
            served.deployment.model
            for served in list(self.served.values())
            if device in devices_of(served.deployment)
        } & self.orders.keys()

    def lessened(self) -> set[str]:
        """Models with replicas of which a route was given up, because a device was lost."""
        held = [served.deployment.model for served in list(self.served.values())]
        return {
            name
            for name, order in list(self.orders.items())
            if order.plan is not None and held.count(name) < len(order.plan.shares)
        }

    def load_again(self, name: str) -> bool:
        """Load a model by its plan once more, because an agent restarted; False when that did not work yet."""
        with self._lock:
            order = self.orders.get(name)
            if order is None:
                return True  # undeployed meanwhile
            self._shell.post(e.ModelAnnounced(name, "loading again, because an agent restarted"))
            try:
                self.bring_up(order, lambda _what, _fraction: None)
            except DeferError as error:
                logger.warning("model %s could not be loaded again: %s", name, error)
                self._shell.post(e.ModelAnnounced(name, f"loading again failed: {error}"))
                return False
            logger.warning("model %s is served again", name)
            return True


def devices_of(deployment: Deployment) -> tuple[str, ...]:
    """Every device of a deployment, in the order in which requests pass."""
    passed = sorted((spec.hop, device) for device, hops in deployment.layout.hops.items() for spec in hops)
    return tuple(dict.fromkeys(device for _, device in passed))


def _route(deployment: Deployment) -> e.Route:
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
    )
