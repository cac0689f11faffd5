"""What `defer status` draws of what a dispatcher says."""

from __future__ import annotations

import json

import pytest

from defer import api
from defer.infos import DeploymentInfo, StageInfo, StandbyInfo
from tests.defer.cli_fixtures import run
from tests.defer.conftest import Server

pytestmark = pytest.mark.integration

STATUS = api.ServerStatus(
    0,
    "test",
    "0",
    1.0,
    deployments=(
        DeploymentInfo(
            "m",
            1,
            "ready",
            answered=5,
            failed=3,
            cancelled=2,
            stages=(StageInfo("a", 0, 4, engine="onnxruntime-cpu"),),
        ),
        DeploymentInfo("m", 2, "standby", stages=(StageInfo("b", 0, 4, engine="onnxruntime-cpu"),)),
    ),
    failed={"cancelled": 2, "agent-lost": 1},
    standby=(
        StandbyInfo("m", "a", "loaded", ("b",), 2),
        StandbyInfo("m", "b", "planning"),
        StandbyInfo("m", "c", "replica"),
        StandbyInfo("m", "d", "impossible", reason="block 3 needs 9 GiB"),
    ),
)


def test_what_stands_by_is_told_with_its_loss_and_no_cell_is_empty() -> None:
    server = Server().start()
    server.verbs.status = lambda: STATUS  # type: ignore[method-assign]
    try:
        shown = run("status", "--dispatcher", server.address)
        told = json.loads(run("status", "--json", "--dispatcher", server.address).stdout)
    finally:
        server.stop()
    assert shown.exit_code == 0, shown.output
    assert "m: ready, deployment 1" in shown.stdout
    assert (
        "  5 answered (the dispatcher's own canaries among them), 1 failed, 2 cancelled, 0 in flight, 0 waiting"
        in shown.stdout
    )
    assert "failed: 1 agent-lost\ngiven up by their clients: 2\n" in shown.stdout
    assert "m: standby" not in shown.stdout
    lines = {line.split()[0]: " ".join(line.split()) for line in shown.stdout.splitlines() if line.strip()}
    assert lines["a"] == "a m loaded, deployment 2 b"
    assert lines["b"] == "b m planning not known yet"
    assert lines["c"] == "c m replica its other routes"
    assert lines["d"] == "d m impossible nothing"
    assert "m without d: block 3 needs 9 GiB" in shown.stdout
    assert [each["state"] for each in told["deployments"]] == ["ready", "standby"]
