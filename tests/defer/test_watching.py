"""`defer top` and `defer events` against a real dispatcher with a real agent that is killed."""

from __future__ import annotations

import http.client
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import models
from defer.client import Client
from defer.dispatcher.bringup import Order
from defer.dispatcher.daemon import Daemon
from defer.documents.cluster import loads_cluster
from defer.local_agents import LocalAgent, local_agents, read_line, stop
from tests.defer.cli_fixtures import run

pytestmark = pytest.mark.integration

MODEL = "tiny_residual"
DEADLINE_S = 60


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[LocalAgent]:
    with local_agents(["a"], tmp_path) as (running,):
        yield running


@pytest.fixture
def daemon(agent: LocalAgent, tmp_path: Path) -> Iterator[Daemon]:
    text = f'[dispatcher]\nlisten = "127.0.0.1:0"\n[[device]]\nname = "a"\naddress = "{agent.address}"\n'
    with Daemon(loads_cluster(text), tmp_path / "state") as running:
        running.connect(20)
        model = models.save(MODEL, tmp_path / f"{MODEL}.onnx")
        running.deployments.bring_up(Order(MODEL, model), lambda _what, _fraction: None)
        yield running


def child(daemon: Daemon, *words: str, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "defer", *words, "--dispatcher", str(daemon.address)]
    return subprocess.Popen(command, text=True, **options)  # type: ignore[call-overload]


def kinds(daemon: Daemon) -> list[str]:
    result = run("events", "--json", "--dispatcher", daemon.address)
    assert result.exit_code == 0, result.output
    return [json.loads(line)["kind"] for line in result.stdout.splitlines()]


def test_events_tell_of_a_killed_agent_and_a_follower_sees_them_come(
    daemon: Daemon, agent: LocalAgent
) -> None:
    assert {"agent-joined", "deploying", "deployed", "route-serves"} <= set(kinds(daemon))
    follower = child(daemon, "events", "--follow", "--json", "--last", "1", stdout=subprocess.PIPE)
    try:
        assert read_line(follower, DEADLINE_S), "it shows what was last when it is connected"
        agent.process.send_signal(signal.SIGKILL)
        seen: list[str] = []
        deadline = time.monotonic() + DEADLINE_S
        while not {"agent-lost", "route-lost"} <= set(seen):
            line = read_line(follower, max(0.0, deadline - time.monotonic()))
            assert line, seen
            seen.append(json.loads(line)["kind"])
        assert seen[0] in ("agent-lost", "route-lost")  # nothing of what was before
        follower.send_signal(signal.SIGINT)
        assert follower.wait(DEADLINE_S) == 130
    finally:
        stop([follower])


def test_one_frame_for_a_pipe_and_for_a_program(daemon: Daemon) -> None:
    with Client(str(daemon.address)) as client:
        for seed in range(20):
            client.infer(models.example_inputs(MODEL, seed=seed))
    result = run("top", "--once", "--interval", "0.2", "--dispatcher", daemon.address)
    assert result.exit_code == 0, result.output
    assert f"{MODEL} ready" in result.stdout
    told = json.loads(run("top", "--json", "--interval", "0.2", "--dispatcher", daemon.address).stdout)
    assert [stage["device"] for stage in told["stages"]] == ["a"]
    result = run("top", "--dispatcher", daemon.address)
    assert result.exit_code == 2
    assert "--once" in result.stderr


@pytest.mark.parametrize("end", ["q", ""])
def test_top_draws_in_a_terminal_and_leaves_it_as_it_was(daemon: Daemon, end: str) -> None:
    ours, theirs = pty.openpty()
    process = child(daemon, "top", "--interval", "0.2", stdin=theirs, stdout=theirs, start_new_session=True)
    os.close(theirs)
    try:
        text = ""
        deadline = time.monotonic() + DEADLINE_S
        while "stage" not in text or text.count(MODEL) < 2:
            ready, _, _ = select.select([ours], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, text
            text += os.read(ours, 65536).decode(errors="replace")
        if end:
            os.write(ours, end.encode())
        else:  # what a shell's terminal makes of Ctrl-C
            process.send_signal(signal.SIGINT)
        while "\x1b[?1049l" not in text:  # it leaves the terminal's second screen
            assert select.select([ours], [], [], max(0.0, deadline - time.monotonic()))[0]
            text += os.read(ours, 65536).decode(errors="replace")
        assert process.wait(DEADLINE_S) == 0
    finally:
        os.close(ours)
        stop([process])


def test_nobody_there_is_one_line() -> None:
    result = run("events", "--dispatcher", "127.0.0.1:1")
    assert result.exit_code == 69
    assert result.stderr.startswith("error: ")


def page(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def until_ready_is(status: int, port: int) -> str:
    deadline = time.monotonic() + DEADLINE_S
    while (told := page(port, "/readyz"))[0] != status:
        assert time.monotonic() < deadline, told
        time.sleep(0.05)
    return told[1]


def test_the_probe_says_ready_after_the_canary_and_not_ready_when_the_agent_is_killed(
    agent: LocalAgent, tmp_path: Path
) -> None:
    model = models.save(MODEL, tmp_path / f"{MODEL}.onnx")
    cluster = tmp_path / "cluster.toml"
    cluster.write_text(f'[[device]]\nname = "a"\naddress = "{agent.address}"\n')
    words = [
        "serve",
        "--cluster",
        str(cluster),
        "--listen",
        "127.0.0.1:0",
        "--metrics",
        "127.0.0.1:0",
        "--json",
    ]
    command = [sys.executable, "-m", "defer", *words, "--until-stdin-closes"]
    server = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        while "ready" not in (ready := json.loads(read_line(server, DEADLINE_S))):
            pass
        port = int(ready["metrics"].removesuffix("/metrics").rpartition(":")[2])
        assert page(port, "/readyz") == (503, "no model is deployed\n")
        assert page(port, "/healthz") == (200, "alive\n")
        assert run("deploy", model, "--dispatcher", ready["ready"]).exit_code == 0
        assert page(port, "/readyz") == (200, "ready\n")
        status, text = page(port, "/metrics")
        assert status == 200
        assert f'nv_inference_request_success{{model="{MODEL}",version="1"}} 1\n' in text  # the canary
        assert 'defer_device_up{device="a"} 1\n' in text
        assert 'defer_events_total{kind="deployed"} 1\n' in text
        agent.process.send_signal(signal.SIGKILL)
        assert "device 'a' is lost" in until_ready_is(503, port)
        assert page(port, "/healthz")[0] == 200
        deadline = time.monotonic() + DEADLINE_S
        while (
            'defer_device_up{device="a"} 0\n' not in page(port, "/metrics")[1]
        ):  # a look serves readers for a while
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        stop([server])
