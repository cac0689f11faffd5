"""The one runner of all benchmarks: arguments, a table on screen, a JSON document, targets, the exit code.

A benchmark is a function `measure(options) -> Outcome`. Its module ends with::

    if __name__ == "__main__":
        main("zoo", measure, __doc__)

The JSON document has `benchmark`, `machine`, `versions`, `seconds`, `rows` (flat objects, one per table row) and
`targets`, a list of `{name, value, target, ok}`. The exit code is 1 when a target is missed. With `--quick` the run is
too short to judge, so every `ok` is null and the exit code is 0.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

PIPE_WIDTH = 160

Cell = str | int | float | bool | None
Row = Mapping[str, Cell]


@dataclass(frozen=True, slots=True)
class Target:
    """A figure that was promised.

    Attributes:
        name: What is measured, with its unit.
        value: What this run measured; None when it could not be.
        target: What was promised.
        at: `least` when more is better, `most` when less is.
    """

    name: str
    value: float | None
    target: float
    at: Literal["least", "most"]

    @property
    def ok(self) -> bool:
        """Whether the promise is kept."""
        if self.value is None:
            return False
        return self.value >= self.target if self.at == "least" else self.value <= self.target


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a benchmark returns: its rows, its targets, and lines to print under the table."""

    rows: Sequence[Row]
    targets: Sequence[Target] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Options:
    """What every benchmark is given.

    Attributes:
        quick: Run the shortest thing that still exercises everything.
        arguments: The benchmark's own arguments, parsed.
        console: Where progress may be shown (standard error).
    """

    quick: bool
    arguments: argparse.Namespace
    console: Console = field(default_factory=lambda: Console(stderr=True))


Measure = Callable[[Options], Outcome]


def main(
    name: str,
    measure: Measure,
    about: str | None,
    *,
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None,
) -> None:
    """Run a benchmark as a command and exit."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=(about or "").partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="shortest run; targets are not judged")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the result there; - for standard output"
    )
    if add_arguments is not None:
        add_arguments(parser)
    arguments = parser.parse_intermixed_args()
    options = Options(arguments.quick, arguments)
    started = time.monotonic()
    try:
        outcome = measure(options)
    except KeyboardInterrupt:
        sys.exit(130)
    document = describe(name, outcome, time.monotonic() - started, quick=arguments.quick)
    to_stdout = arguments.json is not None and str(arguments.json) == "-"
    stream = sys.stderr if to_stdout else sys.stdout
    # No terminal says how wide it is: a log keeps its columns.
    console = Console(file=stream, width=None if stream.isatty() else PIPE_WIDTH)
    show(name, outcome, quick=arguments.quick, console=console)
    if arguments.json is not None:
        text = json.dumps(document, indent=2) + "\n"
        if to_stdout:
            sys.stdout.write(text)
        else:
            arguments.json.write_text(text)
    missed = not arguments.quick and any(not target.ok for target in outcome.targets)
    sys.exit(1 if missed else 0)


def describe(name: str, outcome: Outcome, seconds: float, *, quick: bool) -> dict[str, object]:
    """The JSON document of a run."""
    return {
        "benchmark": name,
        "machine": machine(),
        "versions": versions(),
        "seconds": round(seconds, 3),
        "rows": [dict(row) for row in outcome.rows],
        "targets": [
            {
                "name": target.name,
                "value": target.value,
                "target": target.target,
                "ok": None if quick else target.ok,
            }
            for target in outcome.targets
        ],
    }


def show(name: str, outcome: Outcome, *, quick: bool, console: Console) -> None:
    """Print the rows, the targets and the notes."""
    if outcome.rows:
        table = Table(title=f"{name}{' (quick)' if quick else ''}", title_justify="left")
        columns = list(dict.fromkeys(key for row in outcome.rows for key in row))
        for column in columns:
            numeric = all(isinstance(row.get(column), int | float | None) for row in outcome.rows)
            table.add_column(column, justify="right" if numeric else "left")
        for row in outcome.rows:
            table.add_row(*(_cell(row.get(column)) for column in columns))
        console.print(table)
    if outcome.targets:
        table = Table(title="targets", title_justify="left")
        for column in ("figure", "measured", "target", "kept"):
            table.add_column(column, justify="left" if column == "figure" else "right")
        for target in outcome.targets:
            sign = "≥" if target.at == "least" else "≤"
            verdict = "not judged" if quick else "[green]yes[/]" if target.ok else "[red]no[/]"
            table.add_row(target.name, _cell(target.value), f"{sign} {_cell(target.target)}", verdict)
        console.print(table)
    for note in outcome.notes:
        console.print(note, markup=False)


def machine() -> dict[str, object]:
    """What the figures were taken on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next(
            (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model
        )
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def versions() -> dict[str, str]:
    """Python, defer and the libraries that the figures depend on."""
    found = {"python": platform.python_version()}
    for package in (
        "defer-edge",
        "numpy",
        "onnx",
        "onnx-ir",
        "onnxruntime",
        "pyzmq",
        "msgspec",
        "lz4",
        "networkx",
        "scipy",
    ):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cell(value: Cell) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else value
