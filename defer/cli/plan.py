"""`defer plan`: which device runs which blocks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from defer import units
from defer.accuracy import Budget
from defer.blocks import planning_chain
from defer.cli.chains import Shapes, blocks_option, budget_options, input_option, read_chain
from defer.cli.output import common_options, console, examples, note, progress, table
from defer.documents.base import encode
from defer.documents.cluster import Cluster
from defer.documents.files import write_bytes
from defer.documents.plan import Objective, Plan
from defer.documents.profile import CostProfile
from defer.errors import OutputExists, UsageError

if TYPE_CHECKING:
    from defer.guarded_planning import Wish
    from partitioner import BlockChain


@click.command(
    epilog=examples(
        "defer plan resnet50.onnx --cluster cluster.toml",
        "defer plan --blocks blocks.json --cluster cluster.toml --profile profile.json -o plan.json",
        "defer plan resnet50.onnx --cluster cluster.toml --objective throughput --plot plan.svg",
        "defer plan resnet50.onnx --cluster cluster.toml --profile profile.json --max-error 0.01",
        "defer plan resnet50.onnx --cluster cluster.toml --place jetson=0:12,nano=12:",
    )
)
@click.argument("model", type=click.Path(path_type=Path), required=False)
@click.option(
    "--blocks", "blocks_file", metavar="FILE", help="Plan for this blocks.json in place of a model."
)
@click.option(
    "--cluster", "cluster_file", required=True, metavar="FILE", help="The devices and links, cluster.toml."
)
@click.option(
    "--profile",
    "profile_file",
    metavar="FILE",
    help="Measured costs, profile.json; without it, static costs.",
)
@click.option(
    "--objective",
    type=click.Choice(["latency", "throughput"]),
    default="latency",
    show_default=True,
    help="Seconds of one request, or requests per second.",
)
@click.option(
    "--place", metavar="DEV=0:12,DEV=12:30", help="Place the blocks by hand; the rest is still planned."
)
@click.option("--max-stages", type=click.IntRange(min=1), help="Use at most so many stages.")
@click.option("--codec", metavar="NAME", help="The one codec between stages: raw, lz4, … or auto.")
@budget_options
@input_option
@blocks_option("--max-blocks")
@click.option("--explain", is_flag=True, help="Show where every second of the latency comes from.")
@click.option("--plot", metavar="FILE.svg", type=click.Path(path_type=Path), help="Draw the plan.")
@click.option("-o", "--output", metavar="FILE", help="Write the plan, plan.json.")
@click.option("--force", is_flag=True, help="Overwrite files even if defer did not write them.")
@common_options
def command(
    model: Path | None,
    blocks_file: str | None,
    cluster_file: str,
    profile_file: str | None,
    objective: Objective,
    place: str | None,
    max_stages: int | None,
    codec: str | None,
    max_error: Budget | None,
    calibration: Path | None,
    inputs: Shapes,
    blocks: int,
    explain: bool,
    plot: Path | None,
    output: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Decide which device of a cluster runs which blocks of MODEL, and draw the result.

    Block numbers are those of `defer analyze` with the same --blocks, or of the profile.
    """
    from defer.guarded_planning import Wish
    from defer.planning import make_plan, parse_placement

    if calibration is not None and max_error is None:
        raise UsageError("--calibration has no meaning without --max-error")
    cluster = Cluster.load(cluster_file)
    profile = CostProfile.load(profile_file) if profile_file else None
    chain = planning_chain(read_chain(model, blocks_file, inputs, as_json=as_json), blocks, profile)
    placement = parse_placement(place, cluster, len(chain.blocks)) if place else None
    with progress("planning", as_json=as_json) as step:
        step(f"{len(chain.blocks)} blocks, {len(cluster.devices)} devices", 0.5)
        if max_error is None:
            plan = make_plan(
                chain,
                cluster,
                profile,
                objective=objective,
                max_stages=max_stages,
                placement=placement,
                codec=codec,
            )
        else:
            wish = Wish(objective, max_stages, placement, codec)
            plan = _guarded(model, chain, cluster, profile, max_error, wish, calibration, step)
    if plot is not None:
        write_plot(plan, plot, force=force)
    if output:
        plan.save(output, force=force)
    if as_json:
        click.echo(encode(plan).decode(), nl=False)
    elif output != "-":
        _show(plan, explain)
        for path in filter(None, (output, plot)):
            note(f"wrote {path}")


def _guarded(
    model: Path | None,
    chain: BlockChain,
    cluster: Cluster,
    profile: CostProfile | None,
    budget: Budget,
    wish: Wish,
    calibration: Path | None,
    step: Callable[[str, float], None],
) -> Plan:
    """A plan with lossy codecs within a budget.

    Raises:
        UsageError: Without a model nothing can be run, and without a profile no codec is known.
    """
    from defer.guarded_planning import plan_on_calibration

    if model is None or profile is None:
        raise UsageError(
            "--max-error needs the model, to measure what codecs do to its output, and a profile of what they cost",
            hint="give MODEL and --profile profile.json, made by `defer profile`",
        )
    with tempfile.TemporaryDirectory(prefix="defer-plan-") as parts:
        return plan_on_calibration(
            model,
            chain,
            cluster,
            profile,
            budget,
            wish,
            calibration=calibration,
            parts=Path(parts),
            on_step=step,
        )


def write_plot(plan: Plan, path: Path, *, force: bool = False) -> None:
    """Draws a plan into an SVG file.

    Raises:
        OutputExists: The file exists and is no SVG.
    """
    from defer.draw import plan_svg

    if not force and path.is_file() and path.stat().st_size and b"<svg" not in path.read_bytes()[:1024]:
        raise OutputExists(
            "exists and is not an SVG", where=str(path), hint="choose another name, or --force"
        )
    write_bytes(path, plan_svg(plan).encode())


def _show(plan: Plan, explain: bool) -> None:
    from defer.draw_text import plan_text

    out = console()
    click.echo(plan_text(plan))
    if not explain:
        return
    shown = table("where", "what", "time", "share", "bytes", right=("time", "share", "bytes"))
    for term in plan.terms:
        share = f"{term.seconds / plan.latency_s:.1%}" if plan.latency_s > 0 else ""
        size = units.show_size(term.bytes) if term.bytes else ""
        shown.add_row(term.where, term.kind, units.show_duration(term.seconds), share, size)
    shown.add_section()
    shown.add_row("", "latency", units.show_duration(plan.latency_s), "", "")
    click.echo()
    out.print(shown)
