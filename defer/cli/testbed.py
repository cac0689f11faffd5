"""`defer testbed`: an emulated edge cluster on this machine. The testbed itself is not in the wheel."""

from __future__ import annotations

import importlib
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from defer.cli.output import common_options, console, examples, note, print_json, table
from defer.errors import DeferError, MissingExtra, PermissionDenied
from defer.units import show_count
from node_agent.finite import Finite

if TYPE_CHECKING:
    from benchmarks.testbed import Testbed
    from benchmarks.testbed.capabilities import Ability

_ABOUT = "Emulate an edge cluster on this machine: devices, shares, links."


@click.group(
    name="testbed",
    help=f"{_ABOUT} Needs Linux, root and a source checkout; see docs/testbed.md.",
)
def command() -> None:
    """The group; its verbs do the work."""


@command.command(
    name="run",
    help="Start the testbed of FILE, run COMMAND on the dispatcher's device, remove the testbed."
    "\n\nThe command finds the cluster file in $DEFER_CLUSTER and a scratch directory in $DEFER_TESTBED_DIR."
    " Its exit code is this command's. With --json its standard output goes to standard error, and CPU seconds"
    " per device and bytes per link are printed at the end.\n\n"
    + examples(
        "sudo -E defer testbed run bed.toml -- sh -c 'defer profile model.onnx --cluster $DEFER_CLUSTER'"
    ),
)
@click.argument("file", type=click.Path(dir_okay=False))
@click.argument("words", metavar="COMMAND [ARGS]...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--keep-logs", type=click.Path(file_okay=False), help="Directory for the agents' output.")
@click.option("--timeout", type=Finite(min=0.1), help="Seconds that the command may take.")
@click.option("--no-agents", is_flag=True, help="Start no agents: empty devices on a network.")
@common_options
def run_command(
    file: str,
    words: tuple[str, ...],
    keep_logs: str | None,
    timeout: float | None,
    no_agents: bool,
    as_json: bool,
) -> int:
    """Runs a command in a testbed and returns its exit code."""
    _find()
    from benchmarks.testbed import Options, Testbed

    options = Options(agents=not no_agents, keep_logs=Path(keep_logs) if keep_logs else None)
    begin = time.monotonic()
    with Testbed(file, options) as bed:
        ready = time.monotonic()
        note(
            f"testbed: {show_count(len(bed.spec.devices), 'device')} ready after {ready - begin:.1f} s",
            as_json=as_json,
        )
        done = bed.run(words, timeout=timeout, stdout=sys.stderr if as_json else None)
        seconds = time.monotonic() - ready
        code = done.returncode if done.returncode >= 0 else 128 - done.returncode
        figures = _figures(bed, code, seconds) if as_json else None
    if figures is not None:
        print_json(figures)
    return code


@command.command(
    name="check",
    help="Try what a testbed needs, and say what is missing and which command gets it.\n\n"
    + examples("sudo -E defer testbed check", "sudo -E defer testbed check --json"),
)
@common_options
def check_command(as_json: bool) -> int:
    """Shows what this machine can do; the exit code is that of the first thing that is missing."""
    _find()
    from benchmarks.testbed.capabilities import abilities, missing

    found = abilities()
    lacking = missing(found)
    if as_json:
        print_json({"ready": not lacking, "abilities": found})
    else:
        _show(found)
    if not lacking:
        return 0
    kind: type[DeferError] = PermissionDenied if lacking[0].name == "root" else MissingExtra
    return kind(lacking[0].detail).exit_code


def _find() -> None:
    """Makes `benchmarks.testbed` importable where defer runs from a source checkout.

    Raises:
        MissingExtra: It is an installation without the sources, or not Linux.
    """
    if not sys.platform.startswith("linux"):
        raise MissingExtra("the testbed needs Linux", hint="run it in a virtual machine with Linux")
    checkout = Path(__file__).resolve().parent.parent.parent
    if (checkout / "benchmarks" / "testbed").is_dir() and str(checkout) not in sys.path:
        sys.path.append(str(checkout))
    try:
        importlib.import_module("benchmarks.testbed")
    except ModuleNotFoundError as exc:
        if exc.name not in ("benchmarks", "benchmarks.testbed"):
            raise
        raise MissingExtra(
            "the testbed is not part of the installed package, it needs a source checkout",
            hint="clone the repository, `pip install -e .` there, and run this command again",
        ) from exc


def _figures(bed: Testbed, code: int, seconds: float) -> dict[str, object]:
    traffic = bed.traffic()
    return {
        "exit_code": code,
        "signal": signal.Signals(code - 128).name
        if code > 128 and code - 128 in set(signal.Signals)
        else None,
        "seconds": seconds,
        "devices": [
            {"name": name, "address": bed.address(name), "cpu_seconds": bed.cpu_seconds(name)}
            for name in bed.spec.names
        ],
        "links": [
            {"from": source, "to": target, "bytes": nbytes} for (source, target), nbytes in traffic.items()
        ],
    }


def _show(found: list[Ability]) -> None:
    shown = table("ability", "", "found", "command that gets it")
    for one in found:
        verdict = "yes" if one.ok else "no" if one.needed else "without"
        shown.add_row(one.name, verdict, one.detail, "" if one.ok else one.fix)
    console().print(shown)
