"""A dispatcher's metrics: read by Prometheus' own parser, described in docs/metrics.md, drawn by the dashboard."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from defer.api import DeploymentInfo, DeviceInfo, ModelInfo, ServerStatus, StageInfo
from defer.dispatcher.adapting import Believed
from defer.dispatcher.counters import LATENCY_BOUNDS, Totals, Traffic
from defer.dispatcher.drift import Subject
from defer.infos import ModelTotals
from defer.live.health import unready
from defer.live.metrics import families, reason
from defer.live.watcher import points
from node_agent.agent_metrics import agent_families
from node_agent.exposition import render
from node_agent.messages import AgentStatus, HopStatus, TensorHeader

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "metrics.md"


def totals(**more: object) -> ModelTotals:
    counts = (0, 0, 3, 4, *[0] * (len(LATENCY_BOUNDS) - 3))
    return ModelTotals(
        "m", 7, {"agent-lost": 2, "overloaded": 1}, 14, 0.07, 8, 0.002, LATENCY_BOUNDS, counts, **more
    )


def a_status() -> ServerStatus:
    stages = (
        StageInfo("a", 0, 2, items=10, queued=1, run_s=0.01, bytes_out=100, wait_s=0.5, decode_s=0.1),
        StageInfo("b", 2, 4, items=10, run_s=0.02, encode_s=0.001),
    )
    deployments = (
        DeploymentInfo("m", 3, "retired", waiting=1),
        DeploymentInfo("m", 4, "ready", waiting=2, in_flight=5, stages=stages, predicted_period_s=0.02),
    )
    devices = (
        DeviceInfo("a", "alive", sensors={"gpu0.power_w": 9.5}, clock_offset_s=0.25, progress=10),
        DeviceInfo("b", "lost"),
    )
    models = (ModelInfo("m", "ready"), ModelInfo("n", "announced", "planning"))
    return ServerStatus(
        0, "@dispatcher", "0.1", 5.0, models, deployments, devices,
        held_requests=7, refused={"overloaded": 3}, failed={"agent-lost": 2}, totals=(totals(),),
    )  # fmt: skip


def read() -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(render(families(a_status(), {"agent-lost": 2}))):
        for sample in family.samples:
            # This parser, unlike the server, calls every counter something_total.
            name = sample.name.removesuffix("_total") if sample.name.startswith("nv_") else sample.name
            found.setdefault(name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def test_tritons_names_have_tritons_meaning():
    found = read()
    model = (("model", "m"), ("version", "1"))
    assert found["nv_inference_request_success"] == {model: 7}
    assert found["nv_inference_count"] == {model: 14}
    assert found["nv_inference_request_duration_us"] == {model: 70_000}
    assert found["nv_inference_queue_duration_us"] == {model: 2_000}
    assert found["nv_inference_compute_infer_duration_us"] == {model: 300_000}
    assert found["nv_inference_pending_request_count"] == {model: 3}
    failures = {
        dict(labels)["reason"]: count for labels, count in found["nv_inference_request_failure"].items()
    }
    assert failures == {"BACKEND": 2, "CANCELED": 0, "OTHER": 0, "REJECTED": 1}
    assert [reason(code) for code in ("cancelled", "agent-lost", "internal")] == [
        "CANCELED",
        "BACKEND",
        "OTHER",
    ]


def test_what_is_our_own():
    found = read()
    assert found["defer_model_ready"] == {(("model", "m"),): 1, (("model", "n"),): 0}
    assert found["defer_device_up"] == {(("device", "a"),): 1, (("device", "b"),): 0}
    stage = (("deployment", "4"), ("device", "b"), ("model", "m"), ("stage", "2"))
    assert found["defer_stage_run_seconds_total"][stage] == pytest.approx(0.2)
    assert found["defer_device_sensor"] == {(("device", "a"), ("sensor", "gpu0.power_w")): 9.5}
    assert found["defer_events_total"] == {(("kind", "agent-lost"),): 2}
    assert found["defer_request_latency_seconds_count"] == {(("model", "m"),): 7}
    assert found["defer_request_latency_seconds_bucket"][(("le", "0.01"), ("model", "m"))] == 7
    assert found["defer_deployment_ready"][(("deployment", "3"), ("model", "m"))] == 0


def every_metric() -> dict[str, str]:
    """Name and kind of all metrics of dispatcher and agents."""
    status = AgentStatus(
        0, "a", "b", "serving", 1, 1, 1, 1, (HopStatus(1, 0, "m", "run"),), sensors={"x": 1.0}
    )
    believed = (Believed("m", Subject("bandwidth", "a", "b"), 2.0),)
    both = [*families(a_status(), {"deployed": 1}, believed), *agent_families(status)]
    assert not [family.name for family in both if family.empty]
    names = [family.name for family in both]
    assert len(names) == len(set(names))
    return {family.name: family.kind for family in both}


def test_the_document_describes_each_and_no_other():
    rows = re.findall(r"^\| `((?:nv|defer)_\w+)`[^|]*\| (\w+) \|", DOCUMENT.read_text(), re.M)
    assert dict(rows) == every_metric()


def test_counters_are_shared_by_a_models_deployments_and_never_fall():
    shared = Totals()
    first, second = Traffic(shared, batched=True), Traffic(shared)
    batch = (TensorHeader("x", "float32", (4, 2), "raw", 32),)
    first.finished(10.0, 0.002, batch)
    second.finished(11.0, 100.0, batch)
    second.ended("agent-lost")
    first.sent(0.5)
    assert (shared.succeeded, shared.inferences, shared.failed["agent-lost"]) == (2, 5, 1)
    assert shared.latencies[1] == shared.latencies[-1] == 1
    assert (first.answered, second.answered, second.failed) == (1, 1, 1)
    assert (shared.waited, shared.waited_s, shared.seconds) == (1, 0.5, 100.002)


def test_ready_is_the_truth():
    ready, lost = ModelInfo("m", "ready"), ModelInfo("n", "lost", "device 'a' is lost")
    assert unready([ready]) == ""
    assert unready([]) == "no model is deployed"
    assert "device 'a' is lost" in unready([ready, lost])
    assert "starting" in unready([ready], starting=True)
    assert "shutting down" in unready([ready], starting=True, draining=True)
    assert unready([ready, ModelInfo("o", "ready", failing="no")]) == "model o does not answer: no"


def test_points_are_of_the_time_between_two_looks():
    before = a_status()
    later = msgspec.structs.replace(
        before,
        uptime_s=7.0,
        totals=(msgspec.structs.replace(totals(), succeeded=17, failed={"agent-lost": 8}),),
    )
    (point,) = points(before, later, 99.0).values()
    assert (point.at, point.rate, point.failures) == (99.0, 5.0, 2.5)
    assert (point.queued, point.in_flight) == (4, 5)


def test_the_dashboard_draws_only_what_there_is():
    kinds = every_metric()
    labels = {
        name: {label for sample in family._samples for label in sample[1]}
        for family in families(a_status(), {"deployed": 1})
        for name in [family.name]
    }
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "defer.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    assert len(expressions) > 20
    for text in expressions:
        used = re.findall(r"((?:nv|defer)_\w+)(\{[^}]*\})?(\[)?", text)
        assert used, text
        for name, selector, ranged in used:
            base = re.sub("_(bucket|sum|count)$", "", name) if name not in kinds else name
            assert base in kinds, text
            assert (kinds[base] != "gauge") == bool(ranged), f"a counter wants a rate, a gauge none: {text}"
            known = labels[base] | {"le"}
            assert set(re.findall(r"(\w+)[=!]", selector)) <= known, text
            for by in re.findall(r"by \(([^)]*)\)", text):
                assert set(by.split(", ")) <= known, text
        assert text.count("(") == text.count(")")
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
