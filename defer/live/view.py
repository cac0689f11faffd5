"""What the live page is told, as plain values for JSON. Pure; the page's script is the only reader."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from defer.api import DeploymentInfo, DeviceInfo, ServerStatus, StageInfo
from defer.documents.cluster import Cluster
from defer.documents.plan import Plan
from defer.event_log import EventInfo
from defer.live.rates import StageLoad
from defer.live.watcher import Point


def snapshot(
    status: ServerStatus,
    cluster: Cluster,
    plans: Mapping[int, Plan],
    loads: Sequence[StageLoad],
    points: Mapping[str, Sequence[Point]],
    events: Sequence[EventInfo],
    **more: object,
) -> dict[str, Any]:
    """Everything that the page draws.

    Args:
        status: The newest look.
        cluster: Devices, in the order of the cluster file.
        plans: Of each deployment, by epoch; for a route among replicas, its own leg.
        loads: Of each stage over the last second.
        points: Of the charts, those that the page does not have yet.
        events: Likewise.
        more: Further top-level values.
    """
    by_stage = {(load.epoch, load.number): load for load in loads}
    # What only stands by has no part in what the page draws.
    live = [
        info
        for info in status.deployments
        if info.state not in ("retired", "standby") and (info.state != "loaded" or info.epoch in plans)
    ]
    return {
        "version": status.version,
        "uptime_s": status.uptime_s,
        "held_requests": status.held_requests,
        "held_bytes": status.held_bytes,
        "refused": status.refused,
        "failed": status.failed,
        "source": cluster.dispatcher.device,
        "models": [{"name": each.name, "state": each.state, "reason": each.reason} for each in status.models],
        "deployments": [_deployment(info, plans.get(info.epoch), by_stage) for info in live],
        "devices": _devices(status.devices, cluster),
        "links": _links(plans[info.epoch] for info in live if info.epoch in plans),
        "points": {model: [_point(point) for point in each] for model, each in points.items()},
        "events": msgspec.to_builtins(events),
        **more,
    }


def _point(point: Point) -> list[float]:
    return [point.at, point.rate, point.failures, point.p50_s, point.p99_s, point.queued, point.in_flight]


def _deployment(
    info: DeploymentInfo, plan: Plan | None, loads: Mapping[tuple[int, int], StageLoad]
) -> dict[str, Any]:
    named = (
        "model",
        "epoch",
        "state",
        "reason",
        "waiting",
        "in_flight",
        "answered",
        "failed",
        "rate",
        "p50_s",
        "p99_s",
        "fraction",
        "predicted_latency_s",
        "predicted_period_s",
    )
    return {
        **{name: getattr(info, name) for name in named},
        "stages": [
            _stage(stage, loads.get((info.epoch, number)), plan, number)
            for number, stage in enumerate(info.stages, 1)
        ],
        "transfers": [] if plan is None else transfers(plan),
        "bottleneck": "" if plan is None else plan.bottleneck,
    }


def transfers(plan: Plan) -> list[dict[str, Any]]:
    """A plan's transfers that cross a link, in the order in which requests pass."""
    return [
        {
            "path": each.path,
            "codec": each.codec,
            "bytes": each.wire_bytes or each.nbytes,
            "seconds": each.seconds,
        }
        for each in plan.transfers
        if len(each.path) > 1
    ]


def _stage(stage: StageInfo, load: StageLoad | None, plan: Plan | None, number: int) -> dict[str, Any]:
    return {
        "device": stage.device,
        "start": stage.start,
        "stop": stage.stop,
        "engine": stage.engine,
        "precision": stage.precision,
        "items": stage.items,
        "queued": stage.queued,
        "busy": load.utilisation if load is not None else 0.0,
        "rate": load.rate if load is not None else 0.0,
        "run_s": load.run_s if load is not None else stage.run_s,
        "bytes_per_s": load.bytes_out_per_s if load is not None else 0.0,
        "bottleneck": load.bottleneck if load is not None else False,
        "predicted_s": plan.stages[number - 1].seconds if plan is not None else 0.0,
    }


def _devices(devices: Sequence[DeviceInfo], cluster: Cluster) -> list[dict[str, Any]]:
    heard = {device.name: device for device in devices}
    found = []
    for device in cluster.devices:
        known = heard.get(device.name)
        told: dict[str, Any] = {
            "name": device.name,
            "agent": device.has_agent,
            "computes": device.computes,
            "state": known.state
            if known is not None
            else ("here" if device.name == cluster.dispatcher.device else ""),
        }
        if known is not None:
            told |= {
                "reason": known.reason,
                "engine": known.engine,
                "queued": known.queued,
                "done": known.progress,
                "item_age_s": known.item_age_s,
                "resident_bytes": known.resident_bytes,
                "memory_bytes": known.memory_bytes,
                "sensors": known.sensors,
            }
        found.append(told)
    return found


def _links(plans: Iterable[Plan]) -> list[dict[str, Any]]:
    """The links that any plan knows, each direction once."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for plan in plans:
        for link in plan.link_loads:
            found.setdefault(
                (link.source, link.target),
                {
                    "source": link.source,
                    "target": link.target,
                    "bytes_per_s": link.bytes_per_s,
                    "delay_s": link.delay_s,
                },
            )
    return list(found.values())


def plan_summary(plan: Plan) -> dict[str, Any]:
    """A plan as the page compares it with another."""
    return {
        "latency_s": plan.latency_s,
        "period_s": plan.period_s,
        "objective": plan.objective,
        "value": plan.value,
        "optimal": plan.optimal,
        "method": plan.method,
        "bottleneck": plan.bottleneck,
        "stages": [
            {"device": stage.device, "start": stage.start, "stop": stage.stop, "seconds": stage.seconds}
            for stage in plan.stages
        ],
        "transfers": transfers(plan),
    }
