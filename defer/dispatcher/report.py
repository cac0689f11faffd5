"""What the dispatcher tells of itself: the core's counts, the agents' heartbeats and counters, put together."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import wait
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import msgspec

import defer
from defer import api
from defer.agents import AgentPool
from defer.dispatcher.core import DispatcherCore
from defer.dispatcher.counters import LATENCY_BOUNDS, Totals
from defer.dispatcher.rollout import base_of
from defer.dispatcher.routes import RouteState
from defer.dispatcher.sampling import Tally
from defer.dispatcher.shell import DataShell
from defer.documents.cluster import Cluster
from defer.hops import DISPATCHER
from node_agent.messages import AgentStatus, HopStatus, StatusRequest

if TYPE_CHECKING:
    from defer.deployer import Deployment

ASK_S = 1.0
"""An agent that does not answer within this is shown by its heartbeats alone."""


@dataclass(frozen=True, slots=True)
class Served:
    """A deployment that agents hold."""

    deployment: Deployment
    objective: str


def models_of(core: DispatcherCore, _: float) -> tuple[api.ModelInfo, ...]:
    """What clients may ask for, names that stand for a version among it; runs in the data thread."""
    infos = {info.name: info for info in _deployed_models(core)}
    for name, split in core.splits.by_name.items():
        stable = infos.get(split.stable) or api.ModelInfo(
            name, "announced", f"{split.stable} is not there yet"
        )
        infos[name] = msgspec.structs.replace(
            stable, name=name, version_of="", stable=split.stable, canary=split.canary, share=split.share
        )
    return tuple(infos[name] for name in sorted(infos))


def _deployed_models(core: DispatcherCore) -> list[api.ModelInfo]:
    routes = core.routes
    infos = []
    for name in sorted(routes.serving.keys() | routes.announced.keys()):
        if name not in routes.serving:
            infos.append(
                api.ModelInfo(name, "announced", routes.announced[name], version_of=version_of(name))
            )
            continue
        state = next(iter(routes.ready_for(name)), routes[routes.serving[name][0]])
        epoch = routes.serving[name][0]
        why = routes.announced.get(name) or routes.stuck.get(name) or state.reason
        reason = "" if state.state == "ready" else why
        route = state.route
        infos.append(
            api.ModelInfo(
                name,
                state.state,
                reason,
                epoch,
                route.inputs,
                route.outputs,
                route.codec,
                version_of=version_of(name),
                failing=core.failing.get(name, "") if state.state == "ready" else "",
            )
        )
    return infos


def version_of(deployment: str) -> str:
    """The model that a deployment is a version of; empty where it is none."""
    name = base_of(deployment)
    return name if name != deployment else ""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was read from the core in the data thread."""

    models: tuple[api.ModelInfo, ...]
    deployments: tuple[api.DeploymentInfo, ...]
    held_requests: int
    held_bytes: int
    refused: dict[str, int]
    failed: dict[str, int]
    repeated: int
    stale: int
    replayed: int
    totals: tuple[api.ModelTotals, ...]


def _look(core: DispatcherCore, now: float) -> _Seen:
    return _Seen(
        models=models_of(core, now),
        deployments=deployments_of(core, now),
        held_requests=len(core.requests),
        held_bytes=core.nbytes,
        refused=dict(core.counters.refused),
        failed=dict(core.counters.failed),
        repeated=core.counters.repeated,
        stale=core.counters.stale,
        replayed=core.counters.replayed,
        totals=tuple(_totals(model, totals) for model, totals in sorted(core.routes.totals.items())),
    )


def _totals(model: str, totals: Totals) -> api.ModelTotals:
    return api.ModelTotals(
        model,
        totals.succeeded,
        dict(totals.failed),
        totals.inferences,
        totals.seconds,
        totals.waited,
        totals.waited_s,
        LATENCY_BOUNDS,
        tuple(totals.latencies),
    )


def deployments_of(core: DispatcherCore, now: float) -> tuple[api.DeploymentInfo, ...]:
    """Those that serve, or did, before those that stand by."""
    standing = core.routes.idle()
    return tuple(
        _traffic(state, now, standing=epoch in standing)
        for epoch, state in sorted(
            core.routes.by_epoch.items(), key=lambda item: (item[0] in standing, item[0])
        )
        if not state.route.reference_of
    )


def _traffic(state: RouteState, now: float, *, standing: bool) -> api.DeploymentInfo:
    traffic = state.traffic
    return api.DeploymentInfo(
        model=state.route.model,
        epoch=state.route.epoch,
        state="standby" if standing else state.state,
        reason=state.reason,
        waiting=len(state.waiting),
        in_flight=len(state.sent),
        accepted=traffic.accepted + traffic.before.accepted,
        answered=traffic.answered + traffic.before.answered,
        failed=traffic.failed + traffic.before.failed,
        cancelled=traffic.cancelled + traffic.before.cancelled,
        rate=traffic.rate(now),
        p50_s=traffic.latency(0.5),
        p99_s=traffic.latency(0.99),
        fraction=state.route.fraction,
    )


def status_of(
    shell: DataShell,
    pool: AgentPool,
    cluster: Cluster,
    served: Mapping[int, Served],
    tallies: Mapping[int, Tally],
    started: float,
) -> api.ServerStatus:
    """The whole picture; takes up to a second where an agent does not answer."""
    seen = shell.call(_look).result(5)
    heard = _ask_agents(pool, cluster)
    counters = {
        (name, hop.epoch, hop.hop): hop for name, answer in heard.items() for hop in answer.status.hops
    }
    precisions = {device.name: device.precision for device in cluster.devices}
    return api.ServerStatus(
        id=0,
        name=DISPATCHER,
        version=defer.__version__,
        uptime_s=time.monotonic() - started,
        models=seen.models,
        deployments=tuple(
            _with_stages(info, served.get(info.epoch), tallies.get(info.epoch), counters, precisions)
            for info in seen.deployments
        ),
        devices=tuple(_device(pool, device.name, heard.get(device.name)) for device in cluster.agents),
        held_requests=seen.held_requests,
        held_bytes=seen.held_bytes,
        refused=seen.refused,
        failed=seen.failed,
        repeated=seen.repeated,
        stale=seen.stale,
        replayed=seen.replayed,
        totals=seen.totals,
    )


def _arrived(arrived: dict[str, float], name: str, _: object) -> None:
    """Notes when an answer came, by this machine's clock."""
    arrived[name] = time.time()


@dataclass(frozen=True, slots=True)
class _Heard:
    """What an agent said of itself, and how far its clock was ahead when that came."""

    status: AgentStatus
    clock_offset_s: float | None


def _ask_agents(pool: AgentPool, cluster: Cluster) -> dict[str, _Heard]:
    """What the agents that answer say, by device."""
    arrived: dict[str, float] = {}
    asked = {
        device.name: pool.submit(device.name, StatusRequest(0), timeout=ASK_S)
        for device in cluster.agents
        if (known := pool.liveness(device.name)) is not None and known.state == "alive"
    }
    for name, future in asked.items():
        future.add_done_callback(partial(_arrived, arrived, name))
    wait(asked.values(), ASK_S + 0.5)
    found = {}
    for name, future in asked.items():
        if (
            future.done()
            and future.exception() is None
            and isinstance(answer := future.result(), AgentStatus)
        ):
            offset = answer.wall_s - arrived[name] if answer.wall_s and name in arrived else None
            found[name] = _Heard(answer, offset)
    return found


def _with_stages(
    info: api.DeploymentInfo,
    served: Served | None,
    tally: Tally | None,
    counters: Mapping[tuple[str, int, int], HopStatus],
    precisions: Mapping[str, str],
) -> api.DeploymentInfo:
    if served is None:
        return info
    plan, hops = served.deployment.plan, served.deployment.layout.hops
    computing = sorted(
        (spec.hop, device) for device, specs in hops.items() for spec in specs if spec.graph is not None
    )
    stages = []
    for stage, (hop, device) in zip(plan.stages, computing, strict=True):
        counted = counters.get((device, info.epoch, hop))
        stages.append(
            api.StageInfo(
                device=device,
                start=stage.start,
                stop=stage.stop,
                items=counted.items if counted else 0,
                queued=counted.queued if counted else 0,
                run_s=counted.run_s / counted.items if counted and counted.items else 0.0,
                bytes_out=counted.bytes_out if counted else 0,
                bytes_in=counted.bytes_in if counted else 0,
                wait_s=counted.wait_s / counted.items if counted and counted.items else 0.0,
                decode_s=counted.decode_s / counted.items if counted and counted.items else 0.0,
                encode_s=counted.encode_s / counted.items if counted and counted.items else 0.0,
                runs=counted.runs if counted else 0,
                engine=counted.engine if counted else "",
                engine_notes=counted.notes if counted else (),
                precision=precisions.get(device, "fp32"),
            )
        )
    return api.DeploymentInfo(
        **{name: getattr(info, name) for name in info.__struct_fields__}
        | {
            "stages": tuple(stages),
            "predicted_latency_s": plan.latency_s,
            "predicted_period_s": plan.period_s,
            "max_error": plan.accuracy.budget if plan.accuracy is not None else 0.0,
            "compared": tally.compared if tally is not None else 0,
            "worst_error": tally.worst if tally is not None else 0.0,
            "mean_error": tally.mean if tally is not None else 0.0,
        }
    )


def _device(pool: AgentPool, name: str, heard: _Heard | None) -> api.DeviceInfo:
    known = pool.liveness(name)
    if known is None:
        return api.DeviceInfo(name, "unknown")
    beat, offer = known.heartbeat, known.offer
    engines = [engine.name for engine in offer.engines if not engine.missing] if offer else []
    return api.DeviceInfo(
        name=name,
        state=known.state,
        endpoint=known.endpoint,
        heard_s=max(0.0, time.monotonic() - known.heard_at),
        progress=beat.progress if beat else 0,
        item_age_s=beat.item_age_s if beat else 0.0,
        queued=beat.queued if beat else 0,
        resident_bytes=beat.resident_bytes if beat else 0,
        memory_bytes=offer.memory_bytes if offer else 0,
        engine=engines[0] if engines else "",
        epochs=beat.epochs if beat else (),
        reason=known.refusal,
        clock_offset_s=heard.clock_offset_s if heard else None,
        sensors=heard.status.sensors if heard else {},
        loads=heard.status.loads if heard else 0,
        missing={engine.name: engine.missing for engine in offer.engines if engine.missing} if offer else {},
        channel_block=offer.channel_block if offer else 0,
    )
