"""What two looks at a dispatcher say, and the frame that `defer top` makes of it."""

from __future__ import annotations

import io

import msgspec
import pytest
from rich.console import Console

from defer.api import DeploymentInfo, DeviceInfo, ModelInfo, ServerStatus, StageInfo
from defer.event_log import EventInfo
from defer.live.rates import stage_loads
from defer.live.top_page import frame


def look(uptime: float, *stages: StageInfo, epoch: int = 1) -> ServerStatus:
    deployment = DeploymentInfo(
        "m", epoch, "ready", answered=7, rate=10.0, p50_s=0.01, p99_s=0.1, stages=stages
    )
    return ServerStatus(0, "@dispatcher", "0", uptime, deployments=(deployment,))


def stage(device: str, items: int, run_s: float, **more: int) -> StageInfo:
    return StageInfo(device, 0, 4, items=items, run_s=run_s, **more)


def test_utilisation_is_the_time_in_runs_between_two_looks():
    before = look(10.0, stage("a", 100, 0.001, bytes_out=1000), stage("b", 100, 0.002))
    now = look(12.0, stage("a", 200, 0.001, bytes_out=5000, queued=3), stage("b", 200, 0.0055))
    a, b = stage_loads(before, now)
    assert a.utilisation == pytest.approx(0.05)
    assert a.rate == b.rate == 50
    assert (a.bytes_out_per_s, a.queued, a.bottleneck) == (2000, 3, False)
    assert b.utilisation == pytest.approx(0.45)
    assert b.run_s == pytest.approx(0.009)  # of these hundred runs, not of all
    assert b.bottleneck


def test_counters_that_began_anew_are_taken_from_zero():
    before = look(10.0, stage("a", 100, 0.01))
    now = look(11.0, stage("a", 10, 0.01))
    (load,) = stage_loads(before, now)
    assert (load.rate, load.utilisation) == (10, pytest.approx(0.1))
    (load,) = stage_loads(before, look(20.0, stage("a", 10, 0.01), epoch=2))
    assert load.rate == 0.5  # another deployment: since the start


def test_nothing_is_a_bottleneck_where_nothing_happens():
    same = look(10.0, stage("a", 100, 0.01), stage("b", 100, 0.01))
    assert not any(
        load.bottleneck or load.rate for load in stage_loads(same, look(20.0, *same.deployments[0].stages))
    )
    assert stage_loads(same, same)[0].utilisation == 0


def drawn(now: ServerStatus, *events: EventInfo, trouble: str = "") -> str:
    out = io.StringIO()
    Console(file=out, width=120).print(frame("here:1", None, now, events, trouble=trouble))
    return out.getvalue()


def test_a_frame_marks_the_bottleneck_and_shows_events():
    now = look(2.0, stage("a", 100, 0.001), stage("b", 100, 0.01))
    now = msgspec.structs.replace(
        now, devices=(DeviceInfo("a", "alive"), DeviceInfo("b", "lost")), refused={"overloaded": 4}
    )
    text = drawn(
        now, EventInfo(1, 0.0, "agent-lost", "agent b is lost", "error", count=3), trouble="no answer"
    )
    (marked,) = [line for line in text.splitlines() if "bottleneck" in line]
    assert " b " in marked
    for word in ("agent b is lost (×3)", "refused 4 overloaded", "no answer", "10.0/s", "p99 100 ms"):
        assert word in text


def test_a_frame_without_a_model_says_what_to_do():
    assert "defer deploy" in drawn(ServerStatus(0, "@dispatcher", "0", 1.0))
    announced = (ModelInfo("m", "announced", "planning"),)
    assert "m: not ready, planning" in drawn(ServerStatus(0, "@dispatcher", "0", 1.0, models=announced))
