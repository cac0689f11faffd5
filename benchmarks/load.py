"""Load on pipelines, in turns, from one process on the dispatcher's device; prints JSON.

    python -m benchmarks.load --input input.npz --count 60 --window 18 --pairs 5 --defer HOST:PORT --bare FIRST LAST …

Prints the results per second of each pipeline in each turn. A rate is taken from the result that fills the
window to the last one, so filling the pipeline does not count. With --output, each pipeline's first result is
saved.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import bare, defer_style
from defer.client import Client

Results = list[tuple[float, Any]]
"""When each result came, and one of its arrays."""

Run = Callable[[Sequence[Mapping[str, Any]], int], Results]


def ours(address: str, model: str = "", keys: Path | None = None) -> Run:
    """Through a dispatcher, to the model of this name; with these keys, or plain."""
    client = Client(address, timeout=300.0, keys=keys, insecure=keys is None)

    def run(inputs: Sequence[Mapping[str, Any]], window: int) -> Results:
        return [
            (time.perf_counter(), next(iter(result.values())))
            for result in client.map(inputs, model=model, window=window)
        ]

    return run


def plain(first: str, last: str) -> Run:
    """Through a bare chain."""
    pipeline = bare.Pipeline(first, last)

    def run(inputs: Sequence[Mapping[str, Any]], window: int) -> Results:
        results: Results = []
        waiting = deque(inputs)
        for _ in range(min(window, len(inputs))):
            pipeline.put(waiting.popleft())
        for _ in inputs:
            array = next(iter(pipeline.get().values()))
            results.append((time.perf_counter(), array))
            if waiting:
                pipeline.put(waiting.popleft())
        return results

    return run


def as_defer(first: str, last: str, name: str) -> Run:
    """Through a chain of DEFER's kind."""
    ends = [(host, int(port)) for host, _, port in (end.rpartition(":") for end in (first, last))]
    return defer_style.Pipeline(ends[0], ends[1], name).run


def main() -> None:
    """Measures what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load")
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--window", type=int, required=True)
    parser.add_argument("--pairs", type=int, required=True)
    parser.add_argument("--defer", metavar="ADDRESS")
    parser.add_argument(
        "--names", nargs="*", metavar="MODEL", help="models of the dispatcher, one pipeline each"
    )
    parser.add_argument("--keys", type=Path, metavar="FILE", help="the client's, for --defer")
    parser.add_argument("--bare", nargs=2, metavar=("FIRST", "LAST"))
    parser.add_argument("--style", nargs=3, metavar=("FIRST", "LAST", "INPUT"))
    parser.add_argument("--output", type=Path, help="directory for first results")
    arguments = parser.parse_args()
    with np.load(arguments.input) as loaded:
        one = {name: loaded[name] for name in loaded.files}
    runs: dict[str, Run] = {}
    if arguments.defer and arguments.names:
        runs |= {name: ours(arguments.defer, name) for name in arguments.names}
    elif arguments.defer:
        runs["defer"] = ours(arguments.defer, keys=arguments.keys)
    if arguments.bare:
        runs["bare"] = plain(*arguments.bare)
    if arguments.style:
        runs["style"] = as_defer(*arguments.style)
    window = arguments.window
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for name, run in runs.items():  # what a first request costs counts nowhere
        (_, array), *_ = run([one] * 2, 2)
        if arguments.output:
            np.save(arguments.output / f"{name}.npy", array)
    for _ in range(arguments.pairs):
        for name, run in runs.items():
            times = [at for at, _ in run([one] * (arguments.count + window), window)]
            rates[name].append(arguments.count / (times[-1] - times[window - 1]))
    sys.stdout.write(json.dumps(rates) + "\n")


if __name__ == "__main__":
    main()
