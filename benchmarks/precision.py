"""What float16 and int8 cost in accuracy: partitions of the zoo, rewritten, against the same partitions in float32.

Each network is cut into balanced partitions; each partition is rewritten by itself, as a deployment does, and all are
run by ONNX Runtime on the CPU. Weights are seeded and not trained, which makes convolutional networks of this depth
amplify any disturbance; `input alone` shows how much: the output's change when nothing but the input is rounded to
that precision and the network stays float32.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.runner import Options, Outcome, Row, Target, main

PARTS = 4
INPUTS = 16
CALIBRATION = 8
BATCH = 4
PRECISIONS = ("fp16", "int8", "int8-fp16")
LARGEST = {"fp16": 0.02, "int8": 0.25, "int8-fp16": 0.25}
"""Greatest relative error that one partition may add to exact inputs, by precision."""

Arrays = dict[str, npt.NDArray[Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's own arguments."""
    parser.add_argument("--models", nargs="*", metavar="NAME", help="only these (default: the whole zoo)")


def measure(options: Options) -> Outcome:
    """One row per network and precision, each network in a process of its own."""
    import models

    names = options.arguments.models or [n for n in models.NAMES if models.describe(n).kind == "zoo"]
    if options.quick and not options.arguments.models:
        names = ["mobilenet_v2"]
    count = BATCH if options.quick else INPUTS
    context = multiprocessing.get_context("spawn")
    rows: list[Row] = []
    for name in names:
        with options.console.status(name), context.Pool(1) as pool:
            rows += pool.apply(_measure, (name, count))
    targets = []
    for kind in PRECISIONS:
        found = [float(str(row["worst partition"])) for row in rows if row["precision"] == kind]
        targets.append(
            Target(
                f"largest error of one partition in {kind}, relative L2",
                max(found, default=None),
                LARGEST[kind],
                "most",
            )
        )
    return Outcome(
        rows,
        targets,
        notes=[
            f"{PARTS} partitions per network, {count} seeded inputs, {CALIBRATION} others for calibration.",
            "whole chain: relative L2 of the first output. input alone: the float32 network, its input rounded.",
            "worst partition: each partition given exact float32 inputs. top-1: share of inputs with the same argmax.",
        ],
    )


def _measure(name: str, count: int) -> list[Row]:
    import models
    import partitioner
    from partitioner import precision

    free = models.describe(name).free_batch
    batch = BATCH if free else 1
    feeds = [
        models.example_inputs(name, batch=batch, seed=100 + turn) for turn in range(max(1, count // batch))
    ]
    with tempfile.TemporaryDirectory(prefix="defer-precision-") as folder:
        path = models.save(name, Path(folder) / f"{name}.onnx")
        chain = partitioner.analyze(path, {key: array.shape for key, array in feeds[0].items()})
        parts = partitioner.split(path, partitioner.balance(chain, PARTS))
        store = Path(folder) / "store"
        wide = [_Runner(part, store) for part in parts]
        exact = [_chain(wide, each) for each in feeds]
        wide_s = _seconds(wide, exact[0])
        observer = _calibrate(name, parts, store, batch)
        output = parts[-1].outputs[0].name if parts[-1].outputs else chain.outputs[0].name
        rows: list[Row] = []
        for kind in PRECISIONS:
            rewritten = [
                precision.rewrite(part, kind, ranges=None if kind == "fp16" else observer.ranges)
                for part in parts
            ]
            narrow = [_Runner(each.partition, store) for each in rewritten]
            got = [_chain(narrow, each)[output] for each in feeds]
            expected = [each[output] for each in exact]
            local = [
                max(_error(runner.run(each)[key], each[key]) for key in runner.outputs)
                for each in exact
                for runner in narrow
            ]
            rounded = [_chain(wide, _round(each, kind))[output] for each in feeds]
            rows.append(
                {
                    "model": name,
                    "precision": kind,
                    "whole chain": round(_error(np.concatenate(got), np.concatenate(expected)), 6),
                    "input alone": round(_error(np.concatenate(rounded), np.concatenate(expected)), 6),
                    "worst partition": round(max(local), 6),
                    "top-1": round(_agreement(got, expected), 4),
                    "weights MiB": round(sum(each.partition.weight_bytes for each in rewritten) / 2**20, 1),
                    "float32 MiB": round(sum(part.weight_bytes for part in parts) / 2**20, 1),
                    "time vs float32": round(_seconds(narrow, exact[0]) / wide_s, 2),
                    "kept wide": sum(len(each.notes) for each in rewritten),
                }
            )
            del narrow
        return rows


class _Runner:
    """One partition on ONNX Runtime's CPU."""

    def __init__(self, part: Any, store: Path) -> None:
        import onnxruntime

        import partitioner

        stored = partitioner.write_store(part, store)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(
            str(store / f"{stored.graph.sha256}.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self.inputs = [value.name for value in self._session.get_inputs()]
        self.outputs = [value.name for value in self._session.get_outputs()]

    def run(self, values: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        made = self._session.run(self.outputs, {name: values[name] for name in self.inputs})
        return dict(zip(self.outputs, made, strict=True))


def _chain(runners: Sequence[_Runner], feeds: Arrays) -> Arrays:
    values = dict(feeds)
    for runner in runners:
        values |= runner.run(values)
    return values


def _calibrate(name: str, parts: Sequence[Any], store: Path, batch: int) -> Any:
    import models
    from partitioner import precision

    observer = precision.Observer()
    runners = [_Runner(precision.instrument(part), store) for part in parts]
    for turn in range(max(1, CALIBRATION // batch)):
        observer.add(_chain(runners, models.example_inputs(name, batch=batch, seed=900 + turn)))
    return observer


def _seconds(runners: Sequence[_Runner], values: Arrays) -> float:
    best = float("inf")
    for _ in range(3):
        begin = time.perf_counter()
        for runner in runners:
            runner.run(values)
        best = min(best, time.perf_counter() - begin)
    return best


def _round(feeds: Arrays, kind: str) -> Arrays:
    """The inputs as that precision holds them; integers stay."""
    rounded: Arrays = {}
    for name, array in feeds.items():
        if array.dtype.kind != "f":
            rounded[name] = array
        elif kind == "fp16":
            rounded[name] = array.astype(np.float16).astype(array.dtype)
        else:
            step = np.abs(array).max() / 127 or 1.0
            rounded[name] = (np.rint(array / step) * step).astype(array.dtype)
    return rounded


def _error(got: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    if expected.dtype.kind != "f":
        return float(np.mean(got != expected))
    size = np.linalg.norm(expected.astype(np.float64).ravel())
    return float(np.linalg.norm((got.astype(np.float64) - expected).ravel()) / (size or 1.0))


def _agreement(got: Sequence[npt.NDArray[Any]], expected: Sequence[npt.NDArray[Any]]) -> float:
    same = [a.argmax(-1) == b.argmax(-1) for a, b in zip(got, expected, strict=True)]
    return float(np.mean(np.concatenate([each.ravel() for each in same])))


if __name__ == "__main__":
    main("precision", measure, __doc__, add_arguments=add_arguments)
