"""`defer replan`: whether a running plan should give way to a better one."""

from __future__ import annotations

from pathlib import Path

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
from defer.cli.plan import guarded, known_codec
from defer.cli.plan_options import Asked, wish_options
from defer.documents.base import as_plain
from defer.documents.cluster import Cluster
from defer.documents.plan import Plan
from defer.documents.profile import CostProfile
from defer.errors import UsageError
from node_agent.finite import Finite


@click.command(
    epilog=examples(
        "defer replan resnet50.onnx --running plan.json --cluster cluster.toml --profile profile.json -o new.json",
        'defer replan resnet50.onnx --running plan.json --cluster cluster.toml --profile p.json --horizon "1 h"',
        "defer replan --blocks blocks.json --running plan.json --cluster cluster.toml --exclude nano",
    )
)
@click.argument("model", type=click.Path(path_type=Path), required=False)
@click.option("--blocks", "blocks_file", metavar="FILE", help="This blocks.json in place of a model.")
@click.option(
    "--running", "running_file", required=True, metavar="FILE", help="The plan that serves, plan.json."
)
@click.option(
    "--cluster", "cluster_file", required=True, metavar="FILE", help="The devices and links as they are now."
)
@click.option(
    "--profile",
    "profile_file",
    metavar="FILE",
    help="Costs as they are now, profile.json; wanted where the running plan was made with one.",
)
@click.option(
    "--horizon",
    default="10 min",
    show_default=True,
    metavar='"10 min"',
    help="How long a new plan would serve.",
)
@click.option(
    "--rate",
    default=1.0,
    show_default=True,
    type=Finite(min=0),
    help="Requests per second meanwhile.",
)
@click.option(
    "--threshold",
    default=0.05,
    show_default=True,
    type=Finite(0, 1),
    help="Keep the running plan where a new one gains less than this part.",
)
@click.option(
    "--load-bandwidth",
    metavar='"100 Mbit/s"',
    help="How fast devices receive partitions; by default the slowest link to one that does.",
)
@wish_options
@click.option("--max-stages", type=click.IntRange(min=1), help="Use at most so many stages.")
@click.option(
    "--codec",
    metavar="NAME",
    callback=lambda _ctx, _param, name: known_codec(name),
    help="The one codec between stages of a new plan: raw, lz4, … or auto.",
)
@budget_options
@input_option
@blocks_option("--max-blocks")
@click.option("-o", "--output", metavar="FILE", help="Write the plan to follow, plan.json.")
@click.option("--force", is_flag=True, help="Overwrite files even if defer did not write them.")
@common_options
def command(
    model: Path | None,
    blocks_file: str | None,
    running_file: str,
    cluster_file: str,
    profile_file: str | None,
    horizon: str,
    rate: float,
    threshold: float,
    load_bandwidth: str | None,
    asked: Asked,
    max_stages: int | None,
    codec: str | None,
    max_error: Budget | None,
    calibration: Path | None,
    inputs: Shapes,
    blocks: int,
    output: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Compare the plan that serves MODEL with the best one for the cluster as it is now.

    The new plan is taken where the running one cannot run any more, or where it saves more time, money or energy
    within the horizon than loading the partitions takes that devices do not hold yet. Objective, weights and bounds
    are those of the running plan unless others are given.
    """
    from defer.branches import branches_of
    from defer.guarded_planning import Wish
    from defer.replanning import Prospect, replan
    from defer.wishes import parse_bound

    check_calibration(calibration, max_error)
    cluster = Cluster.load(cluster_file)
    profile = CostProfile.load(profile_file) if profile_file else None
    running = Plan.load(running_file)
    if profile is None and running.method != "static":
        raise UsageError(
            "the running plan was made from measurements; without a profile, guesses would decide",
            hint="give it with --profile; `defer profile MODEL --cluster FILE -o profile.json` measures anew",
        )
    prospect = Prospect(
        horizon=parse_bound("--horizon", horizon, units.DURATION),
        rate=rate,
        threshold=threshold,
        load_bandwidth=parse_bound("--load-bandwidth", load_bandwidth, units.BANDWIDTH)
        if load_bandwidth
        else None,
    )
    asked = asked.after(running)
    limits, rules = asked.limits(running.limits), asked.rules()
    chain = planning_chain(read_chain(model, blocks_file, inputs, as_json=as_json), blocks, profile)
    with progress("planning", as_json=as_json) as step:
        step(
            f"{units.show_count(len(chain.blocks), 'block')}, {units.show_count(len(cluster.devices), 'device')}",
            0.5,
        )
        best = None
        if max_error is not None:
            wish = Wish(asked.objective, max_stages, None, codec, limits, rules)
            best = guarded(model, chain, cluster, profile, max_error, wish, calibration, step)
        found = replan(
            running,
            chain,
            cluster,
            profile,
            objective=asked.objective,
            max_stages=max_stages,
            codec=codec,
            limits=limits,
            rules=rules,
            prospect=prospect,
            branches=None if model is None else branches_of(model, inputs),
            best=best,
        )
    if output:
        found.plan.save(output, force=force)
    if as_json:
        print_json(
            {
                "change": found.change,
                "reason": found.reason,
                "moved_bytes": found.moved_bytes,
                "load_s": found.load_s,
                "gain": found.gain,
                "price": found.price,
                "plan": as_plain(found.plan),
            }
        )
    elif output != "-":
        from defer.draw_text import plan_text

        click.echo(plan_text(found.plan))
        moved = f"{units.show_size(found.moved_bytes)} to load in {units.show_duration(found.load_s)}"
        click.echo(
            f"\n{found.reason[:1].upper()}{found.reason[1:]}." + (f" {moved}." if found.change else "")
        )
        note(_next(found.change, output))


def _next(change: bool, output: str | None) -> str:
    """What was written, and what to do with it."""
    wrote = f"wrote {output}; " if output else ""
    if not change:
        return f"{wrote}the running plan stays, so nothing needs applying"
    first = "" if output else "-o FILE writes it, and "
    return f"{wrote}{first}`defer deploy MODEL --plan {output or 'FILE'} --name NAME` applies it"
