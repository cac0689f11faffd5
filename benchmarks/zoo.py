"""Time and memory to analyze and split each network of the zoo.

Each network is measured in a process of its own, so that its peak memory is its own. `analyze` reads the file and
describes every block; `split` cuts it into eight balanced partitions and stores them by content.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

from benchmarks.runner import Options, Outcome, Row, main

PARTS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's own arguments."""
    parser.add_argument("--models", nargs="*", metavar="NAME", help="only these (default: the whole zoo)")


def measure(options: Options) -> Outcome:
    """One row per network."""
    import models

    names = options.arguments.models or [n for n in models.NAMES if models.describe(n).kind == "zoo"]
    if options.quick and not options.arguments.models:
        names = ["mobilenet_v2"]
    rows: list[Row] = []
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="defer-zoo-") as directory:
        for name in names:
            with options.console.status(f"{name}"):
                with context.Pool(1) as pool:
                    built = pool.apply(_build, (name, directory))
                with context.Pool(1) as pool:
                    rows.append({"model": name, **built, **pool.apply(_measure, (name, directory))})
                for file in Path(directory).iterdir():
                    file.unlink()
    return Outcome(rows, notes=["peak MiB: resident memory of a fresh process that does nothing else"])


def _build(name: str, directory: str) -> dict[str, float]:
    import models

    begin = time.perf_counter()
    models.save(name, Path(directory) / f"{name}.onnx")
    return {"build s": round(time.perf_counter() - begin, 2)}


def _measure(name: str, directory: str) -> dict[str, float | int]:
    import partitioner

    path = Path(directory) / f"{name}.onnx"
    size = sum(file.stat().st_size for file in Path(directory).iterdir())
    begin = time.perf_counter()
    chain = partitioner.analyze(path)
    analyzed = time.perf_counter()
    analyze_peak = _peak_mib()
    partitions = partitioner.split(path, partitioner.balance(chain, PARTS))
    with tempfile.TemporaryDirectory(prefix="defer-zoo-") as store:
        for partition in partitions:
            partitioner.write_store(partition, Path(store))
        written = time.perf_counter()
    return {
        "file MiB": round(size / 2**20, 1),
        "blocks": len(chain.blocks),
        "GFLOP": round(sum(block.flops for block in chain.blocks) / 1e9, 2),
        "analyze s": round(analyzed - begin, 3),
        "analyze peak MiB": analyze_peak,
        f"split in {PARTS} and store s": round(written - analyzed, 3),
        "peak MiB": _peak_mib(),
    }


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main("zoo", measure, __doc__, add_arguments=add_arguments)
