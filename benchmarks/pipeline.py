"""Networks over 1, 2, 4 and 8 devices of a fifth of a core, against one device and against bare pyzmq.

Everything is in one run: ours (dispatcher, agents, credits, replay) and a bare pyzmq chain on the very same
partitions and devices take turns; a chain of DEFER's kind follows on the same devices. One device is the same
system with one stage. `alone` is each stage's partition run by itself on its device: the slowest one bounds any
pipeline of these partitions. `each whole` is the whole model on every device at once, each by itself, nothing sent:
what the devices can do together, since they share the caches and cores of one machine. `predicted` is the period in
the plan.json that was written before the run. `shared` is what the devices come to where several may share a stage's
requests (--replicas) and none may hold the whole model. Needs root, see docs/testbed.md.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

import models
import partitioner
from benchmarks import defer_style, slow_links
from benchmarks.chains import alone, load_command, run_load, start_bare, start_style
from benchmarks.processes import ended, serving
from benchmarks.runner import Options, Outcome, Row, Target, main
from benchmarks.testbed import Options as BedOptions
from benchmarks.testbed import Testbed, uniform
from benchmarks.with_keys import rates_with_keys
from benchmarks.with_replicas import MEMORY, shared
from defer.baseline import whole_model
from defer.documents.plan import Plan
from defer.parts import write_parts

SHARE = 0.2
NETWORKS = ("resnet50", "vgg16", "vgg19")
DEVICES = (1, 2, 4, 8)
BURST_S = 4.0
"""About how long one turn of one pipeline takes."""
ALONE_S = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's own arguments."""
    parser.add_argument("--models", nargs="*", choices=models.NAMES, default=list(NETWORKS))
    parser.add_argument("--devices", nargs="*", type=int, default=list(DEVICES))
    parser.add_argument(
        "--pairs", type=int, default=5, help="turns of ours and of the bare chain (default 5)"
    )
    parser.add_argument("--blocks", type=int, default=64, help="blocks to measure and plan with (default 64)")
    parser.add_argument("--no-keys", action="store_true", help="leave out the same pipeline with keys")
    parser.add_argument("--no-replicas", action="store_true", help="leave out stages that several share")
    parser.add_argument("--no-style", action="store_true", help="leave the chain of DEFER's kind out")
    parser.add_argument(
        "--links",
        type=slow_links.rate,
        metavar="RATE",
        help="every link that slow, as 100mbit: codecs against raw",
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep plans and profiles there")


@dataclass(frozen=True, slots=True)
class Run:
    """One network on one number of devices.

    Attributes:
        rates: Results per second in each turn, by pipeline.
        alone: Seconds per run of each stage by itself.
        each_whole: Runs of the whole model per second, all devices together, each by itself.
        plan: What was planned before.
        difference: Largest difference from the whole model's outputs, relative to their largest.
        shared: What was planned where several devices may share a stage's requests.
    """

    rates: dict[str, list[float]]
    alone: list[float]
    each_whole: float
    plan: Plan
    difference: float
    shared: Plan | None = None


def measure(options: Options) -> Outcome:
    """A row per network and number of devices, or, with slow links, per kind of plan."""
    arguments = options.arguments
    if arguments.links:
        return slow_links.measure(options, arguments.links)
    names, counts = arguments.models, arguments.devices
    if options.quick:
        names, counts = names[:1], [n for n in counts if n in (1, 2)]
    rows: list[Row] = []
    targets: list[Target] = []
    for name in names:
        single = 0.0
        for count in counts:
            with options.console.status(f"{name} on {count}"):
                run = _run(name, count, arguments, quick=options.quick)
            ours = median(run.rates["defer"])
            single = ours if count == 1 else single
            rows.append(_row(name, count, run, single))
            targets += _targets(name, count, run, single)
    notes = [
        f"each device has {SHARE} of a core (CFS period 10 ms); rates are results/s, medians over turns",
        "with keys: the same plan, every connection encrypted (CURVE), afterwards",
        f"shared (ResNet-50): --replicas, where no agent takes more than {MEMORY} of the model's bytes",
        f"DEFER-style: its cuts, {defer_style.CODEC} on squeezed shapes, one thread per node computes and sends",
    ]
    return Outcome(rows, targets, notes)


def _row(name: str, count: int, run: Run, single: float) -> Row:
    ours, bare = median(run.rates["defer"]), median(run.rates["bare"])
    style, keyed, parted = (run.rates.get(kind) for kind in ("style", "keys", "shared"))
    return {
        "network": name,
        "devices": count,
        "stages": len(run.plan.stages),
        "ours /s": ours,
        "× one": ours / single if single else None,
        "bare /s": bare,
        "ours ÷ bare": _pairs(run),
        "alone allows /s": 1 / max(run.alone),
        "of that": ours * max(run.alone),
        "each whole /s": run.each_whole,
        "of each whole": ours / run.each_whole,
        "shared /s": median(parted) if parted else None,
        "shared, × one": median(parted) / single if parted and single else None,
        "shared, predicted /s": 1 / run.shared.period_s if run.shared else None,
        "with keys /s": median(keyed) if keyed else None,
        "DEFER-style /s": median(style) if style else None,
        "predicted /s": 1 / run.plan.period_s,
        "difference": run.difference,
    }


def _pairs(run: Run) -> float:
    return median(a / b for a, b in zip(run.rates["defer"], run.rates["bare"], strict=True))


def _targets(name: str, count: int, run: Run, single: float) -> list[Target]:
    ours = median(run.rates["defer"])
    where = f"{name} on {count}"
    targets = [
        Target(f"{where}: of what the slowest stage alone allows", ours * max(run.alone), 0.85, "least"),
        Target(f"{where}: over bare pyzmq on the same partitions", _pairs(run), 0.97, "least"),
        Target(f"{where}: predicted period off by", abs(run.plan.period_s * ours - 1), 0.10, "most"),
        Target(f"{where}: difference from the whole model", run.difference, 1e-4, "most"),
    ]
    if name == "resnet50" and count == 8 and single:
        targets.insert(0, Target("resnet50: a chain of 8 devices over one", ours / single, 6.2, "least"))
        if "shared" in run.rates:
            times = median(run.rates["shared"]) / single
            targets.insert(0, Target("resnet50: 8 devices that share stages over one", times, 6.2, "least"))
    return targets


def _run(name: str, count: int, arguments: argparse.Namespace, *, quick: bool) -> Run:
    with tempfile.TemporaryDirectory(prefix="defer-pipeline-") as folder:
        run, load = _plain(name, count, arguments, Path(folder), quick=quick)
        model, plan = Path(folder, f"{name}.onnx"), Path(folder, "plan.json")
        # Two, of which none may hold it all, have nothing to share; nor has VGG, with most of its weights in one op.
        if name == "resnet50" and count > 2 and not arguments.no_replicas:
            parted = Path(folder, "shared")
            parted.mkdir()
            turns = [*load, "--pairs", str(1 if quick else min(arguments.pairs, 5))]
            profile = Path(folder, "profile.json")
            rates, parted_plan = shared(count, SHARE, model, profile, turns, parted)
            run = replace(run, rates={**run.rates, "shared": rates}, shared=parted_plan)
            _check("shared", np.load(parted / "defer.npy"), np.load(Path(folder, "defer.npy")))
        if not arguments.no_keys:
            turns = [*load, "--pairs", str(1 if quick else min(arguments.pairs, 3))]
            keyed = Path(folder, "keyed")
            keyed.mkdir()
            run.rates["keys"] = rates_with_keys(uniform(count, cpu=SHARE), model, plan, turns, keyed)
        return run


def _check(kind: str, found: np.ndarray, expected: np.ndarray) -> None:
    if not np.allclose(found, expected, rtol=1e-2, atol=1e-3):
        raise SystemExit(f"the results of {kind} are not the whole model's")


def _plain(
    name: str, count: int, arguments: argparse.Namespace, work: Path, *, quick: bool
) -> tuple[Run, list[str]]:
    """Without keys, beside the other chains; and how it was loaded."""
    with ExitStack() as stack:
        model = models.save(name, work / f"{name}.onnx")
        chain = partitioner.analyze(model)
        inputs = models.example_inputs(name)
        np.savez(work / "input.npz", **inputs)  # type: ignore[arg-type]
        bed = stack.enter_context(Testbed(uniform(count, cpu=SHARE), BedOptions()))
        devices = [f"box-{number + 1}" for number in range(count)]

        def start_on(device: str | None, command: Sequence[str]) -> subprocess.Popen[str]:
            # What was measured in another hour, on a machine that others share, is not what this run is compared with.
            env = {"XDG_CACHE_HOME": str(work / "cache")}
            return bed.start(
                command, device, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )

        more = [
            "--model",
            str(model),
            "--objective",
            "throughput",
            "--insecure",
            "--state",
            str(work / "state"),
        ]
        more += ["--save-plan", str(work / "plan.json"), "--save-profile", str(work / "profile.json")]
        # The bare chain keeps to the plan, too; while it has its turn, the devices are busy with what is not ours.
        more += ["--blocks", str(arguments.blocks), "--wait", "60", "--replan", "never"]
        # It would be loaded while stages are measured alone; what it is worth is `benchmarks.gap`'s subject.
        more += ["--standby", "none"]
        # While ours waits for its turn it would send canaries: a second of a box's time for a large network.
        cluster = work / "cluster.toml"
        described = bed.cluster_file.read_text()
        cluster.write_text(described.replace("[dispatcher]\n", '[dispatcher]\ncanary = "0 s"\n'))
        ready = stack.enter_context(
            serving(cluster, *more, start=lambda command: start_on(None, command), timeout=1200.0)
        )
        plan = Plan.load(work / "plan.json")
        if arguments.keep:
            arguments.keep.mkdir(parents=True, exist_ok=True)
            for kind in ("plan", "profile"):
                kept = arguments.keep / f"{name}-{count}-{kind}.json"
                kept.write_bytes((work / f"{kind}.json").read_bytes())
        parts = write_parts(model, chain, plan.cuts, work / "parts")
        by_itself = [
            alone(bed, stage.device, part, ALONE_S if not quick else 0.5)
            for stage, part in zip(plan.stages, parts, strict=True)
        ]
        (whole,) = write_parts(model, chain, (), work / "parts")
        with ThreadPoolExecutor(count) as pool:
            each = list(pool.map(lambda device: alone(bed, device, whole, 0.5 if quick else 8.0), devices))
        processes: list[subprocess.Popen[str]] = []
        stack.enter_context(ended(processes))
        used = [stage.device for stage in plan.stages]
        ends = start_bare(
            bed, used, parts, [tuple(t.tensors) for t in plan.transfers[1:]], start_on, processes
        )
        # Ours and the bare chain first: the other one's processes are not there yet.
        period = max(max(by_itself), plan.period_s)
        turns = 1 if quick else arguments.pairs
        load = load_command(work / "input.npz", "--output", work, "--window", 2 * len(used) + 2)
        load += ["--count", str(max(6, round(BURST_S / period)))]
        rates = run_load([*load, "--pairs", str(turns), "--defer", ready["ready"], "--bare", *ends], bed)
        if not arguments.no_style:
            style = write_parts(model, chain, defer_style.cuts(chain, count), work / "parts")
            first, last = start_style(bed, devices, style, start_on, processes)
            source = chain.inputs[0].name
            rates |= run_load([*load, "--pairs", str(min(turns, 3)), "--style", first, last, source], bed)
        found = {kind: np.load(work / f"{kind}.npy") for kind in rates}
        expected = next(iter(whole_model(model, [inputs], threads=1).outputs[0].values()))
        for kind, array in found.items():
            _check(kind, array, expected)
        difference = float(np.max(np.abs(found["defer"] - expected)) / np.max(np.abs(expected)))
        return Run(rates, by_itself, sum(1 / seconds for seconds in each), plan, difference), load


if __name__ == "__main__":
    main("pipeline", measure, __doc__, add_arguments=add_arguments)
