"""What the live page asks of a dispatcher of this process: how it is, what would be, and a few things to do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from defer import api
from defer.dispatcher.questions import Topic, WhatIf
from defer.documents.plan import Plan
from defer.errors import NotReady, Overloaded, UnknownModel, UsageError
from defer.live.view import plan_summary, snapshot
from defer.live.what_if import Changes
from defer.translating import translate

if TYPE_CHECKING:
    from defer.dispatcher.bringup import Order
    from defer.dispatcher.daemon import Daemon
    from defer.live.watcher import Watcher

ACTIONS: Final = {
    "replan": "Measure and plan again with the devices that answer, load beside the old deployment, and switch.",
    "rollback": "Serve by the plan before this one again.",
    "drain": "Take no more requests for the model, let those under way end, and free its devices.",
}
"""What can be done, and what it does."""

DRAIN_S: Final = 30.0
PLANS_KEPT: Final = 4
"""Earlier plans of a model that can be returned to."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A what-if.

    Attributes:
        model: Of which model.
        changes: What is to be other.
    """

    model: str
    changes: Changes


class Board:
    """Its methods may be called from any thread and block; each says how long.

    Args:
        daemon: The dispatcher.
        watcher: Looks at it.
        may_act: Whether `act` does anything: only where callers have shown who they are.
    """

    def __init__(self, daemon: Daemon, watcher: Watcher, *, may_act: bool) -> None:
        self._daemon, self._watcher = daemon, watcher
        self._may_act = may_act
        self._planning = threading.Lock()
        self._acting = threading.Lock()
        self._doing = ""
        self._earlier: dict[str, list[Plan]] = {}

    # -------------------------------------------------------------------------------------------------- state

    def state(self, after_event: int = 0, after_point: float = 0.0) -> dict[str, Any]:
        """What the page draws; up to a second where an agent does not answer.

        Args:
            after_event: Only events with higher numbers.
            after_point: Only points of the charts that are newer, in seconds since 1970.
        """
        daemon, watcher = self._daemon, self._watcher
        self._note_plans()
        plans = {epoch: served.deployment.plan for epoch, served in daemon.deployments.in_service().items()}
        return snapshot(
            watcher.status(),
            daemon.cluster,
            plans,
            watcher.loads(),
            watcher.points(after_point),
            daemon.log.since(after_event, 200),
            boot=daemon.boot,
            phase=daemon.phase,
            last_event=daemon.log.last,
            now=time.time(),
            doing=self._doing,
            actions=self._possible() if self._may_act else {},
        )

    def _note_plans(self) -> None:
        """Keep the plans that models were served by, so that one can be returned to."""
        for name, order in list(self._daemon.deployments.orders.items()):
            kept = self._earlier.setdefault(name, [])
            if order.plan is not None and (not kept or kept[-1] is not order.plan):
                kept.append(order.plan)
                del kept[:-PLANS_KEPT]

    def _possible(self) -> dict[str, list[str]]:
        """The actions of each model."""
        return {
            name: [
                action for action in ACTIONS if action != "rollback" or len(self._earlier.get(name, ())) > 1
            ]
            for name in self._daemon.deployments.orders
        }

    # ------------------------------------------------------------------------------------------------ what if

    def what_if(self, asked: Asked) -> dict[str, Any]:
        """What the planner would do, beside what it does now; seconds for a large model.

        Raises:
            UnknownModel: No such model is served.
            Overloaded: Another one is being worked out.
            NoRoute, UsageError, UnknownDevice: See `what_if.predict`.
        """
        order = self._order(asked.model)
        running = self._running(order)
        if not self._planning.acquire(blocking=False):
            raise Overloaded("another prediction is being worked out", hint="try again in a moment")
        try:
            question = WhatIf(
                topic=Topic.of(order, self._daemon.deployments.parts),
                running=running,
                cluster=self._daemon.cluster,
                profile=order.profile,
                objective=order.objective,
                changes=tuple(each.plain for each in (Changes(), asked.changes)),
                lost=tuple(self._lost()),
            )
            planner = self._daemon.deployments.planner
            now, then = planner.ask(question, tuple[Plan, ...], patient=True)
        finally:
            self._planning.release()
        return {
            "model": asked.model,
            "running": plan_summary(running),
            "now": plan_summary(now),
            "then": plan_summary(then),
            "left_out": "codecs within the error budget" if order.budget is not None else "",
        }

    def _running(self, order: Order) -> Plan:
        """The plan that serves: while a device is lost it is another one than the order's, which is returned to."""
        if order.plan is None:
            raise NotReady(f"model {order.name!r} has no plan yet")
        served = [
            (epoch, each.deployment.plan)
            for epoch, each in self._daemon.deployments.in_service().items()
            if each.deployment.model == order.name
        ]
        if (
            len(order.plan.legs) > 1 or not served
        ):  # each replica's deployment has its own leg of the plan only
            return order.plan
        return max(served, key=lambda each: each[0])[1]

    def _lost(self) -> list[str]:
        """Devices whose agent does not answer; where the dispatcher runs, requests begin and end all the same."""
        here = self._daemon.cluster.dispatcher.device
        return [
            device.name
            for device in self._watcher.status().devices
            if device.state != "alive" and device.name != here
        ]

    # ------------------------------------------------------------------------------------------------- actions

    def act(self, action: str, model: str) -> None:
        """Begin to do something; what becomes of it is told by the events.

        Raises:
            UsageError: Nothing of this name can be done, or not to this model.
            UnknownModel: No such model is served.
            NotReady: Something is being done already, or the dispatcher starts or stops.
        """
        if action not in ACTIONS:
            raise UsageError(f"there is no action {action!r}", hint=f"one of {', '.join(ACTIONS)}")
        order = self._order(model)
        if self._daemon.phase != "serving":
            raise NotReady(f"the dispatcher is {self._daemon.phase}")
        job = self._job(action, order)
        if not self._acting.acquire(blocking=False):
            raise NotReady(f"busy: {self._doing}", hint="try again when that is done")
        self._doing = f"{action} {model}"
        self._daemon.log.note("asked", f"{action} of {model}, asked for on the live page", model=model)
        threading.Thread(target=self._do, args=(job,), name="defer-live-action", daemon=True).start()

    def _job(self, action: str, order: Order) -> Callable[[], object]:
        deployments = self._daemon.deployments
        if action == "drain":
            return lambda: self._daemon.verbs.undeploy(api.Undeploy(0, order.name, DRAIN_S))
        if action == "replan":
            again = replace(order, plan=None, profile=None)
        else:
            earlier = self._earlier.get(order.name, [])
            if len(earlier) < 2:
                raise UsageError(
                    f"model {order.name!r} has had one plan only",
                    hint="a re-plan that gives the same plan leaves nothing to roll back to",
                )
            again = replace(order, plan=earlier[-2])
        return lambda: deployments.bring_up(again, lambda _what, _fraction: None)

    def _do(self, job: Callable[[], object]) -> None:
        try:
            job()
        except Exception as error:
            self._daemon.log.note("action-failed", f"{self._doing}: {translate(error)}", level="error")
        finally:
            self._doing = ""
            self._acting.release()

    def _order(self, model: str) -> Order:
        order = self._daemon.deployments.orders.get(model)
        if order is None:
            known = ", ".join(sorted(self._daemon.deployments.orders)) or "none"
            raise UnknownModel(f"no model {model!r:.80} is served; served: {known}")
        return order
