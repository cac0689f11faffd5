"""Real agents in the testbed under open load while one thing after another goes wrong; then a checker looks at all.

The load is half of what the devices that are left at worst can carry. Clients note what they asked and what came, agents
what they ran. The checker shows how many requests were lost, answered twice or answered wrong, how many ended with an
error or were refused, and how long no result came. A seed decides the faults; what the machine does in between it does
not. Needs root, as the testbed does.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from benchmarks.chaos import model
from benchmarks.chaos.bed import CLIENT, DISPATCHER, Bed, wait_ready
from benchmarks.chaos.faults import KINDS, Fault, plan
from benchmarks.chaos.history import Verdict, judge, read_agent, read_client
from benchmarks.processes import serving
from benchmarks.runner import Options, Outcome, Row, Target, main
from benchmarks.testbed import Testbed

QUICK_S = 25.0
CAPACITY_S = 5.0
READY_S = 120.0


def measure(options: Options) -> Outcome:
    """See `benchmarks.runner`."""
    given = options.arguments
    seconds = QUICK_S if options.quick else given.minutes * 60.0
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="defer-chaos-")))
        if given.keep is not None:
            work = given.keep
            work.mkdir(parents=True, exist_ok=True)
            if any(work.iterdir()):
                raise SystemExit(
                    f"{work} is not empty: what an earlier run left there would be taken for this one's"
                )
        bed = Bed(given.devices, work, given.keep, insecure=given.insecure)
        faults = plan(
            given.seed,
            seconds,
            bed.names,
            bed.bed.spec.dispatcher,
            every_s=given.every,
            most_out=given.most_out,
            kinds=given.kinds or [kind for kind in KINDS if kind != "bit-flips" or not given.insecure],
        )
        running = stack.enter_context(bed.running())
        wait_ready(bed, READY_S)
        verdict, rate, capacity = _run(bed, running, faults, seconds, given, work, options)
    return _outcome(verdict, faults, rate, capacity, given)


def _run(
    bed: Bed,
    running: Testbed,
    faults: Sequence[Fault],
    seconds: float,
    given: argparse.Namespace,
    work: Path,
    options: Options,
) -> tuple[Verdict, float, float]:
    with (work / "dispatcher.log").open("w") as log:

        def start(command: Sequence[str]) -> subprocess.Popen[str]:
            clocked = bed.clocked(running.spec.dispatcher, command)
            return running.start(clocked, None, stdout=subprocess.PIPE, stderr=log, text=True)

        more = ["--model", str(model.save(work / "numbered.onnx")), "--objective", "throughput"]
        more += ["--input", f"a0={model.ROWS},{model.WIDTH}", *bed.certificate(DISPATCHER)]
        more += ["--state", str(work / "state"), "--wait", "60", *given.serve]
        with options.console.status("measuring, planning, loading"):
            server = serving(running.cluster_file, *more, start=start)
            ready = server.__enter__()
        try:
            client = [sys.executable, "-m", "benchmarks.chaos.load", ready["ready"]]
            client += [] if bed.keys is None else bed.certificate(CLIENT)
            told = running.run([*client, "--capacity", str(CAPACITY_S)], capture=True, timeout=120)
            capacity = float(json.loads(told.stdout))
            rate = given.rate or _left(capacity, given.devices, given.most_out) / 2
            history = work / "client.history"
            command = [*client, "--rate", str(rate), "--seconds", str(seconds), "--seed", str(given.seed)]
            load = running.start([*command, "--deadline", str(given.deadline), "--history", str(history)])
            while not history.exists() or not history.read_text():
                time.sleep(0.05)
            happened = _play(bed, faults, seconds, options)
            load.wait(given.deadline + 60)
        finally:
            server.__exit__(None, None, None)
    asked = read_client(history.read_text().splitlines())
    ran = [
        run
        for name in bed.names
        if bed.history_of(name).exists()
        for run in read_agent(name, bed.history_of(name).read_text().splitlines(keepends=True))
    ]
    return judge(asked, ran, happened, given.deadline), rate, capacity


def _left(capacity: float, devices: int, out: int) -> float:
    """What the survivors can carry: the most layers on one of them decide."""
    return capacity * -(-model.LAYERS // devices) / -(-model.LAYERS // (devices - out))


def _play(bed: Bed, faults: Sequence[Fault], seconds: float, options: Options) -> list[tuple[float, str]]:
    """Let the faults happen; when which began, on the monotonic clock."""
    begin = time.monotonic()
    steps = sorted([(f.at, 0, f) for f in faults] + [(f.end, 1, f) for f in faults], key=lambda s: s[:2])
    happened: list[tuple[float, str]] = []
    with options.console.status("") as status:
        for at, over, fault in steps:
            while (left := begin + at - time.monotonic()) > 0:
                status.update(f"{time.monotonic() - begin:.0f} of {seconds:.0f} s")
                time.sleep(min(1.0, left))
            if over:
                bed.end(fault)
            else:
                happened.append((time.monotonic(), fault.kind))
                bed.begin(fault)
            if options.arguments.verbose:
                what = f"{'end of ' if over else ''}{fault.kind} {fault.device} {fault.other}"
                options.console.print(f"{time.monotonic() - begin:7.2f} s  {what}")
    return happened


def _outcome(
    verdict: Verdict, faults: Sequence[Fault], rate: float, capacity: float, given: argparse.Namespace
) -> Outcome:
    counts = {kind: sum(fault.kind == kind for fault in faults) for kind in KINDS}
    rows: list[Row] = [
        {
            "fault": kind,
            "times": counts[kind],
            "median gap s": median(gaps) if (gaps := verdict.gaps.get(kind)) else None,
            "longest gap s": max(gaps) if gaps else None,
        }
        for kind in KINDS
        if counts[kind]
    ]
    refused = sum(verdict.refused.values()) / verdict.sent if verdict.sent else 0.0
    notes = [
        f"seed {given.seed}: {verdict.sent} requests at {rate:.1f}/s (the whole cluster carries {capacity:.1f}/s), "
        f"{verdict.results} results, availability {verdict.availability:.4%}",
        f"refused: {dict(verdict.refused)}; errors: {dict(verdict.errors)}",
        f"partitions ran {verdict.runs} times, {verdict.again} of them for a request that they had run before",
        *(f"{code}: {text}" for code, text in verdict.texts.items()),
        *verdict.problems,
    ]
    targets = [
        Target("requests lost", verdict.lost, 0, "most"),
        Target("requests answered twice", verdict.duplicated, 0, "most"),
        Target("results that are wrong", verdict.wrong, 0, "most"),
        Target("accepted requests that ended with an error", sum(verdict.errors.values()), 0, "most"),
        Target("part of the requests that was refused", refused, 0.01, "most"),
        Target("availability", verdict.availability, 0.99, "least"),
        Target("longest gap s", verdict.longest_gap_s, given.deadline, "most"),
    ]
    return Outcome(rows, targets, notes)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=5.0, help="how long (5)")
    parser.add_argument("--seed", type=int, default=0, help="of the faults and of the load (0)")
    parser.add_argument("--devices", type=int, default=8, help="with agents (8)")
    parser.add_argument("--most-out", type=int, default=2, help="devices that are out at once (2)")
    parser.add_argument("--every", type=float, default=5.0, help="mean seconds between faults (5)")
    parser.add_argument("--deadline", type=float, default=30.0, help="seconds of each request (30)")
    parser.add_argument("--rate", type=float, help="requests per second, in place of half of what is carried")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, help="these faults only")
    parser.add_argument("--serve", nargs="*", default=[], help="more arguments for `defer serve`")
    parser.add_argument("--insecure", action="store_true", help="without keys, and so without bit flips")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep notes and logs there")
    parser.add_argument("--verbose", action="store_true", help="say what happens when")


if __name__ == "__main__":
    main("chaos", measure, __doc__, add_arguments=_add_arguments)
