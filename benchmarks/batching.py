"""What batching queued requests gains: one model on two agents, requests alone, in batches, in batches that wait.

Four layers of 2048 by 2048: a run reads 67 MB of weights whatever the batch, as small requests of large models do. Three
deployments share the agents' partitions and are loaded in turns by one client with 1, 8 and 32 requests under way. Sizes
and delay are those of --batch and --batch-delay; every result is compared with ONNX Runtime's on the whole model.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from benchmarks.processes import serving
from benchmarks.runner import Options, Outcome, Row, Target, main
from defer.client import Client
from defer.local_agents import local_agents

LAYERS, WIDTH = 4, 2048
WINDOWS = (1, 8, 32)
SYSTEMS = {"alone": (), "batches": ("--batch",), "batches that wait": ("--batch", "--batch-delay")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's own arguments."""
    parser.add_argument("--batch", default="4,8,16", help="sizes (default 4,8,16)")
    parser.add_argument("--batch-delay", default="2ms", help="delay of the third system (default 2ms)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default 5)")


def measure(options: Options) -> Outcome:
    """A row per system and number of requests under way."""
    rounds = 1 if options.quick else options.arguments.rounds
    rates: dict[tuple[str, int], list[float]] = {}
    lasted: dict[tuple[str, int], list[float]] = {}
    sizes: dict[tuple[str, int], float] = {}
    random = np.random.default_rng(1)
    inputs = [random.standard_normal((1, WIDTH)).astype(np.float32) for _ in range(8)]
    with _deployed(options.arguments.batch, options.arguments.batch_delay) as (client, model):
        session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        expected = [session.run(None, {"x": x})[0] for x in inputs]
        del session
        for _ in range(rounds):
            for window in WINDOWS:
                for name in SYSTEMS:
                    with options.console.status(f"{name}, {window} under way"):
                        before = _counted(client, name)
                        seconds, latencies, worst = _load(
                            client, name, inputs, expected, window, 40 + 10 * window
                        )
                        runs, items = (
                            after - then for after, then in zip(_counted(client, name), before, strict=True)
                        )
                    if worst > 1e-3:
                        raise SystemExit(f"a result of {name!r} is off by {worst:.2g}")
                    rates.setdefault((name, window), []).append(len(latencies) / seconds)
                    lasted.setdefault((name, window), []).extend(latencies)
                    sizes[name, window] = items / max(1, runs)
        notes = [
            f"{stage.device}: {note}"
            for deployment in client.status().deployments
            if deployment.model == _key("batches")
            for stage in deployment.stages
            for note in stage.engine_notes
            if "batch" in note
        ]
    rows: list[Row] = [
        {
            "under way": window,
            "requests run": name,
            "requests/s": median(rates[name, window]),
            "p50 ms": float(np.quantile(lasted[name, window], 0.5)) * 1e3,
            "p99 ms": float(np.quantile(lasted[name, window], 0.99)) * 1e3,
            "mean batch": sizes[name, window],
        }
        for window in WINDOWS
        for name in SYSTEMS
    ]

    def over(name: str, window: int) -> float:
        pairs = zip(rates[name, window], rates["alone", window], strict=True)
        return median(one / other for one, other in pairs)

    most = WINDOWS[-1]
    p50 = {name: float(np.quantile(lasted[name, 1], 0.5)) for name in SYSTEMS}
    p99 = {name: float(np.quantile(lasted[name, most], 0.99)) for name in SYSTEMS}
    targets = [
        Target(f"rate of batches over alone, {most} under way", over("batches", most), 1.5, "least"),
        Target(f"p99 of batches over alone, {most} under way", p99["batches"] / p99["alone"], 1.0, "most"),
        Target("p50 of batches over alone, 1 under way", p50["batches"] / p50["alone"], 1.2, "most"),
    ]
    return Outcome(
        rows, targets, [*notes, "every result equals the whole model's within 1e-3 of its largest value"]
    )


def _key(name: str) -> str:
    return name.replace(" ", "-")


def _counted(client: Client, name: str) -> tuple[int, int]:
    """Runs and requests of the first stage so far."""
    (found,) = (each for each in client.status().deployments if each.model == _key(name))
    return found.stages[0].runs, found.stages[0].items


def _load(
    client: Client,
    name: str,
    inputs: Sequence[np.ndarray],
    expected: Sequence[np.ndarray],
    window: int,
    count: int,
) -> tuple[float, list[float], float]:
    """Seconds in all, the latency of each request, and the largest difference as a share of the largest value."""
    room = threading.Semaphore(window)
    latencies: list[float] = []
    differences: list[float] = []

    def ended(begun: float, want: np.ndarray, future: Future[Any]) -> None:
        latencies.append(time.perf_counter() - begun)
        room.release()
        got = future.result()["y"]
        differences.append(float(np.max(np.abs(got - want)) / np.max(np.abs(want))))

    start = time.perf_counter()
    futures = []
    for number in range(count):
        room.acquire()
        x, want = inputs[number % len(inputs)], expected[number % len(inputs)]
        begun = time.perf_counter()
        future = client.submit({"x": x}, model=_key(name), timeout=60)
        future.add_done_callback(partial(ended, begun, want))
        futures.append(future)
    for future in futures:
        future.result()
    seconds = time.perf_counter() - start
    while len(differences) < count:  # who waits for a result may be woken before what it calls
        time.sleep(0.001)
    return seconds, latencies, max(differences)


@contextmanager
def _deployed(batch: str, delay: str) -> Iterator[tuple[Client, Path]]:
    """Two agents and a dispatcher that serves the three systems; a client, and the model's file."""
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="defer-batching-")))
        agents = stack.enter_context(local_agents(["box-1", "box-2"], work))
        lines = ['[dispatcher]\nlisten = "127.0.0.1:0"\n[network]\nbandwidth = "1 Gbit/s"\ndelay = "0.1 ms"']
        lines += [
            f'[[device]]\nname = "{agent.name}"\naddress = "{agent.address}"\nspeed = "10 GFLOP/s"'
            for agent in agents
        ]
        cluster = work / "cluster.toml"
        cluster.write_text("\n".join(lines))
        model = _save(work / "layers.onnx")
        plan = work / "plan.json"
        _run(
            "plan",
            str(model),
            "--cluster",
            str(cluster),
            "--pin",
            "0:4=box-1",
            "--pin",
            "4:=box-2",
            "-o",
            str(plan),
        )
        ready = stack.enter_context(serving(cluster, "--state", str(work / "state")))
        given = {"--batch": batch, "--batch-delay": delay}
        for name, options in SYSTEMS.items():
            more = [word for option in options for word in (option, given[option])]
            where = ("--dispatcher", ready["ready"], "--plan", str(plan))
            _run("deploy", str(model), "--name", _key(name), *where, *more)
        yield stack.enter_context(Client(ready["ready"])), model


def _run(*words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "defer", *words], capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode:
        raise SystemExit(f"defer {words[0]} failed: {done.stderr.strip()}")


def _save(path: Path) -> Path:
    random = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for layer in range(LAYERS):
        array = random.standard_normal((WIDTH, WIDTH)).astype(np.float32) * np.sqrt(2 / WIDTH)
        weights.append(numpy_helper.from_array(array.astype(np.float32), f"w{layer}"))
        into = "y" if layer == LAYERS - 1 else f"r{layer}"
        nodes.append(helper.make_node("MatMul", [last, f"w{layer}"], [f"m{layer}"]))
        nodes.append(helper.make_node("Relu", [f"m{layer}"], [into]))
        last = into
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", WIDTH])],
        initializer=weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


if __name__ == "__main__":
    main("batching", measure, __doc__, add_arguments=add_arguments)
