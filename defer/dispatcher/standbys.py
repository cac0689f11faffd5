"""Has plans for the loss of a device stand by on the agents, loaded beside what serves; see `standing` for which."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from defer.agents import AgentPool
from defer.deployer import layout_of
from defer.dispatcher import events as e
from defer.dispatcher.bringup import Order
from defer.dispatcher.mending import where_it_runs
from defer.dispatcher.questions import Foreseen
from defer.dispatcher.severed import Pair, links_of
from defer.dispatcher.shell import DataShell
from defer.dispatcher.standing import Candidate, choose, obstacle, shape_of
from defer.errors import DeferError
from node_agent.messages import Load

if TYPE_CHECKING:
    from defer.deployer import Deployment
    from defer.dispatcher.deployments import Deployments
    from defer.documents.plan import Plan

logger = logging.getLogger("defer.dispatcher")

CLEAR_S = 20.0
"""Longest that something which needs the memory waits for what stands by to be unloaded."""

RETRY_S = 60.0
"""Pause before what could not be loaded, or found no room, is tried again."""


@dataclass(frozen=True, slots=True)
class Stood:
    """What stands by: the order that it was made for, its plan, and its routes."""

    order: Order
    plan: Plan
    opened: tuple[Deployment, ...]

    @property
    def model(self) -> str:
        """What it would serve."""
        return self.order.name

    @property
    def epochs(self) -> tuple[int, ...]:
        """Of its routes."""
        return tuple(made.epoch for made in self.opened)


class Standbys:
    """See the module. Methods are safe to use from several threads.

    Args:
        deployments: What is deployed, and how plans are loaded.
        pool: Connections to the agents.
        shell: The data thread.
    """

    def __init__(self, deployments: Deployments, pool: AgentPool, shell: DataShell) -> None:
        self._deployments, self._pool, self._shell = deployments, pool, shell
        self._lock = threading.Lock()
        self._stood: dict[int, Stood] = {}
        self._reasons: dict[str, dict[frozenset[str], str]] = {}
        self._retries: dict[str, tuple[int, float]] = {}
        self._loading = threading.Lock()
        self._needed = 0
        self.cleared = 0
        """Changes when all has to give way, and when it may come back."""

    def of(self, model: str) -> dict[int, Plan]:
        """Plans that stand by for a model, by the epoch of their first route."""
        with self._lock:
            return {epoch: each.plan for epoch, each in self._stood.items() if each.model == model}

    def reasons(self, model: str) -> dict[frozenset[str], str]:
        """Why nothing stands by for a loss, where something was to."""
        with self._lock:
            return dict(self._reasons.get(model, {}))

    def bring(
        self, order: Order, made: Mapping[frozenset[str], Foreseen], wanted: Callable[[], bool]
    ) -> None:
        """Have just these plans stand by, as far as memory allows; blocks, and loads one partition at a time.

        Args:
            order: What is served.
            made: A plan for each loss, its files on the agents.
            wanted: Whether it is still to be done; asked before each load.
        """
        begun = self.cleared  # before it waits for its turn: what is cleared meanwhile is somebody else's
        with self._loading:

            def go_on() -> bool:
                return self.cleared == begun and not self._needed and wanted()

            reasons: dict[frozenset[str], str] = {}
            candidates = self._candidates(order, made, reasons)
            choice = choose(candidates, self._shapes(order.name), self._held())
            # What is dropped frees its memory first.
            self._deployments.gone(self._drop(choice.drop), CLEAR_S)
            for candidate in choice.load:
                if not go_on():
                    break
                found = made[candidate.lost]
                why = obstacle(order.standby_mode, candidate, self._held(), self._memory())
                if not why:
                    why = self._load(order, candidate.lost, found, go_on)
                if why:
                    reasons[candidate.lost] = why
            with self._lock:
                known = self._reasons.get(order.name, {})
                self._reasons[order.name] = reasons
                # Where there is no plan at all, none appears by waiting.
                refused = any(made[lost].plan is not None for lost in reasons)
                times, _ = self._retries.get(order.name, (0, math.inf))
                self._retries[order.name] = times, time.monotonic() + RETRY_S if refused else math.inf
            for lost, why in reasons.items():
                if known.get(lost) != why:
                    text = f"{order.name}: nothing stands by for the loss of {told(lost)}: {why}"
                    self._deployments.log.note("standby-refused", text, model=order.name)
            if refused:
                self._deployments.changed()  # whoever looks learns when to try again

    def retries(self, model: str, now: float) -> tuple[int, float]:
        """How often what was refused is to have been tried again by now, and when it is the next time."""
        with self._lock:
            times, at = self._retries.get(model, (0, math.inf))
            if at <= now:
                times, at = self._retries[model] = times + 1, math.inf
            return times, at

    def took_over(self, model: str, epoch: int) -> None:
        """What stood by serves from now on; the next process is to know."""
        with self._lock:
            stood = self._stood.pop(epoch, None)
        if stood is None:
            return
        self._deployments.keep_served(stood.order, stood.plan, stood.opened)
        on = where_it_runs(stood.plan)
        text = f"{model} runs on {on}, which stood by: nothing was loaded"
        self._deployments.log.note("took-over", text, level="warning", model=model, epoch=epoch)
        logger.warning("model %s runs on %s, as deployment %d, which stood by", model, on, epoch)

    def severed(self, pairs: frozenset[Pair]) -> None:
        """Nothing passes these links: what would use them cannot take over."""
        with self._lock:
            hit = [each for each in self._stood.values() if pairs & {*links_of(each.plan)}]
        for each in hit:
            for epoch in each.epochs:
                self._shell.post(e.RouteVoid(epoch, "nothing passes a link that it needs"))

    def prune(self, models: Collection[str]) -> None:
        """Only these are deployed: the routes of others are gone by themselves."""
        with self._lock:
            self._stood = {epoch: each for epoch, each in self._stood.items() if each.model in models}
            self._reasons = {model: each for model, each in self._reasons.items() if model in models}
            self._retries = {model: each for model, each in self._retries.items() if model in models}

    def clear(self) -> bool:
        """Unload all that stands by, because its memory is needed; whether there was any.

        Where there was, nothing is loaded until `resume`.
        """
        with self._lock:
            self._needed += 1
            self.cleared += 1
        any_ = False
        try:
            any_ = self._clear()
        finally:
            if not any_:
                self.resume()
        return any_

    def resume(self) -> None:
        """The memory is taken by whoever needed it: what is left may be used again."""
        with self._lock:
            self._needed -= 1
            self.cleared += 1

    def _clear(self) -> bool:
        waited = not self._loading.acquire(blocking=False)
        # A load that does not end in that time is not waited for: what stands by beside it goes anyway.
        held = not waited or self._loading.acquire(timeout=CLEAR_S)
        try:
            with self._lock:
                firsts = tuple(self._stood)
            epochs = self._drop(firsts)
            self._deployments.gone(epochs, CLEAR_S)
        finally:
            if held:
                self._loading.release()
        return (waited and held) or bool(epochs)

    def _candidates(
        self, order: Order, made: Mapping[frozenset[str], Foreseen], reasons: dict[frozenset[str], str]
    ) -> list[Candidate]:
        found = []
        for lost, each in sorted(made.items(), key=lambda item: sorted(item[0])):
            if each.plan is None:
                reasons[lost] = each.problem
                continue
            try:
                found.append(Candidate(lost, shape_of(each.plan), self._loads(order, each)))
            except DeferError as error:  # an agent that it needs is not there
                reasons[lost] = str(error)
        return found

    def _loads(self, order: Order, foreseen: Foreseen) -> dict[str, Load]:
        """What each device would be told to load for a plan."""
        assert foreseen.plan is not None
        found: dict[str, Load] = {}
        for _, leg in foreseen.plan.legs:
            layout = layout_of(
                self._pool,
                self._deployments.cluster,
                leg,
                foreseen.parts,
                self._deployments.places().dispatcher,
            )
            for device, hops in layout.hops.items():
                before = found[device].hops if device in found else ()
                engine = self._deployments.cluster.device(device).engine
                found[device] = Load(0, 0, order.name, (*before, *hops), engine)
        return found

    def _held(self) -> dict[str, list[Load]]:
        """What each device holds."""
        found: dict[str, list[Load]] = {}
        for epoch, served in list(self._deployments.served.items()):
            made = served.deployment
            for device, hops in made.layout.hops.items():
                engine = self._deployments.cluster.device(device).engine
                found.setdefault(device, []).append(Load(0, epoch, made.model, hops, engine))
        return found

    def _memory(self) -> dict[str, int]:
        return {
            name: known.offer.memory_bytes
            for name, known in self._pool.agents().items()
            if known.offer is not None
        }

    def _shapes(self, model: str) -> dict[int, object]:
        """What stands by for a model and can still take over, sometime; what cannot is dropped."""
        with self._lock:
            mine = {epoch: each for epoch, each in self._stood.items() if each.model == model}
        whole = self._shell.call(lambda core, _: core.routes.whole(model)).result(5)
        self._drop(tuple(mine.keys() - whole))
        return {epoch: shape_of(each.plan) for epoch, each in mine.items() if epoch in whole}

    def _load(self, order: Order, lost: frozenset[str], foreseen: Foreseen, go_on: Callable[[], bool]) -> str:
        """Load a plan beside what serves; why that failed, or nothing."""
        plan = foreseen.plan
        assert plan is not None
        begin = time.monotonic()
        on = where_it_runs(plan)
        try:
            opened = self._deployments.stand(order, foreseen, go_on, self._about_to_stand(order, plan))
        except (DeferError, OSError) as error:
            logger.info("model %s: %s does not stand by: %s", order.name, on, error)
            return str(error) or type(error).__name__
        if opened is None:
            return "something else is wanted by now"
        took = time.monotonic() - begin
        text = f"{order.name}: {on} stands by for the loss of {told(lost)}, loaded in {took:.2f} s"
        self._deployments.log.note("standby-loaded", text, model=order.name, epoch=opened[0].epoch)
        return ""

    def _about_to_stand(self, order: Order, plan: Plan) -> Callable[[Sequence[Deployment]], None]:
        """Notes a plan before it can take over, so that whoever tells of that finds it."""

        def note(opened: Sequence[Deployment]) -> None:
            with self._lock:
                self._stood[opened[0].epoch] = Stood(order, plan, tuple(opened))

        return note

    def _drop(self, firsts: Collection[int]) -> list[int]:
        """Unload what stands by; the epochs that go. What has taken over serves on, and is left to `took_over`."""
        with self._lock:
            going = {first: self._stood[first] for first in firsts if first in self._stood}
        if not going:
            return []
        for first, stood in going.items():
            self._shell.post(e.RouteStandsDown(first, stood.epochs[1:], "it stands by no more"))
        serving = self._shell.call(lambda core, _: going.keys() & core.routes.by_epoch.keys()).result(5)
        with self._lock:
            for first in going.keys() - serving:
                self._stood.pop(first, None)
        return [epoch for first in going.keys() - serving for epoch in going[first].epochs]


def told(lost: frozenset[str]) -> str:
    """Devices in words."""
    return " and ".join(sorted(lost))
