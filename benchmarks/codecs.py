"""What each codec makes of real activations: ratio, encode and decode GB/s, error, and the winner per bandwidth.

The networks run on their example inputs; every boundary of a coarse chain gives one item (all its tensors). Ratios,
speeds and errors are sums over those items. `ms @` is the mean time in which an item is encoded, sent at that rate and
decoded on this machine, nothing overlapped; `wins` names the rates at which no codec is faster, `wins lossless` the
same among lossless ones. Only codecs whose values differ by at most `--error` can win (relative L2 of the tensors; the
error of the model's output, which the accuracy guard measures, is another figure and mostly smaller).

Least times are those of tensors that lie in a cache. `--cold` reads other memory before each run, as an engine does with
its weights.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.runner import Options, Outcome, Row, main
from node_agent.codecs import CODECS, is_lossless
from node_agent.frames import pack_item, unpack

NETWORKS = ("resnet50", "vgg16", "densenet121", "vit_b16", "bert_base")
RATES = {"1M": 1e6, "10M": 1e7, "20M": 2e7, "100M": 1e8, "1G": 1e9, "10G": 1e10}
"""Bits per second."""
BOUNDARIES = 16
REPEATS = 5
COLD_BYTES = 64 << 20
"""More than the caches of most processors hold."""

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Figures:
    """One codec on one boundary: bytes before and after, least seconds, and squared norms."""

    plain: int
    coded: int
    encode_s: float
    decode_s: float
    error2: float
    norm2: float

    def seconds(self, bits_per_s: float) -> float:
        """To encode, send and decode."""
        return self.encode_s + 8 * self.coded / bits_per_s + self.decode_s


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's own arguments."""
    parser.add_argument("--models", nargs="*", metavar="NAME", help="only these networks")
    parser.add_argument("--codecs", nargs="*", metavar="NAME", help="only these codecs")
    parser.add_argument(
        "--cold", action="store_true", help="read other memory before each run, as an engine does"
    )
    parser.add_argument(
        "--error", type=float, default=0.02, help="largest relative L2 error of a winner (default 0.02)"
    )


def measure(options: Options) -> Outcome:
    """A row per network and codec."""
    names = options.arguments.models or (("mobilenet_v2",) if options.quick else NETWORKS)
    codecs = options.arguments.codecs or list(CODECS)
    repeats, count = (1, 4) if options.quick else (REPEATS, BOUNDARIES)
    other = np.ones(COLD_BYTES // 8) if options.arguments.cold else np.empty(0)
    rows: list[Row] = []
    for name in names:
        found: dict[str, list[Figures]] = {codec: [] for codec in codecs}
        with options.console.status(name):
            for item in boundaries(name, count):
                for codec in codecs:
                    found[codec].append(figures(item, codec, repeats, other))
        rows += table(name, found, options.arguments.error)
    notes = [
        f"GB/s: bytes before encoding per second, one thread, least of {repeats} runs per boundary"
        + (f", each after {COLD_BYTES >> 20} MB of other memory" if options.arguments.cold else ""),
        f"M, G: Mbit/s, Gbit/s; winners have an error up to {options.arguments.error}",
    ]
    if not any(codec.startswith("zfp") for codec in CODECS):
        notes.append("zfp is not installed: pip install 'defer-edge[zfp]'")
    return Outcome(rows, notes=notes)


def boundaries(name: str, count: int) -> Iterator[Arrays]:
    """The tensors on each inner boundary of a network that runs on its example input."""
    import models
    import partitioner
    from defer.block_runner import BlockRunner

    with tempfile.TemporaryDirectory(prefix="defer-codecs-") as directory:
        path = models.save(name, Path(directory) / f"{name}.onnx")
        inputs = models.example_inputs(name)
        shapes = {key: array.shape for key, array in inputs.items()}
        chain = partitioner.coarsen(partitioner.analyze(path, shapes), count)
        with BlockRunner(path, chain, Path(directory) / "parts") as runner:
            yield from runner.states(inputs)[1:-1]


def figures(item: Arrays, codec: str, repeats: int, other: npt.NDArray[np.float64]) -> Figures:
    """Measures one codec on one boundary, through the same packing as an agent.

    Args:
        item: The boundary's tensors.
        codec: Its name.
        repeats: How often; the least time counts.
        other: Memory that is read before each run.
    """
    encode = decode = float("inf")
    for _ in range(repeats):
        other.sum()
        start = time.perf_counter()
        headers, frames = pack_item(item, codec)
        encode = min(encode, time.perf_counter() - start)
        other.sum()
        start = time.perf_counter()
        back = unpack(headers, frames)
        decode = min(decode, time.perf_counter() - start)
    floats = [name for name, array in item.items() if array.dtype.kind == "f"]
    error2 = norm2 = 0.0
    for name in floats:
        exact = item[name].astype(np.float64)
        error2 += float(np.sum((back[name].astype(np.float64) - exact) ** 2))
        norm2 += float(np.sum(exact**2))
    plain, coded = sum(array.nbytes for array in item.values()), sum(header.nbytes for header in headers)
    return Figures(plain, coded, encode, decode, error2, norm2)


def table(name: str, found: Mapping[str, Sequence[Figures]], most_error: float) -> list[Row]:
    """One row per codec over all boundaries of a network."""
    times = {
        codec: {label: float(np.mean([each.seconds(rate) for each in rows])) for label, rate in RATES.items()}
        for codec, rows in found.items()
    }
    errors = {codec: relative_error(rows) for codec, rows in found.items()}
    near = [codec for codec in found if errors[codec] <= most_error]
    exact = [codec for codec in found if is_lossless(codec)]

    def won(codec: str, rivals: Sequence[str]) -> str:
        best = [
            label for label in RATES if rivals and min(rivals, key=lambda each: times[each][label]) == codec
        ]
        return " ".join(best)

    rows: list[Row] = []
    for codec, each in found.items():
        plain, coded = sum(one.plain for one in each), sum(one.coded for one in each)
        rows.append(
            {
                "model": name,
                "codec": codec,
                "ratio": round(plain / coded, 3),
                "encode GB/s": round(plain / sum(one.encode_s for one in each) / 1e9, 3),
                "decode GB/s": round(plain / sum(one.decode_s for one in each) / 1e9, 3),
                "error": errors[codec],
                **{f"ms @{label}": seconds * 1e3 for label, seconds in times[codec].items()},
                "wins": won(codec, near),
                "wins lossless": won(codec, exact),
            }
        )
    return rows


def relative_error(found: Sequence[Figures]) -> float:
    """‖decoded - exact‖₂ / ‖exact‖₂ over all boundaries, each weighing the same."""
    ratios = [each.error2 / each.norm2 for each in found if each.norm2 > 0]
    return float(np.sqrt(np.mean(ratios))) if ratios else 0.0


if __name__ == "__main__":
    main("codecs", measure, __doc__, add_arguments=add_arguments)
