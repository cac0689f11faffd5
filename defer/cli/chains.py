"""What verbs that read a model have in common: `--input`, `--blocks`, and a block chain from what was given."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from defer import api
from defer.accuracy import Budget, parse_budget
from defer.blocks import PLANNING_BLOCKS, planning_chain
from defer.calibration import check_requests
from defer.cli.output import progress
from defer.cli.values import SHARE, parse_size
from defer.documents.blocks import BlocksDocument
from defer.documents.plan import Objective, Plan
from defer.errors import UsageError
from defer.translating import translate

if TYPE_CHECKING:
    from partitioner import BlockChain

__all__ = [
    "PLANNING_BLOCKS",
    "Shapes",
    "analyze",
    "batch_options",
    "blocks_option",
    "budget_options",
    "input_option",
    "located",
    "parse_shapes",
    "planning_chain",
    "read_chain",
    "sample_option",
    "standby_option",
]

F = TypeVar("F", bound=Callable[..., Any])

Shapes = dict[str, tuple[int, ...]]


def input_option(command: F) -> F:
    """Adds `--input NAME=1,3,224,224` (argument `inputs`, a dict of shapes)."""
    return click.option(
        "--input",
        "inputs",
        multiple=True,
        metavar="NAME=1,3,224,224",
        callback=lambda _ctx, _param, values: parse_shapes(values),
        help="Shape of an input, to bind its free dimensions. Repeat for several inputs.",
    )(command)


def budget_options(command: F) -> F:
    """Adds `--max-error` (argument `max_error`, a `Budget` or None) and `--calibration` (a path or None)."""
    command = click.option(
        "--calibration",
        type=click.Path(path_type=Path),
        metavar="FILE.npz",
        help="Measure the error on these requests: arrays named like the inputs.",
    )(command)
    return click.option(
        "--max-error",
        "max_error",
        metavar="0.01",
        callback=lambda _ctx, _param, value: parse_budget(value) if value is not None else None,
        help="Allow lossy codecs as far as the output moves by this part of its length, or of its classes: top1:0.01.",
    )(command)


def check_calibration(calibration: Path | None, max_error: Budget | None) -> None:
    """Refuses calibration requests that nothing would be measured on, or with, before anything is done or sent.

    Raises:
        UsageError: `--calibration` was given without `--max-error`.
        FileMissing: There is no such file.
        WrongInput: It is no .npz file; what is in it is for whoever knows the model's inputs to check.
    """
    if calibration is None:
        return
    if max_error is None:
        raise UsageError("--calibration has no meaning without --max-error")
    check_requests(calibration, "check --calibration")


def replicas_option(command: F) -> F:
    """Adds `--replicas` (argument `replicas`)."""
    return click.option("--replicas", is_flag=True, help="Several devices may share a stage's requests.")(
        command
    )


def given_plan(file: str | None, objective: Objective | None) -> Plan | None:
    """The plan of `--plan`; None without.

    Raises:
        UsageError: `--objective` asks for another thing than it was made for.
        FileMissing, InvalidDocument: It cannot be read.
    """
    if not file:
        return None
    plan = Plan.load(file)
    if objective not in (None, plan.objective):
        raise UsageError(
            f"--objective {objective}, but {file} was made for {plan.objective}",
            hint=f"leave --objective out, or plan anew with `defer plan --objective {objective}`",
        )
    return plan


def sample_option(command: F) -> F:
    """Adds `--sample` (argument `sample`, a share of the requests)."""
    return click.option(
        "--sample",
        type=SHARE,
        default=0.0,
        metavar="0.01",
        help="Compare this share of the requests with the lossless pipeline; `defer status` tells the error.",
    )(command)


def standby_option(command: F) -> F:
    """Adds `--standby` (argument `standby`)."""
    return click.option(
        "--standby",
        type=click.Choice(["auto", "loaded", "files", "none"]),
        default="auto",
        show_default=True,
        help="For the loss of a device: partitions loaded where a quarter of the memory stays free, or wherever they "
        "fit; files on the agents' disks; nothing on the devices: plans are made, and files sent when a device is lost.",
    )(command)


def batch_options(command: F) -> F:
    """Adds `--batch` and `--batch-delay` (argument `batching`, a `PlanBatching` or None)."""

    @functools.wraps(command)
    def parsed(*args: Any, batch: str | None, batch_delay: str | None, **more: Any) -> Any:
        from defer.batching import parse_batching

        return command(*args, batching=parse_batching(batch, batch_delay), **more)

    found = click.option(
        "--batch-delay",
        metavar="2ms",
        help="How long the first request of a batch may wait for others; without it none waits.",
    )(parsed)
    return cast(
        F,
        click.option(
            "--batch",
            metavar="4,8",
            help="Numbers of waiting requests that a stage may run as one, where that is cheaper.",
        )(found),
    )


def blocks_option(name: str = "--blocks") -> Callable[[F], F]:
    """Adds `--blocks N` (argument `blocks`), under another name where that one is taken."""
    return click.option(
        name,
        "blocks",
        type=click.IntRange(min=1),
        default=PLANNING_BLOCKS,
        show_default=True,
        help="Most blocks to divide the model into.",
    )


def parse_shapes(values: tuple[str, ...]) -> Shapes:
    """Shapes from `NAME=1,3,224,224`.

    Raises:
        UsageError: Not of that form, a name twice, or a dimension that is no positive whole number or beyond reason.
    """
    shapes: Shapes = {}
    hint = "write --input NAME=1,3,224,224 (NAME= for a scalar)"
    for value in values:
        name, equals, dims = value.rpartition("=")
        if not equals or not name:
            raise UsageError(f"--input {value!r} has no name or no shape", hint=hint)
        if name in shapes:
            raise UsageError(f"--input {name!r} is given twice", hint="give each input one shape")
        parts = [part.strip() for part in dims.replace("x", ",").split(",")] if dims.strip() else []
        sizes = [parse_size(part) for part in parts]
        if not all(sizes):
            raise UsageError(f"--input {value!r:.120}: {dims!r:.80} is not a shape", hint=hint)
        shapes[name] = tuple(sizes)
    api.check_shapes(shapes)
    return shapes


def analyze(model: Path, inputs: Shapes, *, as_json: bool, order: Sequence[int] = ()) -> BlockChain:
    """The chain of a model, one block per op, in the order of a plan or in its own; progress on standard error."""
    import partitioner

    with progress(f"analyzing {model.name}", as_json=as_json) as step:
        step("reading", 0.1)
        try:
            return partitioner.analyze(model, inputs or None, order=order)
        except partitioner.PartitionerError as exc:
            raise located(exc, model) from exc


def located(exc: Exception, model: Path) -> Exception:
    """The error with the name of the model's file, unless it is there already."""
    error = translate(exc)
    if model.name not in error.message and not error.where:
        error.where = str(model)
    error.hint = error.hint.partition(", or input_shapes=")[0]  # nobody types Python here
    return error


def read_chain(model: Path | None, blocks_file: str | None, inputs: Shapes, *, as_json: bool) -> BlockChain:
    """The chain of whichever was given, a model or a `blocks.json`.

    Raises:
        UsageError: Neither or both.
    """
    if (model is None) == (blocks_file is None):
        raise UsageError(
            "give a model or --blocks blocks.json, not both"
            if model
            else "give a model, or --blocks blocks.json"
        )
    if blocks_file is not None:
        if inputs:
            raise UsageError("--input has no meaning with --blocks, whose shapes are bound already")
        return BlocksDocument.load(blocks_file).to_chain()
    assert model is not None
    return analyze(model, inputs, as_json=as_json)
