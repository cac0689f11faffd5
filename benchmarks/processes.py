"""The processes that benchmarks start, and how they say that they are ready."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from defer.local_agents import read_line, stop

READY_S = 300.0
"""Seconds in which a dispatcher measures, plans, ships and loads on slow devices."""

Start = Callable[[Sequence[str]], "subprocess.Popen[str]"]
"""Starts a command with its standard output piped as text."""


def start_here(command: Sequence[str]) -> subprocess.Popen[str]:
    """Starts a command on this machine."""
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )


@contextlib.contextmanager
def ended(processes: list[subprocess.Popen[str]]) -> Iterator[None]:
    """Ends the processes that are in the list when the block is left."""
    try:
        yield
    finally:
        stop(processes)


def start_bare(endpoints: Sequence[str], start: Start = start_here) -> list[subprocess.Popen[str]]:
    """A chain of bare stages that hand on: stage i listens at endpoint i and sends to the next one."""
    processes = [
        start([sys.executable, "-m", "benchmarks.bare", source, sink]) for source, sink in pairwise(endpoints)
    ]
    for process in processes:
        wait_line(process, "ready")
    return processes


def wait_line(process: subprocess.Popen[str], expected: str, timeout: float = 60.0) -> None:
    """Waits until a process has printed a line.

    Raises:
        SystemExit: It printed another, or none.
    """
    said = read_line(process, timeout).strip()
    if said != expected:
        raise SystemExit(f"a process of the benchmark said {said!r} in place of {expected!r}")


@contextlib.contextmanager
def serving(
    cluster: Path, *more: str, start: Start = start_here, timeout: float = READY_S
) -> Iterator[dict[str, Any]]:
    """`defer serve` as a process; yields what it says when it is ready."""
    command = [sys.executable, "-m", "defer", "serve", "--cluster", str(cluster), "--json", *more]
    process = start(command)
    with ended([process]):
        deadline = time.monotonic() + timeout
        while line := read_line(process, max(0.1, deadline - time.monotonic())):
            event: dict[str, Any] = json.loads(line)
            if "ready" in event:
                yield {**event, "pid": process.pid}
                return
        raise SystemExit("`defer serve` did not become ready")
