"""The demo as a benchmark: ResNet-50 over four agents on loopback against the whole model on one.

On a machine with fewer cores than agents the agents share them; the ratio can then be at most cores ÷ threads, which
the row shows beside it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time

from benchmarks.runner import Options, Outcome, Target, main

LIMIT_S = 90.0


def measure(options: Options) -> Outcome:
    """One row: what `defer demo --json` says, and how long it took."""
    command = [sys.executable, "-m", "defer", "demo", "--json"]
    if options.quick:
        command += ["--model", "tiny_residual", "--requests", "10", "--agents", "2"]
    with tempfile.TemporaryDirectory(prefix="defer-demo-") as output, options.console.status("defer demo"):
        begin = time.perf_counter()
        done = subprocess.run(
            [*command, "--output", output], capture_output=True, text=True, check=False, timeout=600
        )
        seconds = time.perf_counter() - begin
    if done.returncode != 0:
        raise SystemExit(f"defer demo failed with exit code {done.returncode}: {done.stderr.strip()}")
    result = json.loads(done.stdout)
    row = {
        "model": result["model"],
        "stages": len(result["stages"]),
        "requests": result["requests"],
        "max abs diff": result["max_abs_diff"],
        "p50 ms": result["latency_p50_s"] * 1e3,
        "ours /s": result["throughput_per_s"],
        "one device /s": result["single_device_throughput_per_s"],
        "ratio": result["ratio"],
        "ratio at most": min(len(result["stages"]), result["cores"] / result["threads_per_agent"]),
        "seconds": round(seconds, 1),
    }
    return Outcome(
        [row],
        [
            Target("seconds from start to end", seconds, LIMIT_S, "most"),
            Target("largest difference from the whole model", result["max_abs_diff"], 1e-3, "most"),
        ],
    )


if __name__ == "__main__":
    main("demo", measure, __doc__)
