"""What the dispatcher has deployed: bringing models up, replacing them without a gap, taking them down.

Everything here blocks and runs under one lock, so that two deployments never interleave.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from defer.agents import AgentPool
from defer.dispatcher import events as e
from defer.dispatcher.bringup import OnProgress, Order, make_ready
from defer.dispatcher.keeper import Keeper
from defer.dispatcher.mending import devices_of_plan
from defer.dispatcher.planner import Conversation
from defer.dispatcher.proving import Canary, devices_of, files_of, prove, route_of, send_canary
from defer.dispatcher.questions import Foreseen
from defer.dispatcher.raising import Raising
from defer.dispatcher.report import Served
from defer.dispatcher.restoring import COMING_BACK, KeptModels, load_kept, order_of, plan_of, received
from defer.dispatcher.rollouts import Rollouts
from defer.dispatcher.shell import DataShell
from defer.dispatcher.store import KeptModel, KeptRoute, Snapshot
from defer.dispatcher.tidying import Tidying
from defer.dispatcher.unloading import UNLOAD_S
from defer.documents.cluster import Cluster
from defer.documents.profile import CostProfile
from defer.errors import Cancelled, OutOfMemory
from defer.event_log import EventLog
from defer.translating import translate

if TYPE_CHECKING:
    from defer.deployer import Deployment
    from defer.documents.plan import Plan


@dataclass(frozen=True, slots=True)
class Outcome:
    """What deploying a model gave; `profile` is None where the plan was given."""

    deployment: Deployment
    profile: CostProfile | None
    seconds: float
    canary_s: float


class Deployments(Raising):
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
        super().__init__(cluster, pool, shell, state, profiles, keeper)
        self.log = log or EventLog(time.time)
        self.kept = KeptModels(keeper, self.log)
        self.rollouts = Rollouts(shell, keeper, self.log)
        self._lock = threading.RLock()
        self.freed = 0
        """Routes that served and were unloaded: there is more memory than before."""
        self._has_served: set[int] = set()
        self.resumed = False  # whether what an earlier process left was taken over or forgotten
        self.orders: dict[str, Order] = {}
        self.asked: dict[str, str] = {}  # digests of what the command line last asked for, by name
        self.files_ahead: Callable[[], set[str]] = set
        self._switching = threading.Lock()
        self._leftover: set[int] = (
            set()
        )  # routes that failed or were replaced: files go when they are forgotten
        self.tidying = Tidying(self.parts, self._files_in_use)

    def open(self, snapshot: Snapshot) -> None:
        """Learn what an earlier process left on agents; `clean` has them forget it."""
        self.unloader.left = dict(self._epochs.load(snapshot))

    # ------------------------------------------------------------------------------------------- after a restart

    def restore(self, kept: KeptModel, without: Collection[str] = ()) -> None:
        """Serve a model again that an earlier process served, from what its agents still hold.

        Args:
            kept: The deployment.
            without: Devices that are missing: where it had several routes, those serve that do without them. It is
                mended, and kept anew, when they are back.

        Raises:
            DeferError: They do not hold it any more, or one is not there.
        """
        with self._lock:
            order, plan = self._remember(kept), plan_of(kept)
            self._shell.post(e.ModelAnnounced(order.name, COMING_BACK))
            # With its reference, which is loaded in the ordinary way; a plan that helps out has nothing to compare.
            if order.sample > 0 and order.plan == plan and not without:
                self.bring_up(order, lambda _what, _fraction: None)
                return
            opened: list[Deployment] = []
            try:
                for route, (fraction, leg) in zip(kept.routes, plan.legs, strict=True):
                    if not route.hops.keys().isdisjoint(without):
                        continue
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
            if not without:
                self.kept.put(order, plan, opened)
            told = " and ".join(str(made.epoch) for made in opened)
            told += f", without {', '.join(sorted(without))}" if without else ""
            self.log.note("restored", f"{order.name} is served again as {told}", model=order.name)

    def _adopt(self, kept: KeptModel, route: KeptRoute, leg: Plan) -> Deployment:
        devices = tuple(route.hops)
        epoch = self._epochs.begin(devices)
        try:
            return load_kept(self._pool, self.cluster, kept, route, leg, self.places().dispatcher, epoch)
        except BaseException:
            self.unloader.unload(epoch, devices)
            raise

    def _remember(self, kept: KeptModel) -> Order:
        order = order_of(kept)
        self.orders[order.name], self.asked[order.name] = order, order.asked
        return order

    def postpone(self, kept: KeptModel, reason: str) -> None:
        """A model could not be restored yet: `load_again` tries."""
        self._remember(kept)
        self._shell.post(e.ModelAnnounced(kept.name, reason))

    # ------------------------------------------------------------------------------------------------------- up

    def bring_up(self, order: Order, on_progress: OnProgress) -> Outcome:
        """Deploy a model, prove the whole pipeline with a canary, and serve it; the older one of its name drains.

        Raises:
            DeferError: It cannot be planned, shipped, loaded or run; what was served before is served on.
        """
        begin = time.monotonic()
        with self._lock, self.planning(order.name) as planning:
            order = received(order, self.asked.get(order.name, ""))
            first = order.name not in self.orders
            order.withdrawal.when(planning.give_up)

            def report(what: str, fraction: float) -> None:
                if first:
                    self._shell.post(e.ModelAnnounced(order.name, what))
                on_progress(what, fraction)

            order.withdrawal.check()
            planning.begin()  # its process imports what it needs meanwhile
            self.log.note("deploying", f"deploying {order.name}", model=order.name)
            before = set(self.served)
            try:
                with self.tidying.spared():
                    outcome = self._bring_up(order, planning, report, begin)
            except BaseException as error:
                self._leftover |= self.served.keys() - before
                self.tidying.tidy()
                if isinstance(error, Cancelled):
                    self.log.note("deploy-cancelled", f"{order.name}: {error}", model=order.name)
                else:
                    text = f"{order.name} could not be deployed: {error}"
                    self.log.note("deploy-failed", text, level="error", model=order.name)
                if first:
                    self._shell.post(e.ModelForgotten(order.name))
                if isinstance(error, Exception):
                    raise translate(error) from error
                raise
            made = outcome.deployment
            on = ", ".join(sorted(devices_of_plan(made.plan)))
            text = f"{order.name} is deployed as {made.epoch} on {on}"
            self.log.note("deployed", text, model=order.name, epoch=made.epoch)
            self.rollouts.deployed(order.name, self.orders)
            served = dict(self.served)  # what it replaces drains, and is forgotten later
            self._leftover |= {
                each for each in before & served.keys() if served[each].deployment.model == order.name
            }
            self.tidying.tidy()
            self.changed()
            return outcome

    def _bring_up(self, order: Order, planning: Conversation, report: OnProgress, begin: float) -> Outcome:
        def step(what: str, fraction: float) -> None:
            order.withdrawal.check()
            report(what, fraction)

        # Loading is not told so: an agent's progress comes in the thread that all agents share.
        plan, profile = make_ready(self._pool, self.cluster, order, self.places(), planning, step)
        made_of = self.parts_of(order, planning, report)
        for _, leg in plan.legs:  # all of them: the planner's process takes memory while agents load
            made_of(leg)
        planning.close()
        opened = self._load_in_room(order, plan, made_of, report)
        try:
            order.withdrawal.settle()
        except Cancelled as error:
            for made in opened:
                self._shell.post(e.RouteDropped(made.epoch, str(error)))
            raise
        canary_s = max(self.canaries.get(made.epoch, 0.0) for made in opened)
        # The same plan is loaded again when an agent restarts, so the order keeps it.
        follows = replace(order, plan=plan, profile=profile)
        with self._switching:
            self._switch(follows, plan, opened)
            self.orders[order.name] = follows
        deployment = replace(opened[0], plan=plan, sent_bytes=sum(made.sent_bytes for made in opened))
        return Outcome(deployment, profile, time.monotonic() - begin, canary_s)

    def _switch(
        self,
        order: Order,
        plan: Plan,
        opened: Sequence[Deployment],
        *,
        the_same: bool = False,
    ) -> None:
        """Have routes of `plan` serve; the order, which may be to follow another one, is kept beside it."""
        first, *beside = opened
        self._has_served.update(made.epoch for made in opened)
        self._shell.post(e.RouteReady(first.epoch, tuple(made.epoch for made in beside), the_same))
        self.kept.put(order, plan, opened)

    def widen(self, order: Order, profile: CostProfile) -> Order | None:
        """Have an order's model planned with more devices from now on; None where another order is served by now."""
        with self._switching:
            if self.orders.get(order.name) is not order:
                return None
            self.orders[order.name] = wider = replace(order, profile=profile)
        return wider

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
            self.tidying.tidy()

    def _take_down(self, name: str, drain_s: float) -> None:
        with self._lock:
            with self._switching:  # what has taken over is not kept after this
                del self.orders[name]
                self._cuts.forget(name)
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

    def _files_in_use(self) -> set[str]:
        """Partitions' files that a deployment or a plan uses: agents hold theirs, and cutting again gives the others."""
        return files_of([served.deployment for served in list(self.served.values())]) | self.files_ahead()

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
            self.unloader.unload(epoch, devices_of(served.deployment))
            self.served.pop(epoch, None)
            self.freed += epoch in self._has_served
            self._has_served.discard(epoch)
            self.standing.discard(epoch)
            self.canaries.pop(epoch, None)
            if epoch in self._leftover:
                self._leftover.discard(epoch)
                self.tidying.tidy()

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
        A plan that is for good is proved first in any case.

        Args:
            order: What is served; where that is not so any more, nothing is done.
            plan: What it is to be served by.
            foreseen: The plan's partitions where they are cut already; else, and with replicas, they are cut now.
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
        with self.tidying.spared():
            with self.planning(order.name) as planning:
                made_of = self.parts_of(order, planning, on_progress)
                if foreseen and not plan.shares:  # else it is of the first route alone
                    made_of = lambda _: foreseen  # noqa: E731
                try:
                    opened = self._load_in_room(order, plan, made_of, on_progress, hurry=not for_good)
                except OutOfMemory:
                    if not self._make_room(order.name):
                        raise
                    opened = self._load_plan(order, plan, made_of, on_progress, hurry=not for_good)
            sent: dict[int, Canary] = {}
            with self._switching:
                if not (self.orders.get(order.name) is order and wanted()):
                    for made in opened:
                        self._shell.post(e.RouteDropped(made.epoch, "it is not needed any more"))
                    return None
                for made in opened:
                    if made.epoch not in self.canaries:
                        sent[made.epoch] = send_canary(self._shell, made)
                follows = replace(order, plan=plan) if for_good else order
                self._switch(follows, plan, opened, the_same=True)
                self.orders[order.name] = follows
            switched(opened[0])
            self._prove_later(opened, sent)
            return opened[0]

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
        with self.tidying.spared():
            opened = self._load_plan(order, plan, lambda _: foreseen, lambda _w, _f: None, patient=True)
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
                self.kept.put(order, plan, opened)
