"""What the pipeline benchmarks run on a bed beside ours: stages alone, bare chains, chains of DEFER's kind, the load."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.processes import wait_line
from benchmarks.testbed import Testbed
from defer.parts import WrittenPart
from node_agent.messages import TensorSpec

StartOn = Callable[[str | None, Sequence[str]], "subprocess.Popen[str]"]
"""Starts a command on a device of the bed, or on the dispatcher's."""

BARE_PORT, STYLE_PORT, LAST_PORT = 7640, 7660, 7680


def alone(bed: Testbed, device: str, part: WrittenPart, seconds: float) -> float:
    """Seconds per run of a partition by itself on its device."""
    graph = _graph(part)
    described = [_described(spec) for spec in part.part.warm_up]
    command = [sys.executable, "-m", "benchmarks.stage_alone", str(graph), str(seconds), *described]
    done = bed.run(command, device, capture=True)
    if done.returncode:
        raise SystemExit(f"a stage alone failed: {done.stderr.strip()[-300:]}")
    return float(done.stdout)


def _described(spec: TensorSpec) -> str:
    return f"{spec.name}={spec.dtype}:{','.join(map(str, spec.shape))}"


def _graph(part: WrittenPart) -> Path:
    return part.files[part.part.graph]


def start_bare(
    bed: Testbed,
    devices: Sequence[str],
    parts: Sequence[WrittenPart],
    handed: Sequence[tuple[str, ...]],
    start_on: StartOn,
    processes: list[subprocess.Popen[str]],
) -> tuple[str, str]:
    """The bare chain on the stages' devices; the endpoints of its two ends."""
    places = [f"tcp://{bed.address(device)}:{BARE_PORT + n}" for n, device in enumerate(devices)]
    last = f"tcp://{bed.address(bed.spec.dispatcher)}:{LAST_PORT}"
    for number, (device, part) in enumerate(zip(devices, parts, strict=True)):
        command = [sys.executable, "-m", "benchmarks.bare", places[number], [*places, last][number + 1]]
        command += ["--model", str(_graph(part)), "--send", *handed[number]]
        processes.append(start_on(device, command))
    for process in processes:
        wait_line(process, "ready", 120.0)
    return places[0], last


def start_style(
    bed: Testbed,
    devices: Sequence[str],
    parts: Sequence[WrittenPart],
    start_on: StartOn,
    processes: list[subprocess.Popen[str]],
) -> tuple[str, str]:
    """A chain of DEFER's kind, its partitions on the devices in order; `host:port` of its two ends."""
    places = [(bed.address(device), STYLE_PORT + n) for n, device in enumerate(devices)]
    places.append((bed.address(bed.spec.dispatcher), LAST_PORT + 1))
    started = []
    for number, (device, part) in enumerate(zip(devices, parts, strict=True)):
        here, there = places[number], places[number + 1]
        command = [
            sys.executable,
            "-m",
            "benchmarks.defer_style",
            here[0],
            str(here[1]),
            there[0],
            str(there[1]),
        ]
        started.append(start_on(device, [*command, "--model", str(_graph(part))]))
    processes += started
    for process in started:
        wait_line(process, "ready", 120.0)
    first, last = places[0], places[-1]
    return f"{first[0]}:{first[1]}", f"{last[0]}:{last[1]}"


def load_command(inputs: Path, *more: object) -> list[str]:
    """`benchmarks.load` with these inputs; what it is to load is still to be said."""
    return [sys.executable, "-m", "benchmarks.load", "--input", str(inputs), *map(str, more)]


def run_load(command: Sequence[str], bed: Testbed) -> dict[str, list[float]]:
    """Results per second of every pipeline in every turn, measured by `benchmarks.load` beside the dispatcher."""
    done = bed.run(command, capture=True, timeout=1800.0)
    if done.returncode:
        raise SystemExit(f"the load failed: {done.stderr.strip()[-2000:]}")
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found
