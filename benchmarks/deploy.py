"""Deploying: how much of a link shipping fills, what a second deployment sends, and how long the first result takes.

ResNet-50 goes to one device over links of several rates in the testbed, by a plan that is given, so nothing is
measured or planned. Then a new dispatcher, with a state directory of its own, deploys it once more. Needs root,
see docs/testbed.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import models
import partitioner
from benchmarks.processes import ended
from benchmarks.runner import Options, Outcome, Row, Target, main
from benchmarks.testbed import Testbed, uniform
from defer.documents.cluster import Cluster
from defer.local_agents import read_line
from defer.planning import make_plan, parse_placement
from defer.transfer import CHUNK_BYTES

MBIT = 125_000.0
PAYLOAD = 1448 / 1514
"""Of a full segment on the wire, see docs/testbed.md."""
LINKS = ((20.0, 0.0), (100.0, 0.0), (100.0, 0.02), (1000.0, 0.0))
"""Mbit/s and seconds of delay one way."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's own arguments."""
    parser.add_argument("--model", choices=models.NAMES, default="resnet50")


def measure(options: Options) -> Outcome:
    """A row per link."""
    name = options.arguments.model
    rows: list[Row] = []
    targets: list[Target] = []
    for mbit, delay in LINKS[1:2] if options.quick else LINKS:
        what = f"{mbit:g} Mbit/s" + (f", {delay * 1e3:g} ms" if delay else "")
        with options.console.status(what):
            row = _deploy(name, mbit, delay)
        rows.append({"link": what, **row})
        targets += [
            Target(
                f"{what}: shipping, of what the link carries", float(row["of the link"] or 0), 0.8, "least"
            ),
            Target(
                f"{what}: bytes that a second deployment sends",
                float(row["second sends bytes"] or 0),
                0.0,
                "most",
            ),
        ]
    return Outcome(
        rows,
        targets,
        ["the link's payload is 95.6 % of its rate; first result: from the order to the canary's"],
    )


def _deploy(name: str, mbit: float, delay: float) -> Row:
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="defer-deploy-")))
        model = models.save(name, work / f"{name}.onnx")
        bed = stack.enter_context(Testbed(uniform(1, bandwidth=mbit * MBIT, delay=delay)))
        cluster = Cluster.load(bed.cluster_file)
        chain = partitioner.analyze(model)
        blocks = len(chain.blocks)
        make_plan(chain, cluster, placement=parse_placement(f"box-1=0:{blocks}", cluster, blocks)).save(
            work / "plan.json"
        )
        first = _serve(bed, model, work, "one")
        second = _serve(bed, model, work, "two")
        # The clock starts when the first piece has been taken.
        rate = (first["sent_bytes"] - CHUNK_BYTES) / first["shipping_s"]
        return {
            "sent MB": first["sent_bytes"] / 1e6,
            "shipping s": first["shipping_s"],
            "of the link": rate / (mbit * MBIT * PAYLOAD),
            "first result s": first["seconds"],
            "second sends bytes": second["sent_bytes"],
            "second's first result s": second["seconds"],
        }


def _serve(bed: Testbed, model: Path, work: Path, state: str) -> dict[str, Any]:
    """Starts a dispatcher that deploys the model, and ends it when it is ready."""
    command = [
        sys.executable,
        "-m",
        "defer",
        "serve",
        "--cluster",
        str(bed.cluster_file),
        "--json",
        "--insecure",
    ]
    command += ["--model", str(model), "--plan", str(work / "plan.json"), "--state", str(work / state)]
    process = bed.start(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    shipping = loading = 0.0
    with ended([process]):
        while line := read_line(process, 600.0):
            event: dict[str, Any] = json.loads(line)
            now = time.monotonic()
            if "ready" in event:
                return {**event, "shipping_s": max(1e-9, loading - shipping)}
            if "shipping" in event["progress"] and not shipping:
                shipping = now
            elif "loading" in event["progress"] and not loading:
                loading = now
    raise SystemExit("`defer serve` did not become ready")


if __name__ == "__main__":
    main("deploy", measure, __doc__, add_arguments=add_arguments)
