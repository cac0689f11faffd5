"""Resident memory: of an agent beside the weights that it holds and over 10,000 requests, of the dispatcher by model.

Agents hold whole networks on loopback and serve requests; what they take is compared with their weights. As root, each
network is loaded once more in a box of the testbed that has no more memory than that: loading takes more than serving.
What heap it takes for a moment is measured as well, with plenty of memory and as if there were none.
Then 10,000 items of 256 KiB, which travel without copies, pass an agent. The dispatcher is looked at when it is
ready and after requests, once with a network of 14 MB and once with one of half a gigabyte.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import models
import partitioner
from benchmarks import chain_model, loading
from benchmarks.chains import load_command, run_load
from benchmarks.processes import serving
from benchmarks.runner import Options, Outcome, Row, Target, main
from benchmarks.testbed import Options as BedOptions
from benchmarks.testbed import Testbed, uniform
from defer.client import Client
from defer.documents.cluster import Cluster
from defer.local_agents import local_agents
from defer.parts import write_parts
from defer.planning import make_plan, parse_placement

MIB = 1 << 20
REQUESTS = 10_000
GROWTH_MIB = 8.0
"""What counts as flat: pages that an allocator had not touched before, no byte per request."""
READY_S = 120.0
"""A disk that writes 10 MB/s keeps up with this."""
SMALL, LARGE = "mobilenet_v2", "vgg16"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's own arguments."""
    parser.add_argument("--models", nargs="*", choices=models.NAMES, default=[SMALL, "resnet50", LARGE])


@dataclass(frozen=True, slots=True)
class Served:
    """A model that one agent runs."""

    client: Client
    agent: int
    dispatcher: int


def measure(options: Options) -> Outcome:
    """A row per network, and one for many requests."""
    rows: list[Row] = []
    targets: list[Target] = []
    dispatchers: dict[str, float] = {}
    names = options.arguments.models if not options.quick else [SMALL]
    for name in names:
        with options.console.status(name), tempfile.TemporaryDirectory(prefix="defer-memory-") as directory:
            work = Path(directory)
            path = models.save(name, work / f"{name}.onnx")
            with served(path, work) as system:
                idle = rss_mib(system.agent)
                for one in [models.example_inputs(name)] * 20:
                    system.client.infer(one, timeout=300)
                agent, dispatcher = rss_mib(system.agent), rss_mib(system.dispatcher)
            chain = partitioner.analyze(path)
            weights = chain.weight_bytes / MIB
            (whole,) = write_parts(path, chain, (), work / "parts")
            usual, frugal = (
                loading.taken(whole.files[whole.part.graph], free) for free in (loading.PLENTY, 0)
            )
            most = weights * 1.3 + 120
            seconds = None if options.quick or os.geteuid() else in_a_box(path, work, int(most * MIB))
            dispatchers[name] = dispatcher
            rows.append(
                {
                    "serves": name,
                    "requests": 20,
                    "weights MiB": weights,
                    "agent, ready MiB": idle,
                    "agent MiB": agent,
                    "agent at most MiB": most,
                    "ready in a box of that s": seconds,
                    "loading, × weights": usual[0] / MIB / weights,
                    "with little free": frugal[0] / MIB / weights,
                    "loading, s of CPU": usual[1],
                    "with little free, s": frugal[1],
                    "dispatcher MiB": dispatcher,
                }
            )
            targets.append(Target(f"{name}: agent, MiB", agent, most, "most"))
            if not (options.quick or os.geteuid()):
                targets.append(
                    Target(f"{name}: ready in a box of {most:.0f} MiB, s", seconds, READY_S, "most")
                )
    if SMALL in dispatchers and LARGE in dispatchers:
        growth = dispatchers[LARGE] - dispatchers[SMALL]
        targets.append(Target(f"dispatcher: {LARGE} over {SMALL}, MiB", growth, 32.0, "most"))
    count = REQUESTS // 20 if options.quick else REQUESTS
    with options.console.status(f"{count} requests"):
        row = _many(count)
    rows.append(row)
    targets.append(
        Target(f"agent: growth over {count} requests, MiB", float(row["growth MiB"] or 0), GROWTH_MIB, "most")
    )
    return Outcome(rows, targets)


def _many(count: int) -> Row:
    with tempfile.TemporaryDirectory(prefix="defer-memory-") as directory:
        work = Path(directory)
        inputs = {"t0": np.zeros((1, 64 << 10), np.float32)}
        with served(chain_model.save(work / "nothing.onnx", 1, 256 << 10), work) as system:

            def run(requests: int) -> None:
                for _ in system.client.map((inputs for _ in range(requests)), window=8, ordered=False):
                    pass

            run(count // 10)
            before, dispatcher = rss_mib(system.agent), rss_mib(system.dispatcher)
            run(count)
            after = rss_mib(system.agent)
            return {
                "serves": "an op that computes nothing, 256 KiB",
                "requests": count,
                "agent, ready MiB": before,
                "agent MiB": after,
                "growth MiB": after - before,
                "dispatcher MiB": rss_mib(system.dispatcher),
                "dispatcher growth MiB": rss_mib(system.dispatcher) - dispatcher,
            }


def in_a_box(model: Path, work: Path, memory: int) -> float | None:
    """Seconds until a box of that many bytes serves a model, and it has answered; None where it does not."""
    with ExitStack() as stack:
        bed = stack.enter_context(Testbed(uniform(1, memory=memory), BedOptions()))
        plan = whole_on("box-1", model, bed.cluster_file, work / "boxed.json")
        np.savez(work / "input.npz", **models.example_inputs(model.stem))  # type: ignore[arg-type]

        def start(command: Sequence[str]) -> subprocess.Popen[str]:
            return bed.start(command, None, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

        arguments = ["--model", str(model), "--plan", str(plan), "--state", str(work / "boxed")]
        begun = time.perf_counter()
        try:
            more = (*arguments, "--insecure", "--wait", "60", "--standby", "none")
            ready = stack.enter_context(serving(bed.cluster_file, *more, start=start))
            seconds = time.perf_counter() - begun
            load = load_command(work / "input.npz", "--count", 16, "--window", 4, "--pairs", 1)
            run_load([*load, "--defer", ready["ready"]], bed)
        except SystemExit:
            return None
        return seconds


def whole_on(device: str, model: Path, cluster_file: Path, into: Path) -> Path:
    """Writes the plan that has all of a model on one device."""
    chain, cluster = partitioner.analyze(model), Cluster.load(cluster_file)
    blocks = len(chain.blocks)
    make_plan(chain, cluster, placement=parse_placement(f"{device}=0:{blocks}", cluster, blocks)).save(into)
    return into


@contextmanager
def served(model: Path, work: Path) -> Iterator[Served]:
    """A model on one agent, as processes of their own."""
    with ExitStack() as stack:
        (agent,) = stack.enter_context(local_agents(["box"], work))
        file = work / "cluster.toml"
        file.write_text(
            '[dispatcher]\nlisten = "127.0.0.1:0"\n[[device]]\nname = "box"\n'
            f'address = "{agent.address}"\nspeed = "10 GFLOP/s"\n'
        )
        plan = whole_on("box", model, file, work / "plan.json")
        arguments = ("--model", str(model), "--plan", str(plan), "--state", str(work / "state"))
        ready = stack.enter_context(serving(file, *arguments))
        client = stack.enter_context(Client(ready["ready"]))
        yield Served(client, agent.process.pid, int(ready["pid"]))


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in text.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main("memory", measure, __doc__, add_arguments=add_arguments)
