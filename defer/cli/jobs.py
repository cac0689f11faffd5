"""`defer jobs`: several models on one cluster, each with its rate."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from defer import units
from defer.blocks import planning_chain
from defer.cli.chains import analyze, blocks_option
from defer.cli.output import common_options, console, examples, note, print_json, progress, table
from defer.documents.base import as_plain
from defer.documents.cluster import Cluster
from defer.documents.profile import CostProfile
from defer.errors import UsageError


@click.command(
    epilog=examples(
        "defer jobs --job resnet50.onnx=20 --job bert.onnx=5 --cluster cluster.toml -o plans/",
        "defer jobs --job a.onnx=20 --profile a.onnx=a-profile.json --job b.onnx=5 --cluster cluster.toml",
    )
)
@click.option(
    "--job",
    "jobs",
    multiple=True,
    required=True,
    metavar="MODEL=RATE",
    help="A model and its requests per second.",
)
@click.option(
    "--cluster", "cluster_file", required=True, metavar="FILE", help="The devices and links, cluster.toml."
)
@click.option(
    "--profile", "profiles", multiple=True, metavar="MODEL=FILE", help="Measured costs of one of the models."
)
@click.option("--codec", metavar="NAME", help="The one codec between stages: raw, lz4, … or auto.")
@blocks_option("--max-blocks")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write a plan per model, NAME.plan.json.",
)
@click.option("--force", is_flag=True, help="Overwrite files even if defer did not write them.")
@common_options
def command(
    jobs: tuple[str, ...],
    cluster_file: str,
    profiles: tuple[str, ...],
    codec: str | None,
    blocks: int,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Plan several models together, each with its rate, and say what the cluster can still carry.

    Refused where no plans at all could carry the rates; the error names what is used up.
    """
    from defer.joint_planning import Job, plan_jobs

    cluster = Cluster.load(cluster_file)
    measured = {}
    for text in profiles:
        model, equals, file = text.rpartition("=")
        if not equals or model not in {job.rpartition("=")[0] for job in jobs}:
            raise UsageError(f"--profile {text!r} names none of the jobs", hint="write --profile MODEL=FILE")
        measured[model] = CostProfile.load(file)
    asked = []
    for text in jobs:
        model, rate = _job(text)
        profile = measured.get(model)
        chain = planning_chain(analyze(Path(model), {}, as_json=as_json), blocks, profile)
        asked.append(Job(Path(model).stem, chain, rate, profile))
    with progress("planning", as_json=as_json) as step:
        step(
            f"{units.show_count(len(asked), 'model')}, {units.show_count(len(cluster.devices), 'device')}",
            0.5,
        )
        found = plan_jobs(asked, cluster, codec=codec)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        for job, plan in zip(asked, found.plans, strict=True):
            plan.save(output / f"{job.name}.plan.json", force=force)
    if as_json:
        plain = msgspec.to_builtins(found)
        plain["plans"] = {job.name: as_plain(plan) for job, plan in zip(asked, found.plans, strict=True)}
        print_json(plain)
        return
    shown = table("model", "rate", "stages", "latency", "at most", right=("rate", "latency", "at most"))
    for job, plan in zip(asked, found.plans, strict=True):
        stages = ", ".join(f"{stage.device} {stage.start}–{stage.stop - 1}" for stage in plan.stages)
        most = f"{units.show_number(1 / plan.period_s)}/s" if plan.period_s > 0 else "∞"
        shown.add_row(job.name, f"{job.rate:g}/s", stages, units.show_duration(plan.latency_s), most)
    console().print(shown)
    click.echo(
        f"\n{found.busiest} is the busiest, {found.utilisation:.0%} of the time; no plans do with less than "
        f"{found.bound:.0%}. All rates could grow to {found.growth:.3g} times, whatever the routes."
    )
    if output is not None:
        note(f"wrote {units.show_count(len(asked), 'plan')} into {output}")


def _job(text: str) -> tuple[str, float]:
    model, _, rate = text.rpartition("=")
    try:
        value = float(rate)
    except ValueError:
        value = 0.0
    if not model or not 0 < value < float("inf"):
        raise UsageError(f"--job {text!r} is no model and rate", hint="write --job resnet50.onnx=20")
    return model, value
