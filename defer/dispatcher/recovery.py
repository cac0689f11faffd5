"""Keeps every model served as devices are lost and come back.

What stands by takes over in the core, without this. One thread looks at the heartbeats ten times a second, and at what
each model needs whenever something has happened. What takes long (planning, shipping, loading) is done in a thread per
model. Plans for the loss of each further device are made ahead, once nothing happens any more, and stand by where
memory allows.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from defer.agents import AgentPool
from defer.dispatcher import events as e
from defer.dispatcher.ahead import Ahead
from defer.dispatcher.bringup import Order
from defer.dispatcher.core import DispatcherCore
from defer.dispatcher.coverage import Prepared, coverage
from defer.dispatcher.deployments import Deployments
from defer.dispatcher.link_watch import LinkWatch
from defer.dispatcher.mending import (
    Serving,
    devices_of_plan,
    indispensable,
    remedy,
    where_it_runs,
    without_agent,
)
from defer.dispatcher.questions import Foreseen
from defer.dispatcher.severed import Pair, cover, links_of
from defer.dispatcher.shell import DataShell
from defer.dispatcher.standbys import Standbys
from defer.dispatcher.trust import Trust
from defer.dispatcher.unmended import Unmended
from defer.dispatcher.watch import LEAST_S, Hung, Watch
from defer.documents.address import Address
from defer.documents.cluster import Cluster
from defer.errors import DeferError
from defer.infos import StandbyInfo
from node_agent.messages import PeerRef

if TYPE_CHECKING:
    from defer.deployer import Deployment

logger = logging.getLogger("defer.dispatcher")

LOOK_S = 0.05
"""How often heartbeats are looked at: twice as often as they come, so that what they tell is known soon."""

AT_ONCE = 4
"""Models that are mended at the same time."""


class Recovery:
    """See the module.

    Args:
        deployments: What is deployed, and how plans are loaded.
        pool: Connections to the agents.
        shell: The data thread.
    """

    def __init__(self, deployments: Deployments, pool: AgentPool, shell: DataShell) -> None:
        self._deployments, self._pool, self._shell = deployments, pool, shell
        self._log = deployments.log
        self.standbys = Standbys(deployments, pool, shell)
        self.ahead = Ahead(deployments, pool, self.standbys)
        deployments.files_ahead, deployments.changed = self.ahead.files, self.look
        deployments.clear_standbys, deployments.resume_standbys = self.standbys.clear, self.standbys.resume
        self._watch = Watch()
        deployments.unloader.hung = lambda: self._watch.hung
        self._trust = Trust()
        self._links = LinkWatch(
            pool, lambda: deployments.cluster, self._here, self._link_changed, self._busy_devices
        )
        self._changed = threading.Condition()
        self._dirty = True
        self._closing = False
        self._busy: dict[str, float] = {}
        self._again: dict[str, float] = {}
        self._stuck: dict[str, tuple[Order, Cluster, frozenset[str]]] = {}  # what nothing can hold, and when
        self._failed: dict[str, tuple[frozenset[str], float]] = {}
        self._unmended = Unmended()
        self._thread: threading.Thread | None = None
        self._workers = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="defer-recovery")

    def start(self) -> None:
        """Start to look."""
        self._thread = threading.Thread(target=self._run, name="defer-recovery", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Begin nothing more."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self.ahead.stop()
        self._workers.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """`stop`, and wait for what runs."""
        self.stop()
        if self._thread is not None:
            self._thread.join()
        self._workers.shutdown(wait=True)
        self._links.close()
        self.ahead.close()

    def lost(self, device: str) -> None:
        """A device was lost; from any thread."""
        self._trust.lost(device, time.monotonic())
        self.look()

    def look(self) -> None:
        """Something has changed; from any thread."""
        with self._changed:
            self._dirty = True
            self._changed.notify()

    # ------------------------------------------------------------------------------------------ in the thread

    def _run(self) -> None:
        while not self._closing:
            with self._changed:
                if not self._dirty:
                    self._changed.wait(LOOK_S)
            try:
                self._look_at_heartbeats()
                self._look_at_links()
                now = time.monotonic()
                due = [name for name, at in list(self._again.items()) if at <= now]
                if self._dirty or due:
                    self._dirty = False
                    for name in due:  # one by one: other threads add to it
                        self._again.pop(name, None)
                    self._look_at_models()
            except Exception:
                if not self._closing:
                    logger.exception("looking after the deployments failed")
                    time.sleep(LOOK_S)

    def _look_at_heartbeats(self) -> None:
        beats = {
            name: (known.heartbeat, known.heard_at)
            for name, known in self._pool.agents().items()
            if known.state == "alive" and known.heartbeat is not None
        }
        quiet = self._watch.quiet
        for change in self._watch.look(beats, self._expected(beats)):
            device = change.device
            if isinstance(change, Hung):
                reason = f"its stage hangs: an item is {change.age_s:.2g} s old"
                self._shell.post(e.DeviceLost(device, reason))
                self._log.note("stage-hangs", f"{device}: {reason}", level="warning", device=device)
                logger.warning("device %s: %s", device, reason)
                self.lost(device)
            else:
                self._shell.post(e.DeviceBack(device))
                self._log.note("stage-moves", f"the stage on {device} goes on", device=device)
                self.look()
        if self._watch.quiet != quiet:
            self._shell.post(e.DevicesQuiet(self._watch.quiet))

    def _look_at_links(self) -> None:
        """Have the links tried of routes that stand still, and on which no stage is at work."""
        self._links.look()
        at_work = self._watch.at_work(time.monotonic())
        for epoch in self._shell.call(_standing_still).result(5):
            served = self._deployments.served.get(epoch)
            if served is not None and not at_work & devices_of_plan(served.deployment.plan):
                links = links_of(served.deployment.plan)
                self._links.stands_still(epoch, links, partial(self._sever, epoch))

    def _busy_devices(self) -> frozenset[str]:
        """Devices that have an item in work which takes long."""
        return self._watch.at_work(time.monotonic())

    def _here(self) -> PeerRef:
        """Where agents hand over results, as they reach it."""
        address = Address(self._deployments.cluster.dispatcher_host, self._shell.data_port)
        return PeerRef(self._shell.name, address.endpoint())

    def _sever(self, epoch: int, reason: str) -> None:
        """A route has a link that carries nothing; what stands by may have it as well."""
        self.standbys.severed(self._links.severed)
        self._shell.post(e.RouteVoid(epoch, reason))

    def _link_changed(self, severed: frozenset[Pair]) -> None:
        """Links were found severed, or one works again; from another thread."""
        if severed:
            told = ", ".join(f"{source} → {target}" for source, target in sorted(severed))
            self._log.note("link-lost", f"nothing passes the link {told}", level="warning")
            logger.warning("nothing passes the link %s", told)
            for device in cover(severed, self._deployments.cluster.dispatcher.device):
                self._trust.lost(device, time.monotonic())
        else:
            self._log.note("link-back", "a link that was lost works again")
        self.look()

    def _expected(self, beats: Mapping[str, tuple[object, float]]) -> dict[str, float]:
        """Predicted seconds of the longest stage on each device; what stands by runs its canary there as well."""
        found: dict[str, float] = {}
        for epoch, served in list(self._deployments.served.items()):
            made = served.deployment
            # Seconds that were not measured are a guess; a whole request is longer than any of its stages.
            least = 0.0 if made.plan.method == "measured" else self._deployments.canaries.get(epoch, 0.0)
            for stage in made.plan.stages:
                found[stage.device] = max(found.get(stage.device, 0.0), stage.seconds, least)
        if any(getattr(beat, "item_age_s", 0.0) > LEAST_S for beat, _ in beats.values()):
            # A larger request takes longer: in proportion to its size, or to its square.
            for device, scale in self._shell.call(_largest).result(5).items():
                if device in found:
                    found[device] *= max(1.0, scale) ** 2
        return found

    def missing(self, *, hard: bool = False, other: bool = False) -> frozenset[str]:
        """Devices with an agent that cannot be planned with now; `hard` leaves out those that are only distrusted.

        Of the two ends of a severed link one is missing; with `other` it is the other one.
        """
        now = time.monotonic()
        found = set(self._watch.hung) | self._links.missing(other=other)
        for device in self._deployments.cluster.agents:
            known = self._pool.liveness(device.name)
            if known is None or known.state != "alive":
                found.add(device.name)
            elif not hard and (until := self._trust.until(device.name, now)) > now:
                found.add(device.name)
                self._again.setdefault(f"device {device.name}", until)
        return frozenset(found)

    def _gone(self, order: Order) -> frozenset[str]:
        """Devices of an order's plan that the cluster has no more: lost, and not waited for."""
        return frozenset() if order.plan is None else without_agent(order.plan, self._deployments.cluster)

    def _look_at_models(self) -> None:
        orders = dict(self._deployments.orders)
        self.standbys.prune(orders)
        self._unmended.prune(orders)
        if not orders:
            return
        reach, now = self.missing(), time.monotonic()
        routes, standing = self._shell.call(lambda core, now: (_serving(core, now), _whole(core))).result(5)
        for name, order in orders.items():
            if name in self._busy or order.plan is None:
                continue
            serving = self._served(routes.get(name, ()))
            missing = reach | self._gone(order)
            what = remedy(order.plan, serving, missing)
            if what == "none":
                self._stuck.pop(name, None)
                self._unmended.mended(name)
                if serving:
                    needed = indispensable(serving, missing)
                    broken = self.standbys.of(name).keys() - standing.get(name, frozenset())
                    epochs = tuple(each.epoch for each in serving)
                    times, again = self.standbys.retries(name, now)
                    if again < math.inf:
                        self._again[f"standby {name}"] = again
                    room = (self.standbys.cleared, self._deployments.freed, times)
                    state = (epochs, frozenset(broken), room)
                    running = serving[0].plan if len(serving) == 1 else None
                    self.ahead.want(order, missing, needed, running=running, state=state)
            elif not (what == "elsewhere" and self._is_stuck(order, missing)):
                failed = self._failed.get(name)
                if failed is not None and failed[0] == missing and now < failed[1]:
                    continue  # `_again` brings it back here
                self._busy[name] = time.monotonic()
                self._workers.submit(self._mend, order, what == "home", missing)

    def _is_stuck(self, order: Order, missing: frozenset[str]) -> bool:
        """Whether nothing could hold a model, and nothing has changed since."""
        before, cluster, lacked = self._stuck.get(order.name, (None, None, None))
        return before is order and cluster is self._deployments.cluster and lacked == missing

    def coverage(self) -> tuple[StandbyInfo, ...]:
        """What is prepared for the loss of each device that serves a model."""
        orders, reach = dict(self._deployments.orders), self.missing()
        routes, able = self._shell.call(lambda core, now: (_serving(core, now), _able(core))).result(5)
        return tuple(
            info
            for name, order in sorted(orders.items())
            for info in coverage(
                name,
                Prepared(
                    order.standby_mode,
                    self._served(routes.get(name, ())),
                    reach | self._gone(order),
                    {epoch: plan for epoch, plan in self.standbys.of(name).items() if epoch in able},
                    self.ahead.known(order),
                    self.standbys.reasons(name),
                ),
            )
        )

    def _served(self, routes: tuple[tuple[int, bool], ...]) -> list[Serving]:
        served = self._deployments.served
        return [
            Serving(epoch, ready, served[epoch].deployment.plan if epoch in served else None)
            for epoch, ready in routes
        ]

    # ------------------------------------------------------------------------------------- in a thread per model

    def _mend(self, order: Order, home: bool, missing: frozenset[str]) -> None:
        name = order.name
        try:
            self._failed.pop(name, None)
            self._try_to_mend(order, home, missing)
        except Exception as error:
            self._again[name] = again = time.monotonic() + self._not_mended(order, error)
            self._failed[name] = (missing, again)
        finally:
            del self._busy[name]
            self.look()

    def _not_mended(self, order: Order, error: Exception) -> float:
        """Tell why, where that was not told before; seconds until the next try."""
        name, reason = order.name, _files_lack(order) or str(error) or type(error).__name__
        found = self._unmended.failed(name, reason)
        if self._closing:
            return found.pause_s
        if found.new:
            self._log.note("not-mended", f"{name}: {reason}", level="error", model=name)
            known = isinstance(error, DeferError)
            level = logging.WARNING if known else logging.ERROR
            logger.log(level, "model %s could not be mended: %s", name, reason, exc_info=not known)
        announced = name not in self._shell.call(_serving).result(5)
        if (found.new and announced) or (found.stays and self._deployments.unserved(name)):
            self._shell.post(e.ModelStuck(name, reason))
        return found.pause_s

    def _try_to_mend(self, order: Order, home: bool, looked: frozenset[str]) -> None:
        begin, name = self._busy[order.name], order.name
        assert order.plan is not None

        def steps(what: str, fraction: float) -> None:
            took = time.monotonic() - begin
            logger.debug("model %s: after %.4f s: %s, %.0f %%", name, took, what, 100 * fraction)

        def switched(made: Deployment) -> None:
            took = time.monotonic() - begin
            on = where_it_runs(order.plan if home and order.plan is not None else made.plan)
            loaded = max(made.load_seconds.values(), default=0.0)
            told = f"{made.sent_bytes / 1e6:.2f} MB sent, loaded in {loaded:.2f} s"
            text = f"{name} runs on {on} after {took:.2f} s: {told}"
            self._log.note("mended", text, model=name, epoch=made.epoch)
            logger.warning("model %s runs on %s, as deployment %d, after %.2f s", name, on, made.epoch, took)

        steps("begun", 0.0)
        if home:
            needs = devices_of_plan(order.plan)
            self._deployments.change(
                order,
                order.plan,
                None,
                lambda: not needs & self.missing(hard=True),
                switched=switched,
                on_progress=steps,
            )
            return
        cluster = self._deployments.cluster
        foreseen, missing = self._plan(order)
        steps("planned", 1.0)
        if foreseen.plan is None:
            told = f"nothing can hold it without {', '.join(sorted(missing))}: {foreseen.problem}"
            reason = _files_lack(order) or told
            self._stuck[name] = order, cluster, looked  # whatever changes of these is another try,
            self.ahead.forget(order, missing)  # which is planned anew
            self._shell.post(e.ModelStuck(name, reason))
            self._log.note("model-stuck", f"{name}: {reason}", level="error", model=name)
            logger.error("model %s: %s", name, reason)
            return
        try:
            self._deployments.change(
                order,
                foreseen.plan,
                foreseen,
                lambda: self._deployments.unserved(name),
                # What the cluster has no more does not come back, but a plan that was given is its giver's.
                for_good=bool(self._gone(order)) and not order.given,
                switched=switched,
                on_progress=steps,
            )
        except BaseException:
            self.ahead.forget(order, missing)  # or it would be found again, and fail again
            raise

    def _plan(self, order: Order) -> tuple[Foreseen, frozenset[str]]:
        """The best plan for the devices that are left, and those that are missing."""
        gone = self._gone(order)
        missing = self.missing() | gone
        found = self.ahead.find(order, missing) or self.ahead.plan_now(order, missing)
        hard = self.missing(hard=True, other=True) | gone
        if found.plan is None and hard != missing:
            missing = hard
            found = self.ahead.find(order, missing) or self.ahead.plan_now(order, missing)
        return found, missing


def _files_lack(order: Order) -> str:
    """What a model whose file is gone can be told; empty where it is there."""
    if order.model.is_file():
        return ""
    return f"its file {order.model} is not there any more, so it cannot be cut; deploy it again"


def _serving(core: DispatcherCore, _: float) -> dict[str, tuple[tuple[int, bool], ...]]:
    """Per model, the epochs that serve it and whether each is ready; in the data thread."""
    return {
        model: tuple((epoch, core.routes[epoch].state == "ready") for epoch in epochs)
        for model, epochs in core.routes.serving.items()
    }


def _whole(core: DispatcherCore) -> dict[str, frozenset[int]]:
    """Per model, what stands by and may take over; in the data thread."""
    return {model: core.routes.whole(model) for model in core.routes.standing}


def _able(core: DispatcherCore) -> frozenset[int]:
    """What stands by and could take over now; in the data thread."""
    standing = (epoch for epochs in core.routes.standing.values() for epoch in epochs)
    return frozenset(epoch for epoch in standing if core.routes.able(epoch))


def _standing_still(core: DispatcherCore, now: float) -> list[int]:
    """Routes from which nothing comes back; in the data thread."""
    return [epoch for epoch in core.overdue.still(now) if not core.routes[epoch].lost]


def _largest(core: DispatcherCore, _: float) -> dict[str, float]:
    """Per device, the size of the largest request under way by that of the canary; in the data thread."""
    found: dict[str, float] = {}
    for request in core.requests.values():
        route = core.routes[request.epoch].route
        if request.sent and route.typical_bytes:
            for device in route.devices:
                found[device] = max(found.get(device, 1.0), request.nbytes / route.typical_bytes)
    return found
