"""The main job on one machine: build a network, split it over agents, serve it, and compare with the whole model.

Everything is what a user has: agents as processes, `defer serve` as the dispatcher, `Client` for the requests. The
baseline is ONNX Runtime on the whole model in a process of its own, with as many threads as one agent has.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

import models
from defer.accuracy import Budget, deviation
from defer.baseline import Baseline, whole_model
from defer.client import Client
from defer.documents.plan import Plan
from defer.errors import DeferError, Internal, from_code
from defer.local_agents import LocalAgent, local_agents, read_line, stop
from defer.units import show_count
from node_agent.interpreter import python

SERVE_TIMEOUT_S = 240.0
LATENCY_REQUESTS = 20
"""Requests sent one at a time, for the latency; throughput is taken with a full window."""

CALIBRATION_REQUESTS = 4

Say = Callable[[str], None]
Tensors = dict[str, NDArray[np.generic]]


class StageRow(msgspec.Struct, frozen=True):
    """One stage as the demo shows it; seconds are the plan's prediction, bytes are what it hands on per request."""

    device: str
    blocks: tuple[int, int]
    weight_bytes: int
    seconds: float
    bytes_out: int


class DemoResult(msgspec.Struct, frozen=True):
    """What `defer demo --json` prints; latencies in seconds, rates per second."""

    model: str
    stages: tuple[StageRow, ...]
    requests: int
    max_abs_diff: float
    latency_p50_s: float
    throughput_per_s: float
    single_device_throughput_per_s: float
    ratio: float
    agents: int
    threads_per_agent: int
    cores: int
    predicted_period_s: float
    predicted_latency_s: float
    drawing: str
    plan: str
    seconds: float
    relative_error: float = 0.0
    """‖Δoutput‖₂ / ‖output‖₂ of the worst request."""
    codecs: tuple[str, ...] = ()
    """Of every transfer, from the client to the last stage and back."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What can be chosen: the network, agents, requests, where the files go, how far lossy codecs may go."""

    model: str
    agents: int
    requests: int
    window: int
    threads: int
    output: Path
    budget: Budget | None = None


def run_demo(options: DemoOptions, work: Path, say: Say) -> DemoResult:
    """Run the demo; every process it started has ended when this returns or raises.

    Args:
        options: What to run.
        work: Scratch directory; may be deleted afterwards.
        say: Told what is being done.

    Raises:
        DeferError: Something did not start or did not answer in time.
    """
    started = time.monotonic()
    say(f"building {options.model}")
    model = models.save(options.model, work / f"{options.model}.onnx")
    inputs = [models.example_inputs(options.model, seed=number) for number in range(options.requests)]
    names = [f"box-{number + 1}" for number in range(options.agents)]
    say(f"starting {show_count(options.agents, 'agent')}")
    with local_agents(names, work, threads=options.threads) as agents:
        cluster = _write_cluster(options.output / "cluster.toml", agents)
        say("measuring blocks and links, planning, splitting, deploying")
        calibration = _write_calibration(options, work / "calibration.npz")
        serving = _serving(cluster, model, options, work, calibration, say)
        with serving as address, Client(address) as client:
            say(f"sending {show_count(options.requests, 'request')}")
            latencies = _one_at_a_time(client, inputs[: min(LATENCY_REQUESTS, len(inputs))])
            outputs, throughput = _windowed(client, inputs, options.window)
    say("running the whole model on one device")
    baseline = whole_model(model, inputs, threads=options.threads)
    plan = Plan.load(options.output / "plan.json")
    return _result(options, plan, latencies, outputs, throughput, baseline, time.monotonic() - started)


def _result(
    options: DemoOptions,
    plan: Plan,
    latencies: list[float],
    outputs: list[Tensors],
    throughput: float,
    baseline: Baseline,
    seconds: float,
) -> DemoResult:
    return DemoResult(
        model=options.model,
        stages=tuple(
            StageRow(
                device=stage.device,
                blocks=(stage.start, stage.stop),
                weight_bytes=stage.weight_bytes,
                seconds=stage.seconds,
                bytes_out=transfer.nbytes,
            )
            for stage, transfer in zip(plan.stages, plan.transfers[1:], strict=True)
        ),
        requests=options.requests,
        max_abs_diff=_largest_difference(outputs, baseline.outputs),
        latency_p50_s=float(np.median(latencies)),
        throughput_per_s=throughput,
        single_device_throughput_per_s=baseline.throughput_per_s,
        ratio=throughput / baseline.throughput_per_s,
        agents=options.agents,
        threads_per_agent=options.threads,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        predicted_period_s=plan.period_s,
        predicted_latency_s=plan.latency_s,
        drawing=str(options.output / "plan.svg"),
        plan=str(options.output / "plan.json"),
        seconds=seconds,
        relative_error=max(
            deviation("relative", whole, mine) for whole, mine in zip(baseline.outputs, outputs, strict=True)
        ),
        codecs=tuple(transfer.codec for transfer in plan.transfers),
    )


def _write_calibration(options: DemoOptions, path: Path) -> Path | None:
    """Requests to measure codec errors on, others than those that are sent; None without a budget."""
    if options.budget is None:
        return None
    requests = [
        models.example_inputs(options.model, seed=options.requests + number)
        for number in range(CALIBRATION_REQUESTS)
    ]
    stacked: dict[str, Any] = {name: np.stack([each[name] for each in requests]) for name in requests[0]}
    np.savez(path, **stacked)
    return path


def _write_cluster(path: Path, agents: tuple[LocalAgent, ...]) -> Path:
    lines = ["# Written by `defer demo`.", "[dispatcher]", 'listen = "127.0.0.1:0"', ""]
    for agent in agents:
        lines += ["[[device]]", f'name = "{agent.name}"', f'address = "{agent.address}"', ""]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))
    return path


@contextmanager
def _serving(
    cluster: Path, model: Path, options: DemoOptions, work: Path, calibration: Path | None, say: Say
) -> Iterator[str]:
    """`defer serve` as a process; yields the address that clients use."""
    output = options.output
    command = [*python(), "-m", "defer", "serve", "--cluster", str(cluster), "--model", str(model)]
    command += ["--objective", "throughput", "--state", str(work / "dispatcher"), "--json"]
    command += ["--until-stdin-closes"]
    command += ["--save-plan", str(output / "plan.json"), "--save-profile", str(output / "profile.json")]
    command += ["--plot", str(output / "plan.svg")]
    if calibration is not None:
        command += ["--max-error", str(options.budget), "--calibration", str(calibration)]
    # A cache of its own: what was measured on a busy machine another day is not what this run is compared with.
    environment = {**os.environ, "XDG_CACHE_HOME": str(work / "cache")}
    with (work / "serve.log").open("w") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
            env=environment,
        )
    try:
        yield _wait_ready(process, work / "serve.log", say)
    finally:
        stop([process])


def _wait_ready(process: subprocess.Popen[str], log: Path, say: Say) -> str:
    deadline = time.monotonic() + SERVE_TIMEOUT_S
    while (left := deadline - time.monotonic()) > 0:
        line = read_line(process, left)
        if not line:
            break
        event = json.loads(line)
        if "ready" in event:
            return str(event["ready"])
        say(str(event.get("progress", "")))
    raise _failure(log)


def _failure(log: Path) -> DeferError:
    """The error that `serve --json` wrote as its last line of standard error."""
    lines = log.read_text().strip().splitlines()
    try:
        error = json.loads(lines[-1])["error"]
        return from_code(error["code"], error["message"], error.get("hint", ""))
    except (IndexError, ValueError, KeyError, TypeError):
        return Internal(f"the dispatcher did not become ready: {' '.join(lines[-3:])}")


def _one_at_a_time(client: Client, inputs: list[Tensors]) -> list[float]:
    seconds = []
    for one in inputs:
        begin = time.perf_counter()
        client.infer(one)
        seconds.append(time.perf_counter() - begin)
    return seconds


def _windowed(client: Client, inputs: list[Tensors], window: int) -> tuple[list[Tensors], float]:
    begin = time.perf_counter()
    outputs = list(client.map(inputs, window=window))
    return outputs, len(inputs) / (time.perf_counter() - begin)


def _largest_difference(ours: list[Tensors], theirs: list[Tensors]) -> float:
    differences = [
        np.max(np.abs(np.asarray(mine[name], np.float64) - np.asarray(whole[name], np.float64)), initial=0.0)
        for mine, whole in zip(ours, theirs, strict=True)
        for name in whole
    ]
    return float(np.max(differences))  # a NaN anywhere stays one
