"""The agents of a bed: how one is started, and how it says that it is ready."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.testbed.spec import AGENT_PORT, Device
from defer.errors import AgentUnreachable

_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Agent:
    """A running agent.

    Attributes:
        name: Its device.
        address: `host:port` of its control endpoint.
        process: The process.
        log: File with its standard error.
    """

    name: str
    address: str
    process: subprocess.Popen[Any]
    log: Path

    @property
    def pid(self) -> int:
        """Process id, as on the whole machine."""
        return self.process.pid


@dataclass(frozen=True, slots=True)
class AgentPlace:
    """What an agent's command line is made from.

    Attributes:
        device: Its device.
        host: The device's address.
        port: First port to listen on.
        store: Directory for what it keeps.
    """

    device: Device
    host: str
    store: Path
    port: int = AGENT_PORT


AgentCommand = Callable[[AgentPlace], Sequence[str]]
"""Makes an agent's command line. The program prints one JSON object with the key `control` when it is ready."""


def node_agent_command(place: AgentPlace) -> list[str]:
    """`python -m node_agent` as on a real device, with plain connections: the bed's network has no outside."""
    command = [sys.executable, "-m", "node_agent", "--name", place.device.name]
    command += ["--listen", f"{place.host}:{place.port}", "--insecure"]
    command += ["--threads", str(place.device.threads), "--store", str(place.store), "--json"]
    return [*command, *place.device.arguments]


def wait_ready(process: subprocess.Popen[Any], name: str, output: Path, log: Path, deadline: float) -> Agent:
    """Waits until an agent has printed where it listens.

    Args:
        process: Its process.
        name: Its device.
        output: File with its standard output.
        log: File with its standard error.
        deadline: Until when, in the time of `time.monotonic`.

    Raises:
        AgentUnreachable: It ended, said something else, or said nothing in time; the message ends its log.
    """
    while True:
        ended = process.poll() is not None
        line, newline, _ = output.read_text(errors="replace").partition("\n")
        if newline:
            try:
                control = str(json.loads(line)["control"])
            except (ValueError, KeyError, TypeError):
                raise _failure(name, f"said {line!r:.200}", log) from None
            return Agent(name, control.removeprefix("tcp://"), process, log)
        if ended:
            raise _failure(name, f"ended with exit code {process.returncode}", log)
        if time.monotonic() > deadline:
            raise _failure(name, "was not ready in time", log)
        time.sleep(_POLL_S)


def _failure(name: str, what: str, log: Path) -> AgentUnreachable:
    said = log.read_text(errors="replace").strip().splitlines()
    return AgentUnreachable(
        f"the agent on {name!r} {what}: {' '.join(said[-3:]) or 'its log is empty'}",
        hint="--keep-logs DIR keeps the whole log",
    )
