"""Plans a model anew while it is served, when devices or links have become slower or faster, or there are more of them.

One thread measures (`gauging`) and notes what it believes (`drift`). Where a belief has changed, the planner, in a
process of its own, looks for the best plan and weighs what it gains against what loading it takes. If that pays, the
plan is loaded beside what serves, switched to, and what was under way ends on the old one. `restraint` keeps changes
rare, however measurements jump.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from defer import units
from defer.agents import AgentPool
from defer.dispatcher.ahead import Ahead, batching_as
from defer.dispatcher.bringup import Order
from defer.dispatcher.core import DispatcherCore
from defer.dispatcher.deployments import Deployments
from defer.dispatcher.drift import BANDS, Drift, Subject
from defer.dispatcher.drifted import drifted
from defer.dispatcher.gauging import Found, Gauges
from defer.dispatcher.mending import devices_of_plan, where_it_runs
from defer.dispatcher.questions import Foresee, Foreseen, Topic
from defer.dispatcher.recovery import Recovery
from defer.dispatcher.restraint import Demand, Restraint
from defer.dispatcher.shell import DataShell
from defer.dispatcher.widening import compatible, widened
from defer.documents.cluster import Cluster, Dispatcher
from defer.documents.profile import CostProfile
from defer.errors import DeferError
from defer.event_log import Level

logger = logging.getLogger("defer.dispatcher")

LOOKS: Final = 15
"""Looks within the time that a change must last."""

LEAST_LOOK_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Believed:
    """What one model's planning believes to be otherwise than it was measured.

    Attributes:
        model: Its name.
        subject: A device or a link.
        factor: Of time; 2 is twice as slow.
    """

    model: str
    subject: Subject
    factor: float


@dataclass(slots=True)
class _Watched:
    """One model.

    Attributes:
        order: What is served; another one means that all begins anew.
        drift: Beliefs.
        restraint: When its plan may be changed.
        demand: Requests that are asked for.
        doubted: What was last found otherwise than believed.
        busy: Whether a plan is looked for or loaded, or a device is measured.
        refused: Devices that could not be measured, each with the time when that is tried again.
    """

    order: Order
    drift: Drift
    restraint: Restraint
    demand: Demand
    doubted: set[Subject] = field(default_factory=set)
    busy: bool = False
    refused: dict[str, float] = field(default_factory=dict)


class Adapting:
    """See the module.

    Args:
        deployments: What is served, and how plans are loaded.
        pool: Connections to the agents.
        shell: The data thread.
        recovery: Knows which devices are missing, and plans for losses: with what is believed here.
        settings: Whether and when plans are replaced.
    """

    def __init__(
        self,
        deployments: Deployments,
        pool: AgentPool,
        shell: DataShell,
        recovery: Recovery,
        settings: Dispatcher,
    ) -> None:
        self._deployments, self._pool, self._shell, self._recovery = deployments, pool, shell, recovery
        self._settings, self._log = settings, deployments.log
        self._lasting = units.parse_duration(settings.replan_after)
        self._pause = units.parse_duration(settings.replan_pause)
        self._horizon = units.parse_duration(settings.replan_horizon)
        self._gauges = Gauges(deployments, pool, self._lasting)
        self._models: dict[str, _Watched] = {}
        self._lock = threading.Lock()
        self._files: set[str] = set()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="defer-replan")
        ahead: Ahead = recovery.ahead
        ahead.view = self.view
        deployments.files_ahead = lambda: ahead.files() | self._files

    def start(self) -> None:
        """Start to look, unless no plan may be replaced."""
        if self._settings.replan != "never":
            self._thread = threading.Thread(target=self._run, name="defer-adapting", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Begin nothing more."""
        self._closing.set()
        self._gauges.stop()
        self._worker.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """`stop`, and wait for what runs."""
        self.stop()
        if self._thread is not None:
            self._thread.join()
        self._gauges.close()
        self._worker.shutdown(wait=True)

    # ------------------------------------------------------------------------------------------- any thread's

    def believed(self) -> tuple[Believed, ...]:
        """What is believed to be otherwise than it was measured."""
        with self._lock:
            return tuple(
                Believed(name, subject, factor)
                for name, watched in sorted(self._models.items())
                for subject, factor in sorted(watched.drift.factors.items())
            )

    def view(self, order: Order) -> tuple[Cluster, CostProfile | None]:
        """The cluster and the profile that an order's model should be planned with now."""
        cluster = self._deployments.cluster
        with self._lock:
            watched = self._models.get(order.name)
            factors = watched.drift.factors if watched is not None else {}
        if order.profile is None or not factors:
            return cluster, order.profile
        return drifted(cluster, order.profile, factors)

    # ------------------------------------------------------------------------------------------ in the thread

    def _run(self) -> None:
        pause = max(LEAST_LOOK_S, self._lasting / LOOKS)
        while not self._closing.wait(pause):
            try:
                self._look()
            except Exception:
                if not self._closing.is_set():
                    logger.exception("looking for drift failed")
                    self._closing.wait(pause)

    def _look(self) -> None:
        orders = {name: order for name, order in list(self._deployments.orders.items()) if self._may(order)}
        self._follow(orders)
        if not orders:
            return
        now = time.monotonic()
        totals = self._shell.call(_asked).result(5)
        with self._lock:
            for name, watched in self._models.items():
                watched.demand.note(totals.get(name, 0), now)
            doubted = [
                (name, subject)
                for name, watched in self._models.items()
                for subject in watched.doubted | watched.drift.factors.keys()
            ]
        for found in self._gauges.look(orders, doubted):
            self._note(found)
        for watched in list(self._models.values()):
            self._consider(watched)

    def _may(self, order: Order) -> bool:
        """Whether a model's plan may be replaced, and there are costs to plan with."""
        replaced = self._settings.replan == "every" or not order.given
        return replaced and order.plan is not None and order.profile is not None

    def _follow(self, orders: Mapping[str, Order]) -> None:
        with self._lock:
            for name in self._models.keys() - orders.keys():
                del self._models[name]
            for name, order in orders.items():
                watched = self._models.get(name)
                if watched is None or not _continues(watched.order, order):
                    watched = _Watched(
                        order, Drift(self._lasting), Restraint(self._pause), Demand(self._horizon)
                    )
                    question = self._question_of(order, watched, self._recovery.missing())
                    watched.restraint.settled(question, time.monotonic())  # it was planned just now
                    self._models[name] = watched
                else:
                    watched.order = order

    def _note(self, found: Found) -> None:
        with self._lock:
            watched = self._models.get(found.model)
            if watched is None:
                return
            changed = watched.drift.note(found.subject, found.ratio, time.monotonic())
            believed = watched.drift.factors.get(found.subject, 1.0)
            band = BANDS[found.subject.kind]
            if believed / band <= found.ratio <= believed * band:
                watched.doubted.discard(found.subject)
            else:
                watched.doubted.add(found.subject)
        if changed is not None:
            level: Level = "warning" if changed.now > changed.before else "info"
            text = f"{found.model}: {changed}, over {self._settings.replan_after}"
            self._log.note("drift", text, level=level, device=found.subject.source, model=found.model)
            logger.warning("%s", text)

    def _consider(self, watched: _Watched) -> None:
        order, now = watched.order, time.monotonic()
        assert order.plan is not None
        missing = self._recovery.missing()
        # What has lost a device is the recovery's; what serves otherwise than ordered will be changed by it soon.
        if watched.busy:
            return
        newcomer = self._newcomer(watched, missing, now)
        if newcomer:
            self._submit(watched, lambda: self._widen(watched, order, newcomer))
            return
        if devices_of_plan(order.plan) & missing or not self._serves(order):
            return
        question = self._question_of(order, watched, missing)
        if not watched.restraint.asks(question, now, again=bool(watched.drift.factors)):
            return
        self._submit(watched, lambda: self._improve(watched, order, missing))

    def _submit(self, watched: _Watched, action: Callable[[], None]) -> None:
        def run() -> None:
            try:
                action()
            finally:
                self._files = set()
                watched.busy = False

        watched.busy = True
        try:
            self._worker.submit(run)
        except RuntimeError:
            logger.debug("not planned anew: the dispatcher is closing")

    def _newcomer(self, watched: _Watched, missing: frozenset[str], now: float) -> str:
        """A device that has joined and that nothing is known of yet; empty for none."""
        assert watched.order.profile is not None
        for device in self._deployments.cluster.agents:
            new = device.computes and device.name not in watched.order.profile.devices
            if new and device.name not in missing and watched.refused.get(device.name, now) <= now:
                return device.name
        return ""

    def _question_of(self, order: Order, watched: _Watched, missing: frozenset[str]) -> object:
        """All that decides whether there is a better plan; a device that has joined or is back is another question."""
        factors = frozenset(watched.drift.factors.items())
        known = frozenset(order.profile.devices) if order.profile is not None else frozenset()
        return order.plan, factors, known - missing

    def _serves(self, order: Order) -> bool:
        """Whether what serves a model is its own plan, with every device."""
        ready = self._shell.call(_ready).result(5).get(order.name, ())
        served = self._deployments.served
        plans = [served[epoch].deployment.plan for epoch in ready if epoch in served]
        return order.plan is not None and all(leg in plans for _, leg in order.plan.legs)

    # ---------------------------------------------------------------------------------------------- in the worker

    def _improve(self, watched: _Watched, order: Order, missing: frozenset[str]) -> None:
        try:
            self._try_to_improve(watched, order, missing)
        except Exception as error:
            if not self._closing.is_set():
                watched.restraint.failed(time.monotonic())
                text = f"{order.name} could not be moved to a better plan: {error}"
                self._log.note("replan-failed", text, level="warning", model=order.name)
                logger.log(
                    logging.WARNING, "%s", text, exc_info=None if isinstance(error, DeferError) else error
                )

    def _widen(self, watched: _Watched, order: Order, device: str) -> None:
        """Measure a device that has joined."""
        try:
            with self._deployments.planner.conversation(lambda: True) as planning:
                profile = widened(
                    self._pool, self._deployments.cluster, order, planning, self._deployments.places(), device
                )
            wider = self._deployments.widen(order, profile)
        except Exception as error:
            if not self._closing.is_set():
                watched.refused[device] = time.monotonic() + self._pause
                text = f"{device} cannot be planned with for {order.name} yet: {error}"
                self._log.note("device-not-measured", text, level="warning", device=device, model=order.name)
                logger.log(
                    logging.WARNING, "%s", text, exc_info=None if isinstance(error, DeferError) else error
                )
            return
        if wider is not None:
            watched.order = wider
            self._recovery.look()  # what nothing could hold may be held now
            text = f"{device} was measured for {order.name} and is planned with"
            self._log.note("device-measured", text, device=device, model=order.name)
            logger.info("%s", text)

    def _try_to_improve(self, watched: _Watched, order: Order, missing: frozenset[str]) -> None:
        with self._deployments.tidying.spared():
            found = self._ask(watched, order, missing)
            self._files = {f"{ref.sha256}{ref.suffix}" for ref in found.files}
        if found.plan is None:
            why = found.reason or found.problem
            self._log.note("replan-kept", f"{order.name}: {why}", model=order.name)
            logger.info("model %s: %s", order.name, why)
            return
        needs = devices_of_plan(found.plan)
        begin = time.monotonic()
        made = self._deployments.change(
            order,
            found.plan,
            found,
            lambda: not needs & self._recovery.missing(hard=True) and not self._closing.is_set(),
            for_good=True,
        )
        if made is None:
            return
        now = time.monotonic()
        watched.restraint.changed(now)
        now_ordered = self._deployments.orders.get(order.name, order)
        watched.restraint.settled(self._question_of(now_ordered, watched, missing), now)
        text = f"{order.name} runs on {where_it_runs(found.plan)} after {now - begin:.2f} s of loading; {found.reason}"
        self._log.note("replanned", text, model=order.name, epoch=made.epoch)
        logger.warning("%s", text)
        self._recovery.look()

    def _ask(self, watched: _Watched, order: Order, missing: frozenset[str]) -> Foreseen:
        cluster, profile = self.view(order)
        question = Foresee(
            topic=Topic.of(order, self._deployments.parts),
            cluster=cluster,
            profile=profile,
            objective=order.objective,
            without=(tuple(sorted(missing)),),
            running=order.plan,
            rate=watched.demand.rate,
            horizon=self._horizon,
            threshold=self._settings.replan_gain,
            replicas=order.replicas,
        )
        (found,) = self._deployments.planner.ask(question, tuple[Foreseen, ...], patient=True)
        return batching_as(order, found)


def _continues(before: Order, now: Order) -> bool:
    """Whether what was learnt while one order was served holds for the other: the same model, measured alike."""
    if before.profile is None or now.profile is None or before.model != now.model:
        return False
    return before.profile is now.profile or compatible(before.profile, now.profile)


def _asked(core: DispatcherCore, _: float) -> dict[str, int]:
    """Requests per model that were sent to a first stage so far; in the data thread."""
    return {model: totals.waited for model, totals in core.routes.totals.items()}


def _ready(core: DispatcherCore, _: float) -> dict[str, tuple[int, ...]]:
    """Per model, the epochs that serve it and are ready; in the data thread."""
    return {
        model: tuple(epoch for epoch in epochs if core.routes[epoch].state == "ready")
        for model, epochs in core.routes.serving.items()
    }
