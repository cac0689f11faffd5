"""The same devices, where several may share a stage's requests and none may hold the whole model."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.chains import run_load
from benchmarks.processes import serving
from benchmarks.testbed import Options as BedOptions
from benchmarks.testbed import Testbed, uniform
from defer.documents.plan import Plan

MEMORY = 0.8
"""What each agent takes of partitions at most, in parts of the model's file."""


def shared(
    count: int, cpu: float, model: Path, profile: Path, load: Sequence[str], work: Path
) -> tuple[list[float], Plan]:
    """Results per second in each turn, and the plan.

    Args:
        count: Number of devices.
        cpu: Cores of each.
        model: An ONNX file.
        profile: What was measured on such devices.
        load: The command of `benchmarks.load`, without what it is to load.
        work: An empty directory.
    """
    most = int(MEMORY * model.stat().st_size)
    with ExitStack() as stack:
        spec = uniform(count, cpu=cpu, arguments=["--memory", f"{most} B"])
        bed = stack.enter_context(Testbed(spec, BedOptions()))

        def start(command: Sequence[str]) -> subprocess.Popen[str]:
            return bed.start(command, None, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

        more = ["--model", str(model), "--profile", str(profile), "--objective", "throughput", "--replicas"]
        more += ["--state", str(work / "state"), "--save-plan", str(work / "plan.json"), "--wait", "60"]
        more += ["--insecure", "--replan", "never", "--standby", "none"]
        ready = stack.enter_context(serving(bed.cluster_file, *more, start=start, timeout=600.0))
        rates = run_load([*load, "--output", str(work), "--defer", ready["ready"]], bed)["defer"]
        return rates, Plan.load(work / "plan.json")
