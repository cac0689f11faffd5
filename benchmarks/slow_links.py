"""A network over eight devices with slow links: codecs within an error budget against what can be done without them.

Four pipelines take turns on the same devices and links, the dispatcher's links included: our plan with an error
budget, raw tensors on the very same partitions, our best plan without codecs, and a chain of DEFER's kind. All plans
are made before, from one profile. What no pipeline of these partitions can beat is the slowest stage by itself or the
bytes of the busiest link over its bandwidth, whichever takes longer.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

import models
import partitioner
from benchmarks import defer_style
from benchmarks.chains import alone, load_command, run_load, start_style
from benchmarks.processes import ended, serving
from benchmarks.runner import Options, Outcome, Row, Target
from benchmarks.testbed import Options as BedOptions
from benchmarks.testbed import Testbed, uniform
from defer.baseline import whole_model
from defer.documents.plan import Plan
from defer.errors import DeferError
from defer.parts import write_parts
from defer.units import parse_bandwidth, show_bandwidth

COUNT, SHARE = 8, 0.2
BUDGET = 0.01
"""‖Δoutput‖₂ / ‖output‖₂ that codecs may cause."""

BURST_S = 6.0
"""About how long one turn of one pipeline takes."""

OVER_BEST_RAW = ((12.5e6, 1.6), (2.5e6, 2.2))
"""Promised factor over our best raw plan, by bytes per second of the links."""

CODED, SAME, RAW, STYLE = "within the budget", "raw, same partitions", "best raw plan", "DEFER-style"


def rate(text: str) -> float:
    """Bytes per second of `100mbit`, as tc writes it, or of a bandwidth as cluster files have it."""
    known = text.lower().removesuffix("mbit")
    try:
        return parse_bandwidth(f"{known} Mbit/s" if known != text.lower() else text)
    except DeferError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


@dataclass(frozen=True, slots=True)
class Run:
    """What was measured.

    Attributes:
        rates: Results per second in each turn, by pipeline.
        plans: By pipeline, made before the run.
        alone: Seconds per run of each stage of the coded plan by itself.
        error: ‖Δoutput‖₂ / ‖output‖₂ of the coded pipeline.
    """

    rates: dict[str, list[float]]
    plans: dict[str, Plan]
    alone: list[float]
    error: float


def measure(options: Options, bandwidth: float) -> Outcome:
    """A row per pipeline."""
    rows: list[Row] = []
    targets: list[Target] = []
    for name in options.arguments.models[:1]:
        with options.console.status(f"{name} over links of {show_bandwidth(bandwidth)}"):
            run = _run(name, bandwidth, options.arguments, quick=options.quick)
        coded = median(run.rates[CODED])
        for kind, rates in run.rates.items():
            plan = run.plans.get(kind)
            rows.append(
                {
                    "network": name,
                    "pipeline": kind,
                    "stages": len(plan.stages) if plan else COUNT,
                    "codecs": " ".join(dict.fromkeys(t.codec for t in plan.transfers)) if plan else None,
                    "results/s": median(rates),
                    "coded ÷ it": median(a / b for a, b in zip(run.rates[CODED], rates, strict=False)),
                    "predicted /s": 1 / plan.period_s if plan else None,
                }
            )
        limit = max(*run.alone, max(t.wire_bytes for t in run.plans[CODED].transfers) / bandwidth)
        targets += _targets(run, bandwidth, coded * limit)
    notes = [
        f"{COUNT} devices of {SHARE} core, every link {show_bandwidth(bandwidth)} each way, budget {BUDGET:.0%}",
        "coded ÷ it: median over turns of this pipeline's rate beneath the coded one's",
    ]
    return Outcome(rows, targets, notes)


def _targets(run: Run, bandwidth: float, of_limit: float) -> list[Target]:
    def over(kind: str) -> float:
        return median(a / b for a, b in zip(run.rates[CODED], run.rates[kind], strict=False))

    promised = next((factor for speed, factor in OVER_BEST_RAW if bandwidth == speed), None)
    targets = [Target("over raw on the same partitions", over(SAME), 3.0, "least")]
    if promised is not None:
        targets.append(Target("over our best raw plan", over(RAW), promised, "least"))
    if STYLE in run.rates:
        targets.append(Target("over the DEFER-style chain", over(STYLE), 2.0, "least"))
    targets.append(Target("period over max(slowest stage, bytes ÷ bandwidth)", 1 / of_limit, 1.15, "most"))
    targets.append(Target("error of the output", run.error, BUDGET, "most"))
    return targets


def _run(name: str, bandwidth: float, arguments: argparse.Namespace, *, quick: bool) -> Run:
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="defer-links-")))
        model = models.save(name, work / f"{name}.onnx")
        inputs = models.example_inputs(name)
        np.savez(work / "input.npz", **inputs)  # type: ignore[arg-type]
        spec = uniform(COUNT, cpu=SHARE, bandwidth=bandwidth)
        bed = stack.enter_context(Testbed(spec, BedOptions()))

        def start_on(device: str | None, command: Sequence[str]) -> subprocess.Popen[str]:
            return bed.start(command, device, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

        documents = (arguments.keep or work).absolute()
        documents.mkdir(parents=True, exist_ok=True)
        plans = _plans(bed, model, documents, arguments.blocks)
        chain = partitioner.analyze(model)
        parts = write_parts(model, chain, plans[CODED].cuts, work / "parts")
        by_itself = [
            alone(bed, stage.device, part, 0.5 if quick else 2.0)
            for stage, part in zip(plans[CODED].stages, parts, strict=True)
        ]
        names = {CODED: "coded", SAME: "same", RAW: "raw"}
        more = ["--model", str(model), "--insecure", "--state", str(work / "state"), "--wait", "60"]
        more += [
            "--plan",
            str(documents / "coded.json"),
            "--name",
            "coded",
            "--blocks",
            str(arguments.blocks),
        ]
        ready = stack.enter_context(
            serving(bed.cluster_file, *more, start=lambda command: start_on(None, command), timeout=1200.0)
        )
        for kind in ("same", "raw"):
            deploy = [
                "deploy",
                str(model),
                "--insecure",
                "--name",
                kind,
                "--plan",
                str(documents / f"{kind}.json"),
            ]
            _defer(bed, [*deploy, "--dispatcher", ready["ready"]])
        load = load_command(work / "input.npz", "--output", work, "--window", 2 * COUNT + 2)
        turns = 1 if quick else arguments.pairs
        count = str(max(6, round(BURST_S / plans[RAW].period_s)))
        command = [*load, "--count", count, "--pairs", str(turns), "--defer", ready["ready"]]
        found = run_load([*command, "--names", *names.values()], bed)
        rates = {kind: found[short] for kind, short in names.items()}
        if not arguments.no_style:
            processes: list[subprocess.Popen[str]] = []
            stack.enter_context(ended(processes))
            style = write_parts(model, chain, defer_style.cuts(chain, COUNT), work / "parts")
            devices = [f"box-{number + 1}" for number in range(COUNT)]
            first, last = start_style(bed, devices, style, start_on, processes)
            source = chain.inputs[0].name
            few = [*load, "--count", "8", "--pairs", str(min(turns, 3)), "--style", first, last, source]
            rates[STYLE] = run_load(few, bed)["style"]
        expected = next(iter(whole_model(model, [inputs], threads=1).outputs[0].values()))
        error = float(np.linalg.norm(np.load(work / "coded.npy") - expected) / np.linalg.norm(expected))
        return Run(rates, plans, by_itself, error)


def _plans(bed: Testbed, model: Path, directory: Path, blocks: int) -> dict[str, Plan]:
    """Measure once, then plan with the budget, without codecs, and without codecs on the first one's partitions."""
    profile = directory / "profile.json"
    measured = [
        "profile",
        str(model),
        "--insecure",
        "--cluster",
        str(bed.cluster_file),
        "-o",
        str(profile),
        "--force",
    ]
    _defer(bed, [*measured, "--blocks", str(blocks), "--wait", "60"])

    def plan(kind: str, *more: str) -> Plan:
        target = directory / f"{kind}.json"
        command = ["plan", str(model), "--cluster", str(bed.cluster_file), "--profile", str(profile)]
        command += ["--max-blocks", str(blocks), "--objective", "throughput", "-o", str(target)]
        command.append("--force")
        _defer(bed, [*command, *more])
        return Plan.load(target)

    coded = plan("coded", "--max-error", str(BUDGET))
    placed = ",".join(f"{stage.device}={stage.start}:{stage.stop}" for stage in coded.stages)
    return {
        CODED: coded,
        SAME: plan("same", "--codec", "raw", "--place", placed),
        RAW: plan("raw", "--codec", "raw"),
    }


def _defer(bed: Testbed, arguments: Sequence[str]) -> None:
    done = bed.run([sys.executable, "-m", "defer", *arguments, "--json"], capture=True, timeout=1200.0)
    if done.returncode:
        said = json.loads(done.stdout or "{}").get("error") if done.stdout.startswith("{") else None
        raise SystemExit(f"`defer {arguments[0]}` failed: {said or done.stderr.strip()[-500:]}")
