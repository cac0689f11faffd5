"""How every verb talks: results on standard output, everything else on standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
import msgspec

from defer.errors import DeferError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

F = TypeVar("F", bound=Callable[..., Any])

PIPE_WIDTH: Final = 120
"""Columns of a table that no terminal shows."""

Step = Callable[[str, float], None]
"""Told what is being done and how far it is, 0 to 1."""


def common_options(command: F) -> F:
    """Adds what every verb has: `--json` (argument `as_json`) and `--debug`, which `defer.cli` looks at."""
    command = click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        help="Show where an error comes from (or set DEFER_DEBUG=1).",
    )(command)
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(command)


def examples(*lines: str) -> str:
    """The end of a verb's help: its examples, not rewrapped."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def print_json(value: Any) -> None:
    """One JSON document on standard output; structs, dataclasses and tuples are taken as they are."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    click.echo(text)


def console(*, stderr: bool = False) -> Console:
    """A rich console that takes text literally: names of tensors and devices are no markup."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    piped = not stream.isatty() and "COLUMNS" not in os.environ
    return Console(
        file=stream,
        markup=False,
        highlight=False,
        emoji=False,
        width=PIPE_WIDTH if piped else None,
        soft_wrap=False,
    )


def table(*columns: str, title: str = "", right: tuple[str, ...] = ()) -> Table:
    """A table in the one style that all verbs use; columns named in `right` hold numbers."""
    from rich import box
    from rich.table import Table

    made = Table(
        title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False
    )
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", no_wrap=column in right)
    return made


def note(text: str, *, as_json: bool = False) -> None:
    """A line for people, on standard error; silent for programs, and where the terminal was closed."""
    if not as_json:
        with suppress(OSError):
            click.echo(text, err=True)


def report(error: DeferError, *, as_json: bool) -> None:
    """An error on standard error: a line and a hint, or one JSON object."""
    if as_json:
        body = {"error": {**error.to_dict(), "exit_code": error.exit_code}}
        click.echo(msgspec.json.encode(body).decode(), err=True)
        return
    click.echo(click.style("error: ", fg="red", bold=True) + str(error), err=True)
    if error.hint:
        click.echo(click.style("hint:  ", fg="cyan") + error.hint, err=True)


@contextmanager
def progress(title: str, *, as_json: bool = False) -> Iterator[Step]:
    """Shows long work on standard error while the block runs; only in a terminal, never with `--json`.

    Args:
        title: What the whole work is.
        as_json: Whether a program is reading.

    Yields:
        A function to call with what is being done and how far it is, 0 to 1.
    """
    if as_json or not sys.stderr.isatty():
        yield lambda _what, _fraction: None
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        console=console(stderr=True),
        transient=True,
    )
    bar.start()
    try:
        task = bar.add_task(title, total=None)

        def step(what: str, fraction: float) -> None:
            bar.update(
                task, description=f"{title}: {what}", total=1.0, completed=min(max(fraction, 0.0), 1.0)
            )

        yield step
    finally:
        with suppress(
            OSError
        ):  # the terminal was closed, which is no reason for another error than what it made
            bar.stop()
