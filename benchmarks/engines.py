"""Every engine that runs here: the contract suite, and the zoo in two stages through real agents and a dispatcher.

A row counts as a GPU's only if the agents' own status says that the stages ran on that engine; a fallback is shown with
its reason and does not count. `bare` is the same runtime and provider on the whole model in this process, with host
arrays; `device only` is the same with inputs and outputs already on the device, so that their difference is the copies;
`overlap ×` is the rate of the same model with as many requests in flight as the agent keeps, over one after the other.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.markup import escape

from benchmarks.runner import Options, Outcome, Row, Target, main

ROOT = Path(__file__).resolve().parent.parent
GPU = ("tensorrt", "onnxruntime-tensorrt", "onnxruntime-cuda")
REQUESTS = 30
CUTS = 3
"""Ways to cut in two that are tried; the one with the best rate is shown."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's own arguments."""
    parser.add_argument("--models", nargs="*", metavar="NAME", help="only these (default: the whole zoo)")
    parser.add_argument("--engines", nargs="*", metavar="NAME", help="only these (default: all installed)")
    parser.add_argument("--batch", type=int, default=1, help="requests' batch size (default: 1)")


def measure(options: Options) -> Outcome:
    """One row per engine and network, and the contract suite's count."""
    import models
    from node_agent.engines import inventory

    infos = inventory()
    installed = [info for info in infos if not info.missing]
    wanted = options.arguments.engines or [info.name for info in installed]
    names = options.arguments.models or [n for n in models.NAMES if models.describe(n).kind == "zoo"]
    if options.quick and not options.arguments.models:
        names = ["mobilenet_v2"]
    passed, failed, said = contract_suite()
    rows: list[Row] = []
    for engine in wanted:
        for name in names:
            with options.console.status(f"{engine}: {name}"):
                rows += _measure(engine, name, options)
    notes = [f"contract suite: {said}"]
    notes += [f"{info.name}: {info.version}, {info.provider}" for info in installed]
    notes += [f"{info.name} cannot run here: {info.missing}" for info in infos if info.missing]
    counted = sum(row["counts"] == "GPU" for row in rows)
    if not counted:
        notes.append("No GPU engine ran. These rows are the CPU's alone and say nothing about GPUs.")
    targets = [
        Target("tests of the contract suite that failed", failed, 0, "most"),
        Target("tests of the contract suite that passed", passed, 1, "least"),
        Target("rows on CUDA or TensorRT through two agents and the dispatcher", counted, 1, "least"),
    ]
    return Outcome(rows, targets, [escape(note) for note in notes])


def contract_suite() -> tuple[int, int, str]:
    """Passed and failed tests of the contract and of the real libraries, and pytest's last line."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "tests/node_agent/engines/test_contract.py",
            "tests/node_agent/engines/test_real_libraries.py",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    last = (done.stdout.strip().splitlines() or ["pytest said nothing"])[-1]
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error)", last)}
    return counts.get("passed", 0), counts.get("failed", 0) + counts.get("error", 0), last


def _measure(engine: str, name: str, options: Options) -> list[Row]:
    import models

    batch = options.arguments.batch if models.describe(name).free_batch else 1
    feeds = models.example_inputs(name, batch=batch, seed=1)
    requests = 5 if options.quick else REQUESTS
    with tempfile.TemporaryDirectory(prefix="defer-engines-") as folder:
        path = models.save(name, Path(folder) / f"{name}.onnx")
        bare, device_only, provider, expected = _bare(engine, path, feeds, requests)
        overlap = _overlap(engine, path, feeds, requests)
        best = _pipeline(engine, path, feeds, expected, requests, Path(folder), 1 if options.quick else CUTS)
    row: dict[str, Any] = {
        "engine": engine,
        "provider": provider,
        "model": name,
        "batch": batch,
        "bare ms": _ms(bare),
        "device only ms": _ms(device_only),
        "copies ms": _ms(bare - device_only if device_only is not None else None),
        "overlap ×": None if overlap is None else round(overlap, 2),
        **best,
    }
    ran_on = set(re.split(r", |\+", str(best["ran on"])))
    on_gpu = engine in ran_on and ran_on <= set(GPU)
    return [{**row, "counts": "GPU" if on_gpu else "CPU" if engine not in GPU else "no: fell back"}]


def _bare(
    engine: str, path: Path, feeds: dict[str, np.ndarray], requests: int
) -> tuple[float, float | None, str, dict[str, np.ndarray]]:
    """Seconds on host arrays and on device arrays, the session's actual provider, and the outputs."""
    import os

    import onnxruntime

    from node_agent.engines import _make  # the engine itself, without a fallback
    from node_agent.engines.base import Partition
    from node_agent.messages import TensorSpec

    inputs = tuple(TensorSpec(key, value.dtype.name, value.shape) for key, value in feeds.items())
    partition = Partition(path, inputs, (), threads=os.cpu_count() or 1)
    device_only: float | None = None
    session = _make(engine).load(partition)
    try:
        outputs = session.run(feeds)
        bare = _time(lambda: session.run(feeds), requests)
        if hasattr(session, "compute_seconds"):
            device_only = median(session.compute_seconds(feeds, requests))
    finally:
        session.close()
    provider = _make(engine).info().provider
    if engine.startswith("onnxruntime-"):
        wanted = _make(engine).info().provider
        inner = onnxruntime.InferenceSession(str(path), providers=[wanted])
        provider = inner.get_providers()[0]
        if engine in GPU:
            device_only = _on_device(inner, feeds, requests)
    return bare, device_only, provider, outputs


def _overlap(engine: str, path: Path, feeds: dict[str, np.ndarray], requests: int) -> float | None:
    """How many times the rate of single runs a session reaches with its slots in flight; None where it has one."""
    import os

    import partitioner
    from node_agent.engines import _make
    from node_agent.engines.base import Partition, overlapping
    from node_agent.messages import TensorSpec

    chain = partitioner.analyze(path, {key: value.shape for key, value in feeds.items()})
    inputs, outputs = (
        tuple(TensorSpec(spec.name, spec.dtype, tuple(spec.shape)) for spec in specs)
        for specs in (chain.inputs, chain.outputs)
    )
    usual = {key: value.shape for key, value in feeds.items()}
    partition = Partition(path, inputs, outputs, threads=os.cpu_count() or 1, usual=usual)
    loaded = _make(engine).load(partition)
    try:
        session = overlapping(loaded)
        if session is None:
            return None
        loaded.run(feeds)
        begin = time.perf_counter()
        for _ in range(requests):
            loaded.run(feeds)
        one_by_one = time.perf_counter() - begin
        begin = time.perf_counter()
        for number in range(requests):
            if number >= session.slots:
                session.collect()
            session.submit(feeds)
        for _ in range(min(session.slots, requests)):
            session.collect()
        return one_by_one / (time.perf_counter() - begin)
    finally:
        loaded.close()


def _on_device(inner: Any, feeds: dict[str, np.ndarray], requests: int) -> float:
    import onnxruntime

    binding = inner.io_binding()
    for key, array in feeds.items():
        binding.bind_ortvalue_input(key, onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
    for value in inner.get_outputs():
        binding.bind_output(value.name, "cuda")

    def run() -> None:
        inner.run_with_iobinding(binding)
        binding.synchronize_outputs()

    run()
    return _time(run, requests)


def _pipeline(
    engine: str,
    path: Path,
    feeds: dict[str, np.ndarray],
    expected: dict[str, np.ndarray],
    requests: int,
    folder: Path,
    tries: int,
) -> dict[str, Any]:
    """The best of several two-stage deployments on two agents of this machine."""
    import partitioner
    from defer.blocks import planning_chain
    from defer.documents.cluster import loads_cluster
    from defer.local_agents import local_agents
    from defer.planning import make_plan, parse_placement

    shapes = {key: array.shape for key, array in feeds.items()}
    chain = planning_chain(partitioner.analyze(path, shapes), 64, None)
    found: list[dict[str, Any]] = []
    with local_agents(["a", "b"], folder, threads=1) as agents:
        text = '[dispatcher]\nlisten = "127.0.0.1:0"\n[network]\nbandwidth = "10 Gbit/s"\ndelay = "0.05 ms"\n'
        for agent in agents:
            text += f'[[device]]\nname = "{agent.name}"\naddress = "{agent.address}"\nengine = "{engine}"\n'
        cluster = loads_cluster(text)
        for cut in _cuts(chain, tries):
            total = len(chain.blocks)
            placement = parse_placement(f"a=0:{cut},b={cut}:{total}", cluster, total)
            plan = make_plan(chain, cluster, placement=placement)
            state = folder / f"state-{cut}"
            found.append(_deploy(cluster, path, plan, shapes, feeds, expected, requests, state))
    return max(found, key=lambda each: float(each["req/s"]))


def _cuts(chain: Any, tries: int) -> list[int]:
    """Blocks after which to cut: nearest to half of the FLOPs, then a tenth before and after."""
    flops = np.cumsum([block.flops for block in chain.blocks])
    wanted = [0.5, 0.4, 0.6][:tries]
    cuts = [int(np.abs(flops / flops[-1] - share).argmin()) + 1 for share in wanted]
    return sorted({min(max(cut, 1), len(chain.blocks) - 1) for cut in cuts})


def _deploy(
    cluster: Any,
    path: Path,
    plan: Any,
    shapes: dict[str, tuple[int, ...]],
    feeds: dict[str, np.ndarray],
    expected: dict[str, np.ndarray],
    requests: int,
    state: Path,
) -> dict[str, Any]:
    from defer.client import Client
    from defer.dispatcher.bringup import Order
    from defer.dispatcher.daemon import Daemon

    with Daemon(cluster, state) as daemon:
        daemon.connect(30)
        daemon.deployments.bring_up(Order("m", path, plan=plan, shapes=shapes), lambda *_: None)
        with Client(str(daemon.address)) as client:
            got = client.infer(feeds)
            latency = _time(lambda: client.infer(feeds), requests)
            begin = time.perf_counter()
            for _ in client.map([feeds] * requests):
                pass
            rate = requests / (time.perf_counter() - begin)
            stages = client.status().deployments[0].stages
    return {
        "ran on": ", ".join(dict.fromkeys(stage.engine for stage in stages)),
        "stages ms": " + ".join(f"{1000 * stage.run_s:.3g}" for stage in stages),
        "two stages p50 ms": _ms(latency),
        "req/s": round(rate, 2),
        "max diff": float(f"{_difference(got, expected):.2g}"),
        "why not": " ".join(dict.fromkeys(note for stage in stages for note in stage.engine_notes)) or None,
    }


def _difference(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """Largest relative error (L2) of an output against the bare runtime."""
    found = [0.0]
    for name, array in expected.items():
        size = float(np.linalg.norm(array.astype(np.float64).ravel())) or 1.0
        found.append(float(np.linalg.norm((got[name].astype(np.float64) - array).ravel())) / size)
    return max(found)


def _time(run: Any, requests: int) -> float:
    seconds: list[float] = []
    for _ in range(requests):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return median(seconds)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 3)


if __name__ == "__main__":
    main("engines", measure, __doc__, add_arguments=add_arguments)
