"""`defer demo`: the main job on this machine, measured and compared."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from defer.accuracy import Budget, parse_budget
from defer.cli.output import common_options, console, examples, note, print_json, progress, table
from defer.demo import DemoOptions, DemoResult, run_demo
from defer.units import show_count, show_duration, show_size


@click.command(
    epilog=examples(
        "defer demo",
        "defer demo --model mobilenet_v2 --agents 2 --requests 50",
        "defer demo --json > demo.json",
    )
)
@click.option(
    "--model", default="resnet50", show_default=True, help="A reference network; see `defer models list`."
)
@click.option("--agents", default=4, show_default=True, type=click.IntRange(1, 16), help="Agents to start.")
@click.option(
    "--requests", default=100, show_default=True, type=click.IntRange(1, 100_000), help="Requests to send."
)
@click.option(
    "--window", default=8, show_default=True, type=click.IntRange(1, 1024), help="Requests under way at once."
)
@click.option(
    "--threads", default=1, show_default=True, type=click.IntRange(1, 64), help="Engine threads of an agent."
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo-output"),
    show_default=True,
    help="Where cluster.toml, profile.json, plan.json and plan.svg go.",
)
@click.option(
    "--max-error",
    "max_error",
    metavar="0.01",
    callback=lambda _ctx, _param, value: parse_budget(value) if value else None,
    help="Allow lossy codecs as far as the output moves by this part of its length.",
)
@common_options
def command(
    model: str,
    agents: int,
    requests: int,
    window: int,
    threads: int,
    output: Path,
    max_error: Budget | None,
    as_json: bool,
) -> None:
    """Split a reference network over agents on this machine and compare with one device.

    Starts the agents and a dispatcher as processes, measures, plans, deploys, sends requests through the pipeline,
    compares every output with the whole model's, and stops everything again.
    """
    options = DemoOptions(model, agents, requests, window, threads, output, max_error)
    with (
        tempfile.TemporaryDirectory(prefix="defer-demo-") as work,
        progress("demo", as_json=as_json) as step,
    ):
        result = run_demo(options, Path(work), lambda text: step(text, 0.0))
    if as_json:
        print_json(result)
    else:
        _show(result)


def _show(result: DemoResult) -> None:
    out = console()
    columns = ("stage", "device", "blocks", "weights", "seconds", "bytes out")
    stages = table(
        *columns, title=f"{result.model}: {show_count(len(result.stages), 'stage')}", right=columns[2:]
    )
    for number, stage in enumerate(result.stages, 1):
        start, stop = stage.blocks
        stages.add_row(
            str(number),
            stage.device,
            f"{start}–{stop - 1}",
            show_size(stage.weight_bytes),
            show_duration(stage.seconds),
            show_size(stage.bytes_out),
        )
    out.print(stages)
    out.print()
    figures = table("", "pipeline", "one device", right=("pipeline", "one device"))
    figures.add_row(
        "throughput", f"{result.throughput_per_s:.2f}/s", f"{result.single_device_throughput_per_s:.2f}/s"
    )
    figures.add_row(
        "latency, one at a time (p50)",
        f"{result.latency_p50_s * 1e3:.1f} ms",
        f"{1e3 / result.single_device_throughput_per_s:.1f} ms",
    )
    out.print(figures)
    out.print()
    shared = (
        f", sharing {show_count(result.cores, 'core')}"
        if result.cores < result.agents * result.threads_per_agent
        else ""
    )
    out.print(
        f"{result.ratio:.2f}× one device; each agent has {show_count(result.threads_per_agent, 'thread')}{shared}."
    )
    out.print(
        f"{show_count(result.requests, 'output')} compared with the whole model: "
        f"largest difference {result.max_abs_diff:.2e}."
    )
    if any(codec != "raw" for codec in result.codecs):
        out.print(
            f"Codecs {', '.join(result.codecs)}: ‖Δoutput‖₂/‖output‖₂ of the worst request {result.relative_error:.2e}."
        )
    note(f"plan {result.plan}, drawing {result.drawing}, {result.seconds:.0f} s in all")
