"""What the live page is told, and what the planner says to its what-ifs: plain values in, plain values out."""

from __future__ import annotations

import json

import msgspec
import pytest

from defer.api import DeploymentInfo, DeviceInfo, ModelInfo, ServerStatus, StageInfo
from defer.documents.plan import Plan, PlanLink
from defer.errors import DeferError, UnknownDevice, UsageError
from defer.event_log import EventInfo
from defer.live.rates import stage_loads
from defer.live.view import plan_summary, snapshot
from defer.live.watcher import Point
from defer.live.what_if import Changes, Slower, changed, predict
from defer.planning import make_plan
from tests.defer.plan_fixtures import a_chain, a_cluster, a_plan, a_profile


def status(uptime: float, items: int) -> ServerStatus:
    stages = (
        StageInfo("jetson", 0, 2, items=items, queued=3, run_s=0.01, bytes_out=1000 * items),
        StageInfo("nano", 2, 3, items=items, run_s=0.001),
    )
    deployments = (
        DeploymentInfo("small", 3, "retired"),
        DeploymentInfo("small", 4, "ready", waiting=2, stages=stages, predicted_latency_s=0.1),
    )
    devices = (DeviceInfo("jetson", "alive", memory_bytes=1 << 30), DeviceInfo("nano", "lost", reason="gone"))
    return ServerStatus(0, "@dispatcher", "0.1", uptime, (ModelInfo("small", "ready"),), deployments, devices)


def a_snapshot(plan: Plan | None) -> dict[str, object]:
    before, now = status(10.0, 0), status(11.0, 50)
    told = snapshot(
        now,
        a_cluster(),
        {} if plan is None else {4: plan},
        stage_loads(before, now),
        {"small": [Point(7.0, 50.0, 0.0, 0.02, 0.03, 5, 4)]},
        [EventInfo(9, 7.0, "agent-lost", "agent nano is lost", "error", device="nano")],
        boot="b",
    )
    return json.loads(msgspec.json.encode(told))  # as the page reads it


def test_the_page_is_told_of_stages_devices_links_and_events():
    told = a_snapshot(running())
    assert told["source"] == "desk"
    assert told["boot"] == "b"
    (deployment,) = told["deployments"]  # what has ended is not drawn
    first, second = deployment["stages"]
    assert (first["busy"], first["rate"], first["bytes_per_s"]) == (0.5, 50.0, 50_000.0)
    assert first["bottleneck"]
    assert not second["bottleneck"]
    assert (first["predicted_s"], second["predicted_s"]) == (0.03, 0.02)
    assert [transfer["path"] for transfer in deployment["transfers"]] == [
        ["desk", "jetson"], ["jetson", "desk", "nano"], ["nano", "desk"],
    ]  # fmt: skip
    assert deployment["transfers"][1]["bytes"] == 125_000  # what goes over the wire, not what it was before
    devices = {device["name"]: device for device in told["devices"]}
    assert devices["desk"]["state"] == "here"
    assert not devices["desk"]["agent"]
    assert (devices["nano"]["state"], devices["nano"]["reason"]) == ("lost", "gone")
    assert devices["jetson"]["memory_bytes"] == 1 << 30
    assert told["points"]["small"] == [[7.0, 50.0, 0.0, 0.02, 0.03, 5, 4]]
    assert told["events"][0]["seq"] == 9
    assert told["events"][0]["level"] == "error"
    assert {(link["source"], link["target"]) for link in told["links"]} >= {("desk", "jetson")}


def test_a_deployment_without_its_plan_is_drawn_without_routes():
    told = a_snapshot(None)
    (deployment,) = told["deployments"]
    assert deployment["transfers"] == []
    assert told["links"] == []
    assert len(deployment["stages"]) == 2


def running() -> Plan:
    links = (
        PlanLink(source="desk", target="jetson", bytes_per_s=12.5e6, delay_s=0.001),
        PlanLink(source="jetson", target="desk", bytes_per_s=12.5e6, delay_s=0.001),
        PlanLink(source="jetson", target="nano", bytes_per_s=12.5e6, delay_s=0.002),
        PlanLink(source="nano", target="jetson", bytes_per_s=12.5e6, delay_s=0.002),
    )
    return msgspec.structs.replace(a_plan(), link_loads=links)


def asked(changes: Changes, lost: tuple[str, ...] = ()) -> Plan:
    return predict(running(), a_chain(), a_cluster(), a_profile(), "latency", changes, lost)


def test_nothing_changed_is_what_the_planner_plans():
    expected = make_plan(a_chain(), a_cluster(), a_profile(), objective="latency")
    assert plan_summary(asked(Changes())) == plan_summary(expected)


@pytest.mark.parametrize("name", ["jetson", "nano"])
def test_a_device_that_is_taken_away_or_lost_is_not_planned_with(name):
    for plan in (asked(Changes(without=(name,))), asked(Changes(), (name,))):
        assert name not in [stage.device for stage in plan.stages]
        assert all(name not in transfer.path for transfer in plan.transfers)


def test_no_device_left_is_one_clear_error():
    with pytest.raises(DeferError) as caught:
        asked(Changes(without=("jetson",)), ("nano",))
    assert caught.value.code == "no-route"


def test_a_slower_link_makes_the_plan_slower_and_a_faster_one_never():
    both = ("desk", "jetson")
    slow, now, fast = (
        asked(Changes(("nano",), (Slower(*both, factor),))).latency_s for factor in (0.1, 1.0, 10.0)
    )
    assert slow > now > fast


def test_only_the_link_that_is_meant_changes_in_both_directions():
    cluster = changed(a_cluster(), running(), (Slower("nano", "jetson", 0.5),))
    added = cluster.links[len(a_cluster().links) :]
    assert {(link.source, link.target) for link in added} == {("nano", "jetson"), ("jetson", "nano")}
    assert all(link.bandwidth == "50 Mbit/s" and link.delay == "2 ms" for link in added)


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        (Changes(without=("desk",)), UsageError, "where the dispatcher runs"),
        (Changes(without=("moon",)), UnknownDevice, "moon"),
        (Changes(links=(Slower("desk", "moon"),)), UnknownDevice, "moon"),
        (Changes(links=(Slower("desk", "nano"),)), UsageError, "no link"),
        (Changes(links=(Slower("desk", "jetson", 0.0),)), UsageError, "times as fast"),
        (Changes(links=(Slower("desk", "jetson", float("nan")),)), UsageError, "times as fast"),
    ],
)
def test_changes_that_cannot_be(changes, kind, said):
    with pytest.raises(kind, match=said):
        asked(changes)
