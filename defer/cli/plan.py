"""`defer plan`: which device runs which blocks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from defer import units
from defer.accuracy import Budget
from defer.blocks import planning_chain
from defer.cli.chains import (
    Shapes,
    blocks_option,
    budget_options,
    check_calibration,
    input_option,
    read_chain,
)
from defer.cli.output import common_options, examples, note, print_json, progress
from defer.cli.plan_options import OBJECTIVES, Asked, wish_options
from defer.cli.plots import check_plot, write_plot
from defer.documents.base import as_plain, encode
from defer.documents.cluster import Cluster
from defer.documents.plan import Plan
from defer.documents.profile import CostProfile
from defer.errors import UsageError

if TYPE_CHECKING:
    from defer.guarded_planning import Wish
    from partitioner import BlockChain


@click.command(
    epilog=examples(
        "defer plan resnet50.onnx --cluster cluster.toml",
        "defer plan --blocks blocks.json --cluster cluster.toml --profile profile.json -o plan.json",
        "defer plan resnet50.onnx --cluster cluster.toml --objective throughput --plot plan.svg",
        "defer plan resnet50.onnx --cluster cluster.toml --profile profile.json --max-error 0.01",
        'defer plan resnet50.onnx --cluster cluster.toml --objective cost --max-latency "80 ms" --explain',
        "defer plan resnet50.onnx --cluster cluster.toml --pin 0:2=jetson --compare throughput --compare old.json",
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
@wish_options
@click.option(
    "--place", metavar="DEV=0:12,DEV=12:30", help="Place the blocks by hand; the rest is still planned."
)
@click.option("--max-stages", type=click.IntRange(min=1), help="Use at most so many stages.")
@click.option(
    "--codec",
    metavar="NAME",
    callback=lambda _ctx, _param, name: known_codec(name),
    help="The one codec between stages: raw, lz4, … or auto.",
)
@budget_options
@input_option
@blocks_option("--max-blocks")
@click.option(
    "--explain",
    is_flag=True,
    help="Show where every second comes from, what limits the plan, and what changes would gain.",
)
@click.option(
    "--compare",
    multiple=True,
    metavar="PLAN.json|OBJECTIVE",
    help="Show this plan beside another file's, or beside the plan for another objective. Repeat for more.",
)
@click.option("--plot", metavar="FILE.svg|html|png", type=click.Path(path_type=Path), help="Draw the plan.")
@click.option("-o", "--output", metavar="FILE", help="Write the plan, plan.json.")
@click.option("--force", is_flag=True, help="Overwrite files even if defer did not write them.")
@common_options
def command(
    model: Path | None,
    blocks_file: str | None,
    cluster_file: str,
    profile_file: str | None,
    asked: Asked,
    place: str | None,
    max_stages: int | None,
    codec: str | None,
    max_error: Budget | None,
    calibration: Path | None,
    inputs: Shapes,
    blocks: int,
    explain: bool,
    compare: tuple[str, ...],
    plot: Path | None,
    output: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Decide which device of a cluster runs which blocks of MODEL, and draw the result.

    Block numbers are those of `defer analyze` with the same --blocks, or of the profile.
    """
    from defer.branches import branches_of
    from defer.guarded_planning import Wish
    from defer.planning import make_plan, parse_placement

    check_calibration(calibration, max_error)
    if plot is not None:
        check_plot(plot)
    cluster = Cluster.load(cluster_file)
    profile = CostProfile.load(profile_file) if profile_file else None
    limits, rules = asked.limits(), asked.rules()
    chain = planning_chain(read_chain(model, blocks_file, inputs, as_json=as_json), blocks, profile)
    placement = parse_placement(place, cluster, len(chain.blocks)) if place else None

    def planned(wish: Wish) -> Plan:
        if max_error is not None:
            return guarded(model, chain, cluster, profile, max_error, wish, calibration, step)
        return make_plan(
            chain,
            cluster,
            profile,
            objective=wish.objective,
            max_stages=wish.max_stages,
            placement=wish.placement,
            codec=wish.codec,
            limits=wish.limits,
            rules=wish.rules,
            advice=wish.advice,
            branches=None if model is None else branches_of(model, inputs),
        )

    with progress("planning", as_json=as_json) as step:
        step(
            f"{units.show_count(len(chain.blocks), 'block')}, {units.show_count(len(cluster.devices), 'device')}",
            0.5,
        )
        wish = Wish(asked.objective, max_stages, placement, codec, limits, rules, explain)
        plan = planned(wish)
        others = [(name, _other(name, wish, planned)) for name in compare]
    if plot is not None:
        write_plot(plan, plot, force=force)
    if output:
        plan.save(output, force=force)
    if as_json:
        if others:
            compared = [{"name": name, "plan": as_plain(other)} for name, other in others]
            print_json({**as_plain(plan), "compare": compared})
        else:
            click.echo(encode(plan).decode(), nl=False)
    elif output != "-":
        _show(plan, others, explain=explain)
        for path in filter(None, (output, plot)):
            note(f"wrote {path}")


def known_codec(name: str | None) -> str | None:
    """The name, if a codec is called so.

    Raises:
        UsageError: None is.
    """
    from node_agent.codecs import CODECS

    if name is not None and name != "auto" and name not in CODECS:
        raise UsageError(f"--codec {name!r} is unknown", hint=f"known: auto, {', '.join(CODECS)}")
    return name


def _other(name: str, wish: Wish, planned: Callable[[Wish], Plan]) -> Plan:
    """What the plan is compared with: a file's plan, or the one for another objective under the same wishes."""
    if name not in OBJECTIVES:
        return Plan.load(name)
    limits = wish.limits if name == wish.objective else replace(wish.limits, weights={})
    rules = replace(wish.rules, replicas=False)  # only throughput knows them
    other = replace(wish, objective=name, limits=limits, rules=rules, advice=False)  # type: ignore[arg-type]
    return planned(other)


def guarded(
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


def _show(plan: Plan, others: Sequence[tuple[str, Plan]], *, explain: bool) -> None:
    from defer.cli.plan_tables import show_explanation, show_side_by_side
    from defer.draw_text import plan_text

    click.echo(plan_text(plan))
    if explain:
        show_explanation(plan)
    if others:
        show_side_by_side([("this plan", plan), *others])
