"""Measures, while requests are served, what planning took for given: runs of stages, and links.

Runs are counted by the agents anyway. Links are probed with little, one at a time: those in use often, others seldom.
A device that runs no stage any more because it was slow is timed on the partition that it had.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from queue import Empty, SimpleQueue
from statistics import median
from typing import TYPE_CHECKING, Final

from defer.agents import AgentPool
from defer.dispatcher.bringup import Order
from defer.dispatcher.drift import Subject
from defer.dispatcher.drifted import (
    Counted,
    blocks_of,
    bytes_between,
    link_ratios,
    path_pairs,
    planned_links,
    planned_run,
    run_between,
    run_ratio,
)
from defer.dispatcher.probing import probe
from defer.errors import DeferError, UnknownDevice
from defer.hops import Place
from node_agent.dtypes import storage
from node_agent.errors import AgentError
from node_agent.messages import AgentStatus, Done, HopSpec, Measure, Measured, StatusRequest

if TYPE_CHECKING:
    from defer.deployer import Deployment
    from defer.dispatcher.deployments import Deployments

logger = logging.getLogger("defer.dispatcher")

ASK_S: Final = 1.0
"""An agent that does not answer within this is looked at the next time."""

MEASURE_S: Final = 120.0
"""Seconds in which an idle device must have timed a partition that it holds."""

LIKE: Final = 0.1
"""Requests may be larger or smaller than the one that was planned with by this part."""


@dataclass(frozen=True, slots=True)
class Found:
    """A measurement of one model's device or link, by what was planned."""

    model: str
    subject: Subject
    ratio: float


@dataclass(frozen=True, slots=True)
class _Held:
    """A partition that a device has in its store, and what its run was planned to take."""

    spec: HopSpec
    planned_s: float


class Gauges:
    """See the module; `look` is called by one thread, again and again.

    Args:
        deployments: What is served.
        pool: Connections to the agents.
        lasting: Seconds that a change must last before it is believed; decides how often links are probed.
    """

    def __init__(self, deployments: Deployments, pool: AgentPool, lasting: float) -> None:
        self._deployments, self._pool, self._lasting = deployments, pool, lasting
        self._counted: dict[tuple[str, int, int], Counted] = {}
        self._looked = time.monotonic()
        self._held: dict[tuple[str, str], _Held] = {}
        self._traffic: dict[tuple[str, str], float] = {}
        self._due: dict[tuple[str, str], float] = {}
        self._job: Future[None] | None = None
        self._results: SimpleQueue[Found] = SimpleQueue()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="defer-gauge")

    def stop(self) -> None:
        """Begin nothing more."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """`stop`, and wait for what runs."""
        self._worker.shutdown(wait=True, cancel_futures=True)

    def look(self, orders: Mapping[str, Order], doubted: Collection[tuple[str, Subject]]) -> list[Found]:
        """What is known since the last look; takes up to a second where an agent does not answer.

        Args:
            orders: Models that are planned anew where something has drifted, with measured costs.
            doubted: What is believed, or was last found, to be otherwise than planned, by model: looked at more often.
        """
        found = list(self._stages(orders))
        while True:
            try:
                found.append(self._results.get_nowait())
            except Empty:
                break
        if self._job is None or self._job.done():
            self._begin_job(orders, doubted)
        return found

    # ------------------------------------------------------------------------------------------------- stages

    def _stages(self, orders: Mapping[str, Order]) -> Iterator[Found]:
        served = [
            each.deployment
            for each in self._deployments.in_service().values()
            if each.deployment.model in orders
        ]
        statuses = self._ask({stage.device for made in served for stage in made.plan.stages})
        now = time.monotonic()
        seconds, self._looked = now - self._looked, now
        counted = {
            (device, hop.epoch, hop.hop): Counted.of(hop, status)
            for device, status in statuses.items()
            for hop in status.hops
        }
        self._traffic = {}
        for made in served:
            yield from self._of_route(orders[made.model], made, counted, seconds)
        kept = set(self._deployments.served)
        self._counted = {key: each for key, each in self._counted.items() if key[1] in kept} | counted

    def _of_route(
        self,
        order: Order,
        made: Deployment,
        counted: Mapping[tuple[str, int, int], Counted],
        seconds: float,
    ) -> Iterator[Found]:
        profile = order.profile
        assert profile is not None
        computing = sorted(
            ((spec.hop, device, spec) for device, specs in made.layout.hops.items() for spec in specs),
            key=lambda each: each[0],
        )
        computing = [each for each in computing if each[2].graph is not None]
        seen = []
        for stage, (hop, device, spec) in zip(made.plan.stages, computing, strict=True):
            key = (device, made.epoch, hop)
            # A first look says how much was counted, not since when.
            before, now = self._counted.get(key), counted.get(key)
            seen.append((before, now) if before is not None and now is not None else None)
            blocks = None if made.plan.order else blocks_of(stage.ops, profile)
            if blocks is None or device not in profile.devices:
                continue
            planned = planned_run(profile.devices[device], *blocks)
            self._held[order.name, device] = _Held(spec, planned)
            if seen[-1] is None or not typical(made, seen[0]):
                continue
            run_s = run_between(before, seen[-1][1])
            if run_s is not None:
                yield Found(order.name, Subject("device", device), run_ratio(run_s, planned))
        self._count_traffic(made, seen, seconds)

    def _count_traffic(
        self, made: Deployment, seen: list[tuple[Counted, Counted] | None], seconds: float
    ) -> None:
        moved = [each[1].bytes_out - each[0].bytes_out if each is not None else 0 for each in seen]
        first = seen[0]
        moved.insert(0, first[1].bytes_in - first[0].bytes_in if first is not None else 0)
        for nbytes, transfer in zip(moved, made.plan.transfers, strict=True):
            for pair in zip(transfer.path, transfer.path[1:], strict=False):
                rate = max(0, nbytes) / max(seconds, 1e-3)
                self._traffic[pair] = self._traffic.get(pair, 0.0) + rate

    def _ask(self, devices: Collection[str]) -> dict[str, AgentStatus]:
        asked = {
            name: self._pool.submit(name, StatusRequest(0), timeout=ASK_S)
            for name in sorted(devices)
            if (known := self._pool.liveness(name)) is not None and known.state == "alive"
        }
        wait(asked.values(), ASK_S + 0.5)
        found = {}
        for name, future in asked.items():
            if future.done() and future.exception() is None:
                answer = future.result()
                if isinstance(answer, AgentStatus):
                    found[name] = answer
        return found

    # --------------------------------------------------------------------- what takes long: one thing at a time

    def _begin_job(self, orders: Mapping[str, Order], doubted: Collection[tuple[str, Subject]]) -> None:
        now = time.monotonic()
        serving = {
            (each.deployment.model, stage.device)
            for each in self._deployments.in_service().values()
            for stage in each.deployment.plan.stages
        }
        wanted: dict[tuple[str, str], float] = {}
        for model, subject in doubted:
            if subject.kind == "device" and (model, subject.source) not in serving and model in orders:
                wanted[model, f"device {subject.source}"] = self._lasting / 2
        used = {
            pair
            for each in self._deployments.in_service().values()
            if each.deployment.model in orders
            for pair in path_pairs(each.deployment.plan)
        }
        used |= {(each.source, each.target) for _, each in doubted if each.kind != "device"}
        places = self._places()
        home = self._deployments.cluster.dispatcher.device
        for order in orders.values():
            assert order.profile is not None
            for pair in planned_links(self._deployments.cluster, order.profile):
                if {*pair} <= places.keys() | {home}:
                    wanted[pair] = self._lasting / 4 if pair in used else 4 * self._lasting
        self._due = {key: self._due.get(key, now) for key in wanted}
        # What is looked at often may have been due later when it was still looked at seldom.
        self._due = {key: min(at, now + wanted[key]) for key, at in self._due.items()}
        key = min(self._due, key=lambda each: self._due[each], default=None)
        if key is None or self._due[key] > now:
            return
        self._due[key] = now + wanted[key]
        models = dict(orders)
        if key[1].startswith("device "):
            self._job = self._worker.submit(self._time_held, key[0], key[1].removeprefix("device "))
        else:
            traffic = self._traffic.get(key, 0.0)
            self._job = self._worker.submit(self._probe, key, models, traffic)

    def _places(self) -> dict[str, Place]:
        """Where agents that are connected are reached."""
        from defer.deployer import place_of

        found = {}
        for device in self._deployments.cluster.agents:
            with suppress(UnknownDevice):
                found[device.name] = place_of(self._pool, self._deployments.cluster, device.name)
        return found

    def _probe(self, pair: tuple[str, str], orders: Mapping[str, Order], traffic: float) -> None:
        cluster = self._deployments.cluster
        try:
            answer = probe(
                self._pool,
                *pair,
                self._places(),
                cluster.dispatcher.device,
                self._deployments.places().dispatcher,
            )
        except (DeferError, AgentError) as error:
            logger.debug("link %s → %s was not measured: %s", *pair, error)
            return
        if answer is None or answer.bandwidth <= 0:
            return
        for order in orders.values():
            assert order.profile is not None
            planned = planned_links(cluster, order.profile).get(pair)
            if planned is not None:
                for subject, ratio in link_ratios(planned, answer.bandwidth, answer.delay, traffic):
                    self._results.put(Found(order.name, subject, ratio))

    def _time_held(self, model: str, device: str) -> None:
        """Time a device that serves the model no more on the partition of it that it had."""
        held = self._held.get((model, device))
        known = self._pool.liveness(device)
        if held is None or held.spec.graph is None or known is None or known.state != "alive":
            return
        described = self._deployments.cluster.device(device)
        question = Measure(
            0,
            secrets.token_hex(8),
            held.spec.graph,
            held.spec.weights,
            held.spec.warm_up,
            (),
            engine=described.engine,
            options=described.engine_options,
            codecs=False,
        )
        try:
            answer = self._pool.ask(device, question, timeout=MEASURE_S)
            self._pool.tell(device, Done(0))  # drop what the session kept
        except DeferError as error:
            logger.debug("device %s was not measured: %s", device, error)
            return
        if isinstance(answer, Measured) and answer.seconds:
            ratio = run_ratio(float(median(answer.seconds)), held.planned_s)
            self._results.put(Found(model, Subject("device", device), ratio))


def typical(made: Deployment, first: tuple[Counted, Counted] | None) -> bool:
    """Whether requests since the last look are like the one that was planned with, as far as can be told.

    Args:
        made: What serves them.
        first: Counts of its first stage at both looks; None where they are not known.
    """
    if all(isinstance(dim, int) for spec in made.inputs for dim in spec.shape):
        return True
    if first is None or made.plan.transfers[0].codec != "raw":
        return False
    planned = sum(
        prod(dim for dim in spec.shape if isinstance(dim, int)) * storage(spec.dtype).itemsize
        for spec in made.warm_up
    )
    return abs(bytes_between(*first) - planned) <= LIKE * planned
