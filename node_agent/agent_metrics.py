"""What an agent's state is as metrics. Pure; docs/metrics.md describes each."""

from __future__ import annotations

from typing import Final

from node_agent.exposition import Family
from node_agent.messages import AgentStatus

HOP_COUNTERS: Final = (
    ("items", "defer_hop_requests_total", "Requests that a hop has finished."),
    ("failures", "defer_hop_failures_total", "Requests that failed in a hop."),
    ("stale", "defer_hop_stale_total", "Requests that a hop dropped because they were too late."),
    ("wait_s", "defer_hop_wait_seconds_total", "Seconds that requests waited for their run, in all."),
    ("decode_s", "defer_hop_decode_seconds_total", "Seconds of decoding, in all."),
    ("run_s", "defer_hop_run_seconds_total", "Seconds of running partitions, in all."),
    ("encode_s", "defer_hop_encode_seconds_total", "Seconds of encoding, in all."),
    ("bytes_in", "defer_hop_received_bytes_total", "Bytes of tensors that came in, as on the wire."),
    ("bytes_out", "defer_hop_sent_bytes_total", "Bytes of tensors that went out, as on the wire."),
)
"""Field of `HopStatus`, metric and description."""


def agent_families(
    status: AgentStatus, *, version: str = "", progress: int = 0, queued: int = 0, item_age_s: float = 0.0
) -> list[Family]:
    """An agent's metrics.

    Args:
        status: What it tells dispatchers.
        version: Of its build.
        progress: Requests that it finished since its start.
        queued: Requests that wait.
        item_age_s: Age of the request in work, in seconds; 0 when idle.
    """
    single = [
        _one("defer_agent_uptime_seconds", "gauge", "Seconds since the agent started.", status.uptime_s),
        _one(
            "defer_agent_serving",
            "gauge",
            "1 while the agent serves, 0 while it drains.",
            float(status.state == "serving"),
        ),
        _one("defer_agent_requests_total", "counter", "Requests finished since the start.", progress),
        _one("defer_agent_queue_length", "gauge", "Requests that wait for their run.", queued),
        _one("defer_agent_item_age_seconds", "gauge", "Age of the request in work; 0 when idle.", item_age_s),
        _one(
            "defer_agent_resident_bytes",
            "gauge",
            "Memory that the process takes.",
            status.resident_bytes,
        ),
        _one(
            "defer_agent_memory_bytes",
            "gauge",
            "Memory that partitions may take.",
            status.memory_bytes,
        ),
        _one("defer_agent_store_bytes", "gauge", "Bytes of the file store.", status.store_bytes),
        _one(
            "defer_agent_stale_total",
            "counter",
            "Requests dropped because their deployment was not loaded.",
            status.stale,
        ),
    ]
    info = Family("defer_agent_info", "gauge", "1; the labels say who it is.")
    info.add(1, device=status.name, version=version, boot=status.boot)
    sensors = Family("defer_agent_sensor", "gauge", "A sensor's reading, in the unit that its name ends in.")
    for name, value in sorted(status.sensors.items()):
        sensors.add(value, sensor=name)
    hops = []
    for field, metric, about in HOP_COUNTERS:
        family = Family(metric, "counter", about)
        for hop in status.hops:
            family.add(
                getattr(hop, field),
                model=hop.model,
                deployment=str(hop.epoch),
                hop=str(hop.hop),
                kind=hop.kind,
            )
        hops.append(family)
    waiting = Family("defer_hop_queue_length", "gauge", "Requests that wait at a hop.")
    for hop in status.hops:
        waiting.add(hop.queued, model=hop.model, deployment=str(hop.epoch), hop=str(hop.hop), kind=hop.kind)
    return [info, *single, *hops, waiting, sensors]


def _one(name: str, kind: str, about: str, value: float) -> Family:
    family = Family(name, "counter" if kind == "counter" else "gauge", about)
    family.add(value)
    return family
