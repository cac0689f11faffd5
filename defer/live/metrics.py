"""What a dispatcher's state is as metrics. Pure; docs/metrics.md describes each, and a test holds it to that.

Names that begin with `nv_` are those of NVIDIA Triton Inference Server, with its meaning, labels and units, so that
dashboards and alerts written for it work.
Source: https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/metrics.html
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from defer.api import DeploymentInfo, ServerStatus, StageInfo
from defer.infos import ModelTotals
from node_agent.exposition import Family, Kind

if TYPE_CHECKING:
    from defer.dispatcher.adapting import Believed

_US: Final = 1_000_000

REJECTED: Final = frozenset(
    {"overloaded", "not-ready", "wrong-input", "too-large", "unknown-model", "deadline-exceeded"}
)
BACKEND: Final = frozenset({"agent-lost", "agent-fault", "run-failed", "load-failed", "out-of-memory"})


def families(
    status: ServerStatus, events: Mapping[str, int] | None = None, believed: Sequence[Believed] = ()
) -> list[Family]:
    """A dispatcher's metrics.

    Args:
        status: What it says of itself.
        events: How many events of each kind its log has seen.
        believed: What planning takes to be slower or faster than it was measured.
    """
    return [
        _of_drift(believed),
        *_of_dispatcher(status, events or {}),
        *_of_models(status),
        *_of_deployments(status),
        *_of_stages(status),
        *_of_devices(status),
    ]


def reason(code: str) -> str:
    """Triton's reason for a failure with one of our codes."""
    if code == "cancelled":
        return "CANCELED"
    return "REJECTED" if code in REJECTED else "BACKEND" if code in BACKEND else "OTHER"


def _of_drift(believed: Sequence[Believed]) -> Family:
    drift = Family(
        "defer_drift_factor",
        "gauge",
        "Time that a device or link takes, by what was measured, where they differ.",
    )
    for each in believed:
        subject = each.subject
        drift.add(
            each.factor, model=each.model, of=subject.kind, source=subject.source, target=subject.target
        )
    return drift


def _of_dispatcher(status: ServerStatus, events: Mapping[str, int]) -> list[Family]:
    info = Family("defer_info", "gauge", "1; the label says which version runs.")
    info.add(1, version=status.version)
    plain: tuple[tuple[str, Kind, str, float], ...] = (
        ("defer_uptime_seconds", "gauge", "Seconds since the dispatcher started.", status.uptime_s),
        ("defer_requests_held", "gauge", "Requests accepted and not answered.", status.held_requests),
        ("defer_requests_held_bytes", "gauge", "Bytes of their inputs.", status.held_bytes),
        (
            "defer_requests_repeated_total",
            "counter",
            "Requests that clients sent again and that did not run again.",
            status.repeated,
        ),
        (
            "defer_requests_replayed_total",
            "counter",
            "Requests that were sent to a stage again because a connection or a device was lost.",
            status.replayed,
        ),
        (
            "defer_results_stale_total",
            "counter",
            "Results that came when their request had ended.",
            status.stale,
        ),
    )
    made = []
    for name, kind, about, value in plain:
        family = Family(name, kind, about)
        family.add(value)
        made.append(family)
    by_code = (
        ("defer_requests_refused_total", "Requests never accepted.", status.refused),
        ("defer_requests_failed_total", "Accepted requests that ended with an error.", status.failed),
    )
    for name, about, counts in by_code:
        family = Family(name, "counter", about)
        for code, count in sorted(counts.items()):
            family.add(count, code=code)
        made.append(family)
    noted = Family("defer_events_total", "counter", "Events of the log, by kind.")
    for event, count in sorted(events.items()):
        noted.add(count, kind=event)
    return [info, *made, noted]


def _of_models(status: ServerStatus) -> list[Family]:
    def summed(name: str, about: str, value: Callable[[ModelTotals], float]) -> Family:
        family = Family(name, "counter", about)
        for totals in status.totals:
            family.add(value(totals), model=totals.model, version="1")
        return family

    failed = Family("nv_inference_request_failure", "counter", "Inference requests that failed, by reason.")
    latency = Family("defer_request_latency_seconds", "histogram", "From acceptance to the result.")
    for totals in status.totals:
        reasons = dict.fromkeys(("BACKEND", "CANCELED", "OTHER", "REJECTED"), 0)
        for code, count in totals.failed.items():
            reasons[reason(code)] += count
        for why, count in sorted(reasons.items()):
            failed.add(count, model=totals.model, version="1", reason=why)
        if totals.bounds:
            latency.add_histogram(totals.bounds, totals.latencies, totals.seconds, model=totals.model)
    ready = Family("defer_model_ready", "gauge", "1 where requests for the model are taken, else 0.")
    for model in status.models:
        ready.add(float(model.state == "ready"), model=model.name)
    pending = Family(
        "nv_inference_pending_request_count", "gauge", "Requests that wait for the first stage to take them."
    )
    names = sorted({info.model for info in status.deployments})
    for name in names:
        pending.add(
            sum(info.waiting for info in status.deployments if info.model == name), model=name, version="1"
        )
    stages = [(info, stage) for info in status.deployments for stage in info.stages]

    def spent(name: str, about: str, value: Callable[[StageInfo], float]) -> Family:
        family = Family(name, "counter", about)
        for model in names:
            total = sum(value(stage) * stage.items for info, stage in stages if info.model == model)
            family.add(round(total * _US), model=model, version="1")
        return family

    return [
        summed("nv_inference_request_success", "Inference requests that succeeded.", lambda t: t.succeeded),
        failed,
        summed("nv_inference_count", "Inferences; a batch of n counts n.", lambda t: t.inferences),
        summed("nv_inference_exec_count", "Times that the pipeline ran.", lambda t: t.succeeded),
        summed(
            "nv_inference_request_duration_us",
            "Microseconds from acceptance to the result, in all.",
            lambda t: round(t.seconds * _US),
        ),
        summed(
            "nv_inference_queue_duration_us",
            "Microseconds that requests waited for the first stage, in all.",
            lambda t: round(t.waited_s * _US),
        ),
        spent(
            "nv_inference_compute_input_duration_us",
            "Microseconds of decoding in stages.",
            lambda s: s.decode_s,
        ),
        spent(
            "nv_inference_compute_infer_duration_us", "Microseconds of running partitions.", lambda s: s.run_s
        ),
        spent(
            "nv_inference_compute_output_duration_us",
            "Microseconds of encoding in stages.",
            lambda s: s.encode_s,
        ),
        pending,
        ready,
        latency,
    ]


def _of_deployments(status: ServerStatus) -> list[Family]:
    gauges: tuple[tuple[str, str, Callable[[DeploymentInfo], float]], ...] = (
        (
            "defer_deployment_ready",
            "1 where the deployment takes requests, else 0.",
            lambda d: d.state == "ready",
        ),
        ("defer_deployment_waiting", "Requests that wait for its first stage.", lambda d: d.waiting),
        ("defer_deployment_in_flight", "Requests on their way through its stages.", lambda d: d.in_flight),
        (
            "defer_deployment_share",
            "Part of the model's requests that the plan gives it.",
            lambda d: d.fraction,
        ),
        (
            "defer_deployment_predicted_latency_seconds",
            "What the plan expects of one request.",
            lambda d: d.predicted_latency_s,
        ),
        (
            "defer_deployment_predicted_period_seconds",
            "What the plan expects between two results.",
            lambda d: d.predicted_period_s,
        ),
    )
    made = []
    for name, about, value in gauges:
        family = Family(name, "gauge", about)
        for info in status.deployments:
            family.add(float(value(info)), model=info.model, deployment=str(info.epoch))
        made.append(family)
    return made


STAGE_COUNTERS: Final[tuple[tuple[str, str, Callable[[StageInfo], float]], ...]] = (
    ("defer_stage_requests_total", "Requests that a stage has finished.", lambda s: s.items),
    (
        "defer_stage_wait_seconds_total",
        "Seconds that they waited for their run.",
        lambda s: s.wait_s * s.items,
    ),
    ("defer_stage_decode_seconds_total", "Seconds of decoding.", lambda s: s.decode_s * s.items),
    ("defer_stage_run_seconds_total", "Seconds of running.", lambda s: s.run_s * s.items),
    ("defer_stage_encode_seconds_total", "Seconds of encoding.", lambda s: s.encode_s * s.items),
    ("defer_stage_received_bytes_total", "Bytes of tensors that came in.", lambda s: s.bytes_in),
    ("defer_stage_sent_bytes_total", "Bytes of tensors that went out.", lambda s: s.bytes_out),
)


def _of_stages(status: ServerStatus) -> list[Family]:
    def labels(info: DeploymentInfo, number: int, stage: StageInfo) -> dict[str, str]:
        return {
            "model": info.model,
            "deployment": str(info.epoch),
            "stage": str(number),
            "device": stage.device,
        }

    every = [
        (labels(info, number, stage), stage)
        for info in status.deployments
        for number, stage in enumerate(info.stages, 1)
    ]
    made = []
    for name, about, value in STAGE_COUNTERS:
        family = Family(name, "counter", about)
        for names, stage in every:
            family.add(value(stage), **names)
        made.append(family)
    waiting = Family("defer_stage_queue_length", "gauge", "Requests that wait at a stage.")
    for names, stage in every:
        waiting.add(stage.queued, **names)
    return [*made, waiting]


def _of_devices(status: ServerStatus) -> list[Family]:
    gauges: tuple[tuple[str, str, Callable[[Any], float]], ...] = (
        ("defer_device_up", "1 where the device's agent answers, else 0.", lambda d: d.state == "alive"),
        ("defer_device_silent_seconds", "Seconds since the agent was last heard.", lambda d: d.heard_s),
        ("defer_device_queue_length", "Requests that wait on the device.", lambda d: d.queued),
        ("defer_device_item_age_seconds", "Age of the request in work; 0 when idle.", lambda d: d.item_age_s),
        ("defer_device_resident_bytes", "Memory that the agent takes.", lambda d: d.resident_bytes),
        ("defer_device_memory_bytes", "Memory that partitions may take there.", lambda d: d.memory_bytes),
    )
    made = []
    for name, about, value in gauges:
        family = Family(name, "gauge", about)
        for device in status.devices:
            family.add(float(value(device)), device=device.name)
        made.append(family)
    done = Family("defer_device_requests_total", "counter", "Requests that the agent has finished.")
    clock = Family("defer_device_clock_offset_seconds", "gauge", "How far the device's clock is ahead.")
    sensors = Family("defer_device_sensor", "gauge", "A reading, in the unit that the sensor's name ends in.")
    for device in status.devices:
        done.add(device.progress, device=device.name)
        if device.clock_offset_s is not None:
            clock.add(device.clock_offset_s, device=device.name)
        for sensor, reading in sorted(device.sensors.items()):
            sensors.add(reading, device=device.name, sensor=sensor)
    return [*made, done, clock, sensors]
