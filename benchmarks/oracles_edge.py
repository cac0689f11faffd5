"""Unequal edge boards: PipeEdge's measured profiles, with its memory and transfer model.

One board holds one stage; the period is the largest of every stage's compute and transfer; a transfer runs at the
smaller bandwidth of its two ends, with Mbit/s read as 1024² bit/s. Memory of a stage: its layers, two receive
buffers unless it is the first, two send buffers, one input and one output.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from router import Buffers, Cluster, Device, Link, Objective, Problem, Solution, solve

MIB = 1024 * 1024
ITEM_BYTES = 4
KNOWN_FILE = "vit_base_minnowboard_rccve"
KNOWN: dict[tuple[int | float | None, ...], float] = {  # seconds per batch, by (board counts, Mbit/s or None)
    (4, 4, None): 1.548760,
    (2, 2, None): 2.936569,
    (4, 0, None): 3.354294,
    (0, 4, None): 2.666345,
    (1, 0, None): 13.058435,
    (0, 1, None): 10.386390,
    (4, 4, 10): 3.693750,
    (2, 2, 10): 3.693750,
}


def problem_of(profile: Path, boards: Sequence[int], mbps: float | None) -> Problem:
    """The planning problem of a profile file and a number of boards per type, in the file's order of types."""
    data = json.loads(profile.read_text())
    kinds = list(data["device_types"].items())
    devices = [Device("in", computes=False), Device("out", computes=False)]
    speed: dict[str, float] = {}
    seconds: dict[str, list[float]] = {}
    for (kind, facts), count in zip(kinds, boards, strict=True):
        for number in range(count):
            name = f"{kind}-{number}"
            devices.append(Device(name, memory=int(facts["mem_MB"] * MIB)))
            speed[name] = (facts["bw_Mbps"] if mbps is None else mbps) * MIB / 8
            seconds[name] = facts["time_s"]
    links = [Link(a, b, min(speed[a], speed[b])) for a in speed for b in speed if a != b]
    links += [Link("in", name, math.inf) for name in speed] + [Link(name, "out", math.inf) for name in speed]
    items = [data["parameters_in"], *data["parameters_out"]]
    return Problem(
        cluster=Cluster(devices, links),
        source="in",
        sink="out",
        block_seconds=seconds,
        boundary_bytes=[ITEM_BYTES * data["batch_size"] * count for count in items],
        block_memory=[round(size * MIB) for size in data["mem_MB"]],
        buffers=Buffers(receive=2, send=2, input=1, output=1),
    )


def solve_edge(profile: Path, boards: Sequence[int], mbps: float | None = None) -> Solution:
    """The product's plan of least period."""
    return solve(problem_of(profile, boards, mbps), Objective("throughput"))
