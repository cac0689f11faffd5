"""Plans for the loss of one more device, made before it happens, and kept for when it does.

Their partitions are cut, and brought to the agents that would run them, slowly, so that a loss costs loading alone;
where memory allows they stand by, loaded (`standbys`), so that it does not cost that either. Where nothing is to be
brought to the agents (`none`), a loss costs sending and loading.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from defer.agents import AgentPool
from defer.dispatcher.bringup import Order
from defer.dispatcher.questions import Foresee, Foreseen, Topic
from defer.documents.cluster import Cluster
from defer.documents.profile import CostProfile
from defer.errors import Cancelled, DeferError
from defer.shipping import ship
from node_agent.messages import FileRef

if TYPE_CHECKING:
    from defer.dispatcher.deployments import Deployments
    from defer.dispatcher.standbys import Standbys
    from defer.documents.plan import Plan

logger = logging.getLogger("defer.dispatcher")

SETTLE_S = 2.0
"""Nothing is planned ahead before nothing has happened for so long."""

MOST = 64
"""Plans kept for one model; the oldest go first."""

PAUSE = 2.0
"""After each piece of a file that is brought ahead, so many times as long nothing is sent: others use the link."""


class Ahead:
    """See the module. Methods are safe to use from several threads.

    Args:
        deployments: Where models and partitions lie.
        pool: Connections to the agents.
        standbys: Has plans stand by.
    """

    def __init__(self, deployments: Deployments, pool: AgentPool, standbys: Standbys | None = None) -> None:
        self._deployments, self._pool, self._standbys = deployments, pool, standbys
        self.view: Callable[[Order], tuple[Cluster, CostProfile | None]] = lambda order: (
            deployments.cluster,
            order.profile,
        )
        """The cluster and the costs that a model is planned with."""
        self._lock = threading.Lock()
        self._plans: dict[str, dict[frozenset[str], Foreseen]] = {}
        self._before: dict[str, dict[frozenset[str], Foreseen]] = {}
        self._orders: dict[str, Order] = {}
        self._asked: dict[str, object] = {}
        self._settled: dict[str, float] = {}
        self._closing = threading.Event()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="defer-ahead")

    def stop(self) -> None:
        """Plan no more; what is planned now ends with the deployments' planner."""
        self._closing.set()
        self._worker.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """`stop`, and wait for what runs."""
        self.stop()
        self._worker.shutdown(wait=True)

    def find(self, order: Order, missing: frozenset[str]) -> Foreseen | None:
        """The plan that was made for just these devices missing.

        Where none was made since the model's own plan or its costs have changed, the one from before: a loss waits for
        no planning.
        """
        with self._lock:
            found = self._of(order).get(missing)
            if found is not None:
                return found
            old = self._before.get(order.name, {}).get(missing)
        return None if old is None or old.plan is None else batching_as(order, old)

    def forget(self, order: Order, missing: frozenset[str]) -> None:
        """The plan for these devices missing could not be loaded: another one is made when it is asked for."""
        with self._lock:
            self._of(order).pop(missing, None)
            self._before.get(order.name, {}).pop(missing, None)

    def files(self) -> set[str]:
        """Names of the files of all plans that are kept."""
        with self._lock:
            kept = [*self._plans.values(), *self._before.values()]
            found = [foreseen for plans in kept for foreseen in plans.values()]
        return {f"{ref.sha256}{ref.suffix}" for foreseen in found for ref in foreseen.files}

    def want(
        self,
        order: Order,
        missing: frozenset[str],
        needed: frozenset[str],
        *,
        running: Plan | None = None,
        state: object = None,
    ) -> None:
        """Have plans made, soon, for the further loss of each device that a model needs, and have them stand by.

        Args:
            order: What is served.
            missing: Devices that cannot be planned with now.
            needed: Devices without which nothing would serve it.
            running: The plan that does, where it is one route.
            state: Differs when what serves or stands by has changed.
        """
        sets = frozenset(missing | {device} for device in needed - missing)
        asked = (sets, state)
        with self._lock:
            self._of(order)
            if self._asked.get(order.name) == asked:
                return
            self._asked[order.name] = asked
            self._settled[order.name] = time.monotonic() + SETTLE_S
        self._submit(order, sets, running, asked)

    def plan_now(self, order: Order, missing: frozenset[str]) -> Foreseen:
        """Make a plan now; blocks."""
        with self._deployments.tidying.spared():
            (answered,) = self._ask(order, (missing,))
            found = batching_as(order, answered)
            self._keep(order, {missing: found})
        return found

    def known(self, order: Order) -> dict[frozenset[str], Foreseen]:
        """The plans that were made."""
        with self._lock:
            return dict(self._of(order))

    def _submit(
        self, order: Order, wanted: frozenset[frozenset[str]], running: Plan | None, asked: object
    ) -> None:
        def run() -> None:
            while (left := self._settled[order.name] - time.monotonic()) > 0:
                if self._closing.wait(left):
                    return
            with self._lock:
                if self._asked.get(order.name) != asked:
                    return  # something else is wanted by now
                lacking = wanted - self._of(order).keys()
            try:
                if lacking:
                    sets = tuple(sorted(lacking, key=sorted))
                    with self._deployments.tidying.spared():
                        answers = self._ask(order, sets, running, patient=True)
                        new = [batching_as(order, each) for each in answers]
                        self._keep(order, dict(zip(sets, new, strict=True)))
                    logger.info("model %s: planned ahead for the loss of %s", order.name, _told(sets))
                if order.standby_mode == "none":
                    return
                with self._lock:
                    if self._asked.get(order.name) != asked:
                        return
                known = self.known(order)
                made = {lost: known[lost] for lost in wanted if lost in known}
                self._bring(order, asked, list(made.values()))
                if self._standbys is not None and order.standby_mode != "files":
                    self._standbys.bring(
                        order,
                        made,
                        lambda: self._asked.get(order.name) == asked and not self._closing.is_set(),
                    )
            except (DeferError, OSError) as error:
                if not self._closing.is_set():
                    logger.warning("model %s could not be planned ahead: %s", order.name, error)

        try:
            self._worker.submit(run)
        except RuntimeError:
            logger.debug("not planned ahead: the dispatcher is closing")

    def _bring(self, order: Order, asked: object, made: Sequence[Foreseen]) -> None:
        """Have agents hold what they would have to load; blocks, and ends when something else is wanted."""
        files: dict[str, dict[FileRef, Path]] = {}
        for each in made:
            if each.plan is not None:
                parts = each.written(self._deployments.parts)
                for stage, part in zip(each.plan.stages, parts, strict=True):
                    files.setdefault(stage.device, {}).update(part.files)
        last = time.monotonic()

        def pause(_: int) -> None:
            nonlocal last
            took = time.monotonic() - last
            if self._closing.wait(PAUSE * took) or self._asked.get(order.name) != asked:
                raise Cancelled("something else is wanted")
            last = time.monotonic()

        for device, wanted in files.items():
            try:
                last = time.monotonic()
                ship(self._pool, device, wanted, on_sent=pause, gently=True)
            except Cancelled:
                return
            except (DeferError, OSError) as error:  # it is brought when it is needed
                logger.info("device %s was not given its partitions ahead: %s", device, error)

    def _keep(self, order: Order, made: dict[frozenset[str], Foreseen]) -> None:
        with self._lock:
            if self._orders.get(order.name, order) is not order:
                return  # planned for an order that another one has followed since
            plans = self._of(order)
            plans.update(made)
            while len(plans) > MOST:
                del plans[next(iter(plans))]

    def _of(self, order: Order) -> dict[frozenset[str], Foreseen]:
        """The plans of a model; those of an order before this one are kept aside, if it was for the same."""
        known = self._orders.get(order.name)
        if known is not order:
            same = known is not None and (known.model, known.digest) == (order.model, order.digest)
            before = {**self._before.get(order.name, {}), **self._plans.get(order.name, {})} if same else {}
            self._before[order.name] = dict(list(before.items())[-MOST:])
            self._orders[order.name] = order
            self._plans[order.name] = {}
            self._asked.pop(order.name, None)
        return self._plans[order.name]

    def _ask(
        self,
        order: Order,
        sets: tuple[frozenset[str], ...],
        running: Plan | None = None,
        *,
        patient: bool = False,
    ) -> tuple[Foreseen, ...]:
        """A plan for each set of devices that are lost."""
        cluster, profile = self.view(order)
        question = Foresee(
            topic=Topic.of(order, self._deployments.parts),
            cluster=cluster,
            profile=profile,
            objective=order.objective,
            without=tuple(tuple(sorted(lost)) for lost in sets),
            staying=running,
        )
        return self._deployments.planner.ask(question, tuple[Foreseen, ...], patient=patient)


def batching_as(order: Order, made: Foreseen) -> Foreseen:
    """A plan under which the same requests may run together as under the one that was ordered."""
    wanted = order.plan.batching if order.plan is not None else order.batching
    if made.plan is None or wanted is None:
        return made
    return msgspec.structs.replace(made, plan=msgspec.structs.replace(made.plan, batching=wanted))


def _told(sets: tuple[frozenset[str], ...]) -> str:
    return ", ".join(" and ".join(sorted(lost)) for lost in sets)
