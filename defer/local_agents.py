"""Agents as child processes of this one, on loopback: for the demo, for trying things out, and for tests."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from defer.errors import AgentUnreachable
from node_agent.interpreter import python

START_TIMEOUT_S = 30.0
"""Importing an engine on a slow box takes seconds."""

STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class LocalAgent:
    """A running agent: its device name, its control endpoint as `host:port`, its process."""

    name: str
    address: str
    process: subprocess.Popen[str]


@contextlib.contextmanager
def local_agents(
    names: Sequence[str],
    directory: Path,
    *,
    threads: int = 1,
    arguments: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[tuple[LocalAgent, ...]]:
    """Run one agent per name on free loopback ports; all are gone when the block ends, however it ends.

    Args:
        names: Device names.
        directory: Where each agent keeps its files and its log, `<name>/` and `<name>.log`.
        threads: Engine threads of each.
        arguments: More of an agent's command line, by name.

    Raises:
        AgentUnreachable: One did not start; the message holds the end of its log.
    """
    running: list[subprocess.Popen[str]] = []
    try:
        for name in names:  # one by one: what was started is stopped when the next cannot be
            running.append(_spawn(name, directory, threads, (arguments or {}).get(name, ())))  # noqa: PERF401
        yield tuple(
            _wait_ready(name, process, directory) for name, process in zip(names, running, strict=True)
        )
    finally:
        stop(running)


def stop(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Ask processes to end, and end those that do not."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def read_line(process: subprocess.Popen[str], timeout: float) -> str:
    """The next line of a child's standard output; empty when it ended or said nothing in time.

    Byte by byte from the descriptor: a buffered reader would take a second line that came along with the first, and
    the selector would never hear of it.
    """
    assert process.stdout is not None
    line = bytearray()
    deadline = time.monotonic() + timeout
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not line.endswith(b"\n") and selector.select(max(0.0, deadline - time.monotonic())):
            byte = os.read(process.stdout.fileno(), 1)
            if not byte:
                break
            line += byte
    return line.decode() if line.endswith(b"\n") else ""


def _spawn(name: str, directory: Path, threads: int, arguments: Sequence[str]) -> subprocess.Popen[str]:
    store = directory / name
    store.mkdir(parents=True, exist_ok=True)
    command = [*python(), "-m", "node_agent", "--name", name, "--listen", "127.0.0.1:0"]
    command += ["--threads", str(threads), "--store", str(store), "--json"]
    # However this process ends, its end of the pipe closes, and nobody is left behind.
    command += ["--until-stdin-closes", *arguments]
    with (directory / f"{name}.log").open("w") as log:
        # Its own process group: Ctrl-C in the terminal reaches the parent alone, which then stops it in order.
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )


def _wait_ready(name: str, process: subprocess.Popen[str], directory: Path) -> LocalAgent:
    line = read_line(process, START_TIMEOUT_S)
    try:
        ready = json.loads(line)
    except ValueError:
        log = (directory / f"{name}.log").read_text().strip().splitlines()
        raise AgentUnreachable(
            f"agent {name!r} did not start: {' '.join(log[-3:]) or 'it said nothing'}"
        ) from None
    return LocalAgent(name, ready["control"].removeprefix("tcp://"), process)
