"""`defer trace` against real agents: what it says of a request agrees with the clock that all of them share here."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

import models
import partitioner
from defer import api
from defer.admin import Admin
from defer.cli import group
from defer.client import Client
from defer.client_requests import dialling
from defer.dispatcher.bringup import Order
from defer.dispatcher.daemon import Daemon
from defer.documents.cluster import loads_cluster
from defer.local_agents import local_agents
from defer.planning import make_plan, parse_placement
from defer.tracing.run import run_traced

pytestmark = pytest.mark.integration

MODEL = "tiny_residual"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    base = tmp_path_factory.mktemp("traced")
    path = models.save(MODEL, base / f"{MODEL}.onnx")
    with local_agents(["a", "b"], base) as agents:
        lines = ['[dispatcher]\nlisten = "127.0.0.1:0"\n[network]\nbandwidth = "1 Gbit/s"\ndelay = "0.1 ms"']
        lines += [f'[[device]]\nname = "{agent.name}"\naddress = "{agent.address}"' for agent in agents]
        cluster = loads_cluster("\n".join(lines))
        chain = partitioner.analyze(path)
        half, count = len(chain.blocks) // 2, len(chain.blocks)
        plan = make_plan(chain, cluster, placement=parse_placement(f"a=0:{half},b={half}:", cluster, count))
        with Daemon(cluster, base / "state") as running:
            running.connect(20)
            running.deployments.bring_up(Order(MODEL, path, plan=plan), lambda _what, _fraction: None)
            with Client(str(running.address)) as client:  # its first answers start threads that stay
                client.infer(models.example_inputs(MODEL))
                client.status()
            yield running


def test_spans_are_ordered_and_add_up_to_the_latency_within_the_clocks_error(daemon: Daemon) -> None:
    inputs = models.example_inputs(MODEL)
    client = dialling(str(daemon.address), model="", timeout=20, codec="auto", connect_timeout=10)
    with closing(client):
        begun = time.monotonic()
        timeline = run_traced(client, MODEL, inputs, requests=20, window=4)
        lasted = time.monotonic() - begun
    assert timeline.places == ("client", "dispatcher", "a", "b")
    assert (len(timeline.requests), timeline.lost) == (20, 0)
    assert 0 < timeline.seconds < lasted
    for spans, latency in zip(timeline.requests, timeline.latencies, strict=True):
        assert sum(span.seconds for span in spans) == pytest.approx(latency)
        assert [(span.where, span.to) for span in spans if span.kind == "transfer"] == [
            ("client", "dispatcher"), ("dispatcher", "a"), ("a", "b"), ("b", "dispatcher"), ("dispatcher", "client")
        ]  # fmt: skip
        assert [span.where for span in spans if span.kind == "run"] == ["a", "b"]
        for span in spans:
            assert span.seconds >= -span.error_s
    # All processes here read one clock, so whatever an offset was estimated at is its error.
    with Admin(daemon.address) as admin:
        read = admin.ask(api.GetTraces(0, rounds=8), api.Traces, timeout=20)
    assert {agent.device for agent in read.agents} == {"a", "b"}
    for agent in read.agents:
        assert agent.error_ns > 0
        assert abs(agent.ahead_ns) <= agent.error_ns


def test_a_request_that_is_not_traced_leaves_nothing(daemon: Daemon) -> None:
    with Client(str(daemon.address)) as client:
        client.infer(models.example_inputs(MODEL))
        traced = client.submit(models.example_inputs(MODEL), trace="00-traced")
        traced.result(20)
    deadline = time.monotonic() + 20
    with Admin(daemon.address) as admin:
        while True:  # an agent notes a run once the result is on its way
            found = admin.ask(api.GetTraces(0, ("", "00-traced")), api.Traces, timeout=20)
            if all(agent.hops for agent in found.agents) or time.monotonic() > deadline:
                break
            time.sleep(0.02)
    assert [request.trace for request in found.requests] == ["00-traced"]
    assert [[hop.trace for hop in agent.hops] for agent in found.agents] == [["00-traced"], ["00-traced"]]


def test_the_command_draws_writes_and_counts(daemon: Daemon, tmp_path: Path) -> None:
    run = CliRunner().invoke
    where = ["--dispatcher", str(daemon.address)]
    trace, plot = tmp_path / "trace.json", tmp_path / "gantt.svg"
    shown = run(group, ["trace", MODEL, *where, "--requests", "6", "-o", str(trace), "--plot", str(plot)])
    assert shown.exit_code == 0, shown.output
    assert "6 requests of tiny_residual" in shown.output
    events = json.loads(trace.read_text())["traceEvents"]
    assert len([event for event in events if event.get("cat") == "run"]) == 12
    assert "<svg" in plot.read_text()[:100]
    counted = run(group, ["trace", *where, "--requests", "3", "--in-flight", "1", "--json"])
    summary = json.loads(counted.stdout)
    assert (summary["requests"], summary["in_flight"], summary["lost"]) == (3, 1, 0)
    assert [place["place"] for place in summary["places"]] == ["client", "dispatcher", "a", "b"]
    (tmp_path / "notes.json").write_text("[1]")
    refused = run(group, ["trace", *where, "-o", str(tmp_path / "notes.json")])
    assert refused.exit_code != 0


def test_bench_reports_the_four_quantities(daemon: Daemon) -> None:
    words = ["bench", "--dispatcher", str(daemon.address), "--requests", "30", "--singles", "3"]
    told = CliRunner().invoke(group, [*words, "--json"])
    assert told.exit_code == 0, told.output
    load = json.loads(told.stdout)
    four = load["quantities"]
    assert four["throughput_per_s"] == load["rate_per_s"] > 0
    assert four["energy_j"] == pytest.approx(sum(stage["energy_j"] for stage in load["stages"]))
    moved = sum(stage["bytes_in"] for stage in load["stages"]) + load["stages"][-1]["bytes_out"]
    assert four["payload_bytes"] == pytest.approx(moved)
    assert four["overhead_s"] >= load["client_coding_s"] > 0
    shown = CliRunner().invoke(group, [*words, "--rate", "200"])
    assert shown.exit_code == 0, shown.output
    assert "on the network" in shown.output
    assert "asked for 200/s" in shown.output
