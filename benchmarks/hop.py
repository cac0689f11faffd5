"""What a hop costs: four stages that compute nothing, through dispatcher and agents, against bare pyzmq and Ray Serve.

Ours is all that a user has: client, dispatcher, four agents, deadlines, credits, replay. The bare chain is a driver
and four processes that hand messages on (`benchmarks.bare`). Both are measured in turns by one process. Ray Serve is a
chain of four composed deployments in an environment of its own below .cache, installed by pip where it is not there
(--no-ray leaves it out).
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
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks import bare, chain_model
from benchmarks.processes import ended, free_port, serving, start_bare
from benchmarks.runner import Options, Outcome, Row, Target, main
from defer.client import Client
from defer.local_agents import local_agents

STAGES = 4
WINDOW = 8
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


def measure(options: Options) -> Outcome:
    """A row per size and system."""
    rows: list[Row] = []
    targets: list[Target] = []
    rounds = 1 if options.quick else options.arguments.rounds
    for name in options.arguments.sizes:
        with options.console.status(f"{name}: bare and ours"):
            ours, theirs = _pair(SIZES[name], rounds)
        latency = median(ours["p50"])
        over = median(a / b for a, b in zip(ours["p50"], theirs["p50"], strict=True))
        share = median(a / b for a, b in zip(ours["rate"], theirs["rate"], strict=True))
        for system, found in (("bare pyzmq", theirs), ("defer", ours)):
            rows.append(_row(name, system, median(found["p50"]), median(found["rate"])))
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


def _row(size: str, system: str, latency: float, rate: float) -> Row:
    return {"tensor": size, "system": system, "p50 ms": latency * 1e3, "requests/s": rate}


def _pair(nbytes: int, rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """p50 and rate of ours and of the bare chain, a value per round."""
    array = np.random.default_rng(0).standard_normal((1, nbytes // 4)).astype(np.float32)
    inputs = {"t0": array}
    singles, many = (1000, 4000) if nbytes < 1 << 18 else (200, 400)
    found: list[dict[str, list[float]]] = [{"p50": [], "rate": []}, {"p50": [], "rate": []}]
    with our_chain(nbytes) as client, bare_chain() as pipeline:

        def ours(count: int) -> None:
            for _ in client.map((inputs for _ in range(count)), window=WINDOW, ordered=False):
                pass

        systems: list[tuple[Callable[[], object], Callable[[int], object]]] = [
            (lambda: client.infer(inputs), ours),
            (lambda: pipeline.infer(inputs), lambda count: pipeline.run([inputs] * count, WINDOW)),
        ]
        for one, several in systems:
            assert np.array_equal(next(iter(one().values())), array)  # type: ignore[attr-defined]
            several(many // 4)
        for _ in range(rounds):
            for kept, (one, several) in zip(found, systems, strict=True):
                kept["p50"].append(_p50(one, singles))
                begin = time.perf_counter()
                several(many)
                kept["rate"].append(many / (time.perf_counter() - begin))
    return found[0], found[1]


def _p50(one: Callable[[], object], count: int) -> float:
    seconds = []
    for _ in range(count):
        begin = time.perf_counter()
        one()
        seconds.append(time.perf_counter() - begin)
    return median(seconds)


@contextmanager
def our_chain(nbytes: int) -> Iterator[Client]:
    """Four agents and a dispatcher as processes, and a client of them."""
    import partitioner
    from defer.documents.cluster import Cluster
    from defer.planning import make_plan, parse_placement

    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="defer-hop-")))
        names = [f"box-{number + 1}" for number in range(STAGES)]
        agents = stack.enter_context(local_agents(names, work))
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
        arguments = ("--model", str(model), "--plan", str(work / "plan.json"), "--state", str(work / "state"))
        ready = stack.enter_context(serving(file, *arguments))
        yield stack.enter_context(Client(ready["ready"]))


@contextmanager
def bare_chain() -> Iterator[bare.Pipeline]:
    """Four stages of the bare pipeline as processes, and both ends of it."""
    endpoints = [f"tcp://127.0.0.1:{free_port()}" for _ in range(STAGES + 1)]
    with ended(start_bare(endpoints)):
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
