"""`defer init` against real agents, and the file that it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import models
from benchmarks.ports import free_ports
from defer import keys
from defer.cli import init
from defer.documents.cluster import Cluster
from defer.local_agents import local_agents
from node_agent.keys import ALLOWED, Role
from tests.defer.cli_fixtures import failed, run

pytestmark = pytest.mark.integration


def test_a_file_from_what_answers_can_be_planned_with_at_once(tmp_path: Path) -> None:
    model = models.save("tiny_residual", tmp_path / "m.onnx")
    written, silent = tmp_path / "cluster.toml", f"127.0.0.1:{free_ports(1)}"
    with local_agents(["left", "right"], tmp_path) as (left, right):
        result = run(
            "init", left.address, f"right={right.address}", silent, "--wait", 3, "-o", written, "--json"
        )
        assert result.exit_code == 0, result.output
        wrong = run("init", f"other={left.address}", "-o", tmp_path / "no.toml")
        assert "calls itself 'left'" in failed(wrong, 78)
        shown = run("init", left.address, "--no-links", "-o", "-")
        assert "[[link]]" not in shown.stdout
        again = tmp_path / "again.toml"
        hinted = run("init", left.address, "--no-links", "-o", again)
        assert f"defer serve --cluster {again} --model MODEL.onnx" in hinted.stderr
    told = json.loads(result.stdout)
    assert [each["name"] for each in told["devices"]] == ["left", "right"]
    assert list(told["silent"]) == [silent]
    assert len(told["links"]) == 6
    cluster = Cluster.load(written)
    assert {device.name: device.address for device in cluster.agents} == {
        "left": left.address,
        "right": right.address,
    }
    assert all(link.bandwidth and link.delay is not None for link in cluster.directed_links())
    assert all(device.memory_bytes for device in cluster.agents)
    planned = run("plan", model, "--cluster", written, "--json")
    assert planned.exit_code == 0, planned.output

    before = written.read_text()
    assert "exists" in failed(run("init", left.address, "-o", written), 73)
    assert written.read_text() == before


def test_nobody_there_is_an_error_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = tmp_path / "cluster.toml"
    written.write_text("# mine\n")
    nobody = f"127.0.0.1:{free_ports(1)}"
    said = failed(run("init", nobody, "--wait", 0.3, "-o", written, "--force"), 69)
    assert nobody in said
    assert written.read_text() == "# mine\n"
    monkeypatch.setattr(init, "browse", lambda *_: [])
    assert "no agent announced itself" in failed(run("init", "-o", tmp_path / "x.toml"), 69)
    failed(run("init", "10.0.0.2", "-o", tmp_path / "x.toml"), 78)
    failed(run("init", nobody, "-o", tmp_path / "none" / "x.toml"), 74)


def test_with_keys_an_address_is_believed_where_a_key_that_is_known_answers(tmp_path: Path) -> None:
    known: list[tuple[str, Role]] = [
        ("main", "dispatcher"),
        ("left", "agent"),
        ("right", "agent"),
        ("odd", "agent"),
    ]
    folders = {name: tmp_path / "keys" / name for name, _ in known}
    for name, role in known:
        keys.make(folders[name], name, role)
    for name, others in (
        ("main", ("left", "right")),
        ("left", ("main", "right")),
        ("right", ("main", "left")),
    ):
        for other in others:
            keys.authorise(folders[name], folders[other] / ALLOWED / f"{other}.toml")
    keys.authorise(folders["odd"], folders["main"] / ALLOWED / "main.toml")
    written = tmp_path / "cluster.toml"
    arguments = {name: ["--keys", str(folders[name])] for name in ("left", "right", "odd")}
    with local_agents(["left", "right", "odd"], tmp_path, arguments=arguments) as agents:
        where = [agent.address for agent in agents]
        result = run("init", *where, "--keys", folders["main"], "-o", written, "--wait", 4, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert [each["name"] for each in told["devices"]] == ["left", "right"]
    assert list(told["silent"]) == [agents[2].address]  # it answers, but nobody here vouches for its key
    assert len(told["links"]) == 6
    assert not any(link["problem"] for link in told["links"])
