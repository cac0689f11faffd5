"""How soon the probe of a gateway elsewhere follows its dispatcher: `python -m benchmarks.readiness`.

Real processes: an agent, `defer serve` with a tiny model, and `defer gateway`. Each round kills the dispatcher with
SIGKILL and asks `/v2/health/ready` until it says no.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click

import models
from defer.local_agents import LocalAgent, local_agents, read_line, stop

READY_S = 60.0
"""Longest that a process may take to be ready, or a probe to follow; more is an error."""

MODEL = "tiny_chain"


def main(rounds: int) -> None:
    """Kill the dispatcher so many times, and print how long the probe took to say so."""
    with tempfile.TemporaryDirectory() as directory, local_agents(["a"], Path(directory)) as (agent,):
        took = [measured(Path(directory), agent) for _ in range(rounds)]
    median, worst = statistics.median(took), max(took)
    click.echo(
        f"{rounds} dispatchers killed: /v2/health/ready says no after {median:.2f} s (median), {worst:.2f} s (most)"
    )


def measured(folder: Path, agent: LocalAgent) -> float:
    """Seconds from SIGKILL of a dispatcher that serves to the first probe of its gateway that says no.

    Args:
        folder: Where files go.
        agent: The cluster's one device.

    Raises:
        TimeoutError: A process was not ready, or the probe did not follow.
    """
    with serving(folder, agent) as (dispatcher, address), gateway(address) as port:
        until(port, 200)
        begin = time.monotonic()
        dispatcher.kill()
        until(port, 400)
        return time.monotonic() - begin


@contextlib.contextmanager
def serving(folder: Path, agent: LocalAgent) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A dispatcher that serves the tiny model, and its address."""
    model, cluster = folder / f"{MODEL}.onnx", folder / "cluster.toml"
    if not model.exists():
        models.save(MODEL, model)
    cluster.write_text(
        '[dispatcher]\nlisten = "127.0.0.1:0"\n[network]\nbandwidth = "1 Gbit/s"\ndelay = "0.1 ms"\n'
        f'[[device]]\nname = "{agent.name}"\naddress = "{agent.address}"\n'
    )
    words = ["serve", "--cluster", str(cluster), "--model", str(model), "--no-state", "--json"]
    with _started(*words) as process:
        while "ready" not in (told := _line(process)):
            pass  # its progress
        yield process, str(told["ready"])


@contextlib.contextmanager
def gateway(dispatcher: str) -> Iterator[int]:
    """A gateway of its own in front of a dispatcher; the port of its HTTP server."""
    with _started("gateway", "--http", "127.0.0.1:0", "--dispatcher", dispatcher, "--json") as process:
        yield int(str(_line(process)["http"]).rpartition(":")[2])


def probe(port: int, path: str = "/v2/health/ready") -> int:
    """The status of one probe."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=READY_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def until(port: int, status: int) -> None:
    """Probe until it says `status`; TimeoutError where that takes too long."""
    deadline = time.monotonic() + READY_S
    while probe(port) != status:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the probe did not say {status} within {READY_S:g} s")
        time.sleep(0.01)


def _line(process: subprocess.Popen[str]) -> dict[str, object]:
    text = read_line(process, READY_S)
    if not text:
        raise TimeoutError(f"{process.args!r} was not ready within {READY_S:g} s")
    told: dict[str, object] = json.loads(text)
    return told


@contextlib.contextmanager
def _started(*words: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "defer", *words, "--until-stdin-closes"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("DEFER_")},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        stop([process])


@click.command()
@click.option(
    "--rounds", default=10, show_default=True, type=click.IntRange(min=1), help="Dispatchers to kill."
)
def command(rounds: int) -> None:
    """Measure how soon a gateway's probe follows a dispatcher that was killed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main(rounds)


if __name__ == "__main__":
    command()
