"""What a hop costs: four stages that compute nothing, through dispatcher and agents, against bare pyzmq and Ray Serve.

Ours is all that a user has: dispatcher, four agents, deadlines, credits, replay. The dispatcher is in the process that
asks (`defer.Dispatcher`), as the bare chain's driver is; once more it is a process of its own, which a client
dials: two transfers more. A thread asks, as in a server that has the dispatcher in it; once more the main thread does,
for which the dispatcher's own thread has to wake (docs/client.md). The bare chain is a driver and four processes that
hand messages on (`benchmarks.bare`). All are measured in turns by one process. Ray Serve is a chain of four composed
deployments in an environment of its own below .cache, installed by pip where it is not there (--no-ray leaves it out).

With --processor nothing is timed: it prints what an item costs each process in processor time, waits and page faults,
which other work on the machine changes less.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import bare, chain_model, nothing
from benchmarks.burden import Burden, per_item
from benchmarks.ports import free_ports
from benchmarks.processes import ended, serving, start_bare
from benchmarks.runner import Options, Outcome, Row, Target, main
from defer.client import Client
from defer.dispatcher.shell import COMPANY_S
from defer.in_process import Dispatcher
from defer.local_agents import local_agents
from node_agent.machine import settle_collector

STAGES = 4
WINDOW = 8
MAIN = "defer, asked by the main thread"
SIZES = {"4 KiB": 4 << 10, "1 MiB": 1 << 20}
ROOT = Path(__file__).resolve().parent.parent
RAY = ROOT / ".cache" / "ray-venv"

LIMITS = {"4 KiB": (2.0, 0.35, 20.0), "1 MiB": (1.4, 0.75, 12.0)}
"""Per size: p50 over the bare chain's at most, rate over its rate at least, Ray Serve's p50 over ours at least."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's own arguments."""
    parser.add_argument("--no-ray", action="store_true", help="leave Ray Serve out")
    parser.add_argument("--sizes", nargs="*", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=7, help="turns of each (default 7)")
    parser.add_argument(
        "--processor", action="store_true", help="what an item costs each process, in place of times"
    )


def measure(options: Options) -> Outcome:
    """A row per size and system."""
    if options.arguments.processor:
        return _processor(options)
    rows: list[Row] = []
    targets: list[Target] = []
    rounds = 1 if options.quick else options.arguments.rounds
    for name in options.arguments.sizes:
        with options.console.status(f"{name}: bare and ours"):
            found = _turns(SIZES[name], rounds)
        ours, theirs = found["defer"], found["bare pyzmq"]
        latency = median(ours["p50"])
        ratios: dict[str, tuple[float, float]] = {}
        for system, each in found.items():
            over = median(a / b for a, b in zip(each["p50"], theirs["p50"], strict=True))
            share = median(a / b for a, b in zip(each["rate"], theirs["rate"], strict=True))
            ratios[system] = over, share
            rows.append(_row(name, system, median(each["p50"]), median(each["rate"]), over, share))
        over, share = ratios["defer"]
        most, least, ray_least = LIMITS[name]
        targets += [
            Target(f"{name}: p50 over bare pyzmq's", over, most, "most"),
            Target(f"{name}: rate over bare pyzmq's", share, least, "least"),
        ]
        if not (options.arguments.no_ray or options.quick):
            with options.console.status(f"{name}: Ray Serve"):
                ray = _ray(SIZES[name])
            rows.append(_row(name, "Ray Serve", ray["p50"], ray["rate"]))
            targets.append(
                Target(f"{name}: Ray Serve's p50 over ours", ray["p50"] / latency, ray_least, "least")
            )
    return Outcome(
        rows,
        targets,
        [
            "p50 with one request under way, rate with eight; ratios are medians over turns taken one after the other"
        ],
    )


def _row(
    size: str, system: str, latency: float, rate: float, over: float | None = None, share: float | None = None
) -> Row:
    return {
        "tensor": size,
        "system": system,
        "p50 ms": latency * 1e3,
        "requests/s": rate,
        "p50 ÷ bare": over,
        "rate ÷ bare": share,
    }


def _turns(nbytes: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """p50 and rate of each system, a value per round."""
    array = np.random.default_rng(0).standard_normal((1, nbytes // 4)).astype(np.float32)
    inputs = {"t0": array}
    singles, many = (1000, 4000) if nbytes < 1 << 18 else (200, 400)
    found: dict[str, dict[str, list[float]]] = {}
    with (
        ThreadPoolExecutor(1) as thread,
        our_chain(nbytes, inside=True) as inside,
        our_chain(nbytes) as client,
        bare_chain() as pipeline,
    ):
        ours, bare_one = _systems(inside, pipeline, inputs)
        systems = {
            "bare pyzmq": bare_one,
            "defer": ours,
            MAIN: ours,
            "defer, a process of its own": _systems(client, pipeline, inputs)[0],
        }
        for one, several in systems.values():
            assert np.array_equal(next(iter(one().values())), array)  # type: ignore[attr-defined]
            several(many // 4)
        time.sleep(COMPANY_S)  # the agents have just greeted
        for _ in range(rounds):
            for system, (one, several) in systems.items():
                kept = found.setdefault(system, {"p50": [], "rate": []})
                measured = partial(_p50, one, singles)
                kept["p50"].append(measured() if system == MAIN else thread.submit(measured).result())
                begin = time.perf_counter()
                several(many)
                kept["rate"].append(many / (time.perf_counter() - begin))
    return found


System = tuple[Callable[[], object], Callable[[int], object]]
"""Moves one item, and so many with `WINDOW` under way."""


def _systems(client: Client, pipeline: bare.Pipeline, inputs: dict[str, Any]) -> tuple[System, System]:
    def ours(count: int) -> None:
        for _ in client.map((inputs for _ in range(count)), window=WINDOW, ordered=False):
            pass

    return (
        (lambda: client.infer(inputs), ours),
        (lambda: pipeline.infer(inputs), lambda count: pipeline.run([inputs] * count, WINDOW)),
    )


def _processor(options: Options) -> Outcome:
    """A row per size, number under way and process; the median of the rounds."""
    rows: list[Row] = []
    rounds = 1 if options.quick else options.arguments.rounds
    for name in options.arguments.sizes:
        inputs = {"t0": np.zeros((1, SIZES[name] // 4), np.float32)}
        count = 2000 if SIZES[name] < 1 << 18 else 200
        ours: dict[str, int] = {"client": os.getpid()}
        theirs: dict[str, int] = {"both ends": os.getpid()}
        with our_chain(SIZES[name], ours) as client, bare_chain(theirs) as pipeline:
            systems = _systems(client, pipeline, inputs)
            for several in (1, WINDOW):
                turns: dict[tuple[str, str], list[Burden]] = {}
                for turn in range(rounds + 1):
                    for system, processes, (one, many) in zip(
                        ("defer", "bare pyzmq"), (ours, theirs), systems, strict=True
                    ):
                        work = partial(_again, one, count) if several == 1 else partial(many, count)
                        found = per_item(work, count, processes)
                        for process, burden in found.items() if turn else ():  # the first warms up
                            turns.setdefault((system, process), []).append(burden)
                rows += _burdens(name, several, turns)
    return Outcome(rows, (), ["per item, medians over turns; waits: a thread gave the processor up"])


def _burdens(size: str, several: int, turns: dict[tuple[str, str], list[Burden]]) -> list[Row]:
    totals: dict[str, list[float]] = {}
    rows: list[Row] = []
    for (system, process), burdens in turns.items():
        figures = [
            median(burden.seconds for burden in burdens) * 1e3,
            median(burden.waits for burden in burdens),
            median(burden.faults for burden in burdens),
        ]
        totals[system] = [a + b for a, b in zip(figures, totals.get(system, [0.0] * 3), strict=True)]
        rows.append(_burden_row(size, several, system, process, figures))
    rows += [_burden_row(size, several, system, "all", figures) for system, figures in totals.items()]
    return rows


def _burden_row(size: str, several: int, system: str, process: str, figures: Sequence[float]) -> Row:
    return {
        "tensor": size,
        "under way": several,
        "system": system,
        "process": process,
        "processor ms": round(figures[0], 4),
        "waits": round(figures[1], 2),
        "page faults": round(figures[2], 2),
    }


def _again(one: Callable[[], object], count: int) -> None:
    for _ in range(count):
        one()


def _p50(one: Callable[[], object], count: int) -> float:
    seconds = []
    for _ in range(count):
        begin = time.perf_counter()
        one()
        seconds.append(time.perf_counter() - begin)
    return median(seconds)


@contextmanager
def our_chain(
    nbytes: int, processes: dict[str, int] | None = None, *, inside: bool = False
) -> Iterator[Client]:
    """Four agents and a dispatcher as processes, whose ids are put into `processes`, and a client of them.

    With `inside` the dispatcher is this process's.
    """
    import partitioner
    from defer.documents.cluster import Cluster
    from defer.planning import make_plan, parse_placement

    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="defer-hop-")))
        names = [f"box-{number + 1}" for number in range(STAGES)]
        with nothing.installed(work / "engine"):
            engine = dict.fromkeys(names, ("--engine", nothing.NAME))
            agents = stack.enter_context(local_agents(names, work, arguments=engine))
        lines = [
            "[dispatcher]",
            'listen = "127.0.0.1:0"',
            "[network]",
            'bandwidth = "1 Gbit/s"',
            'delay = "0.1 ms"',
        ]
        for agent in agents:
            lines += [
                "[[device]]",
                f'name = "{agent.name}"',
                f'address = "{agent.address}"',
                'speed = "10 GFLOP/s"',
            ]
        file = work / "cluster.toml"
        file.write_text("\n".join(lines))
        model = chain_model.save(work / "nothing.onnx", STAGES, nbytes)
        cluster = Cluster.load(file)
        by_hand = ",".join(f"{name}={number}:{number + 1}" for number, name in enumerate(names))
        plan = make_plan(
            partitioner.analyze(model), cluster, placement=parse_placement(by_hand, cluster, STAGES)
        )
        plan.save(work / "plan.json")
        if inside:
            dispatcher = stack.enter_context(Dispatcher(cluster))
            dispatcher.deploy(model, plan=plan)
            settle_collector()  # as `defer serve` and every agent do
            yield stack.enter_context(dispatcher.client())
            return
        arguments = ("--model", str(model), "--plan", str(work / "plan.json"), "--state", str(work / "state"))
        ready = stack.enter_context(serving(file, *arguments))
        if processes is not None:
            processes.update(
                {"dispatcher": ready["pid"], **{agent.name: agent.process.pid for agent in agents}}
            )
        yield stack.enter_context(Client(ready["ready"]))


@contextmanager
def bare_chain(processes: dict[str, int] | None = None) -> Iterator[bare.Pipeline]:
    """Four stages of the bare pipeline as processes, whose ids are put into `processes`, and both ends of it."""
    first = free_ports(STAGES + 1)
    endpoints = [f"tcp://127.0.0.1:{port}" for port in range(first, first + STAGES + 1)]
    with ended(stages := start_bare(endpoints)):
        if processes is not None:
            processes.update({f"stage {number + 1}": stage.pid for number, stage in enumerate(stages)})
        pipeline = bare.Pipeline(endpoints[0], endpoints[-1])
        try:
            yield pipeline
        finally:
            pipeline.close()


def _ray(nbytes: int) -> dict[str, float]:
    """p50 and rate of Ray Serve, in its own environment."""
    if not (RAY / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(RAY)], check=True)
    python = str(RAY / "bin" / "python")
    if subprocess.run([python, "-c", "import ray.serve, numpy"], check=False, capture_output=True).returncode:
        subprocess.run([python, "-m", "pip", "install", "-q", "ray[serve]", "numpy"], check=True)
    script = Path(__file__).with_name("ray_chain.py")
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
    done = subprocess.run(
        [python, str(script), str(nbytes), str(STAGES), str(WINDOW)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"Ray Serve failed: {' '.join(done.stderr.strip().splitlines()[-3:])}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


__all__: Sequence[str] = ("measure",)

if __name__ == "__main__":
    main("hop", measure, __doc__, add_arguments=add_arguments)
