"""`defer trace`: where the time of requests goes, hop by hop, as a chart, a drawing, and a file for Perfetto."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import click
import msgspec

from defer import units
from defer.admin import CONNECT_S
from defer.cli.dispatcher import address_option, timeout_option
from defer.cli.infer import choose_model, random_inputs
from defer.cli.output import common_options, console, examples, note, print_json, table
from defer.cli.plots import check_plot, write_drawing
from defer.cli.values import GIVEN
from defer.client_encoding import AUTO
from defer.client_requests import dialling
from defer.documents.files import write_bytes
from defer.errors import OutputExists
from defer.tracing.chrome import chrome_trace
from defer.tracing.run import run_traced
from defer.tracing.summary import PlaceTimes, Summary, summarise
from defer.tracing.timeline import KINDS, Timeline

MOST_REQUESTS = 1000
"""The agents remember some more."""


@click.command(
    epilog=examples(
        "defer trace resnet50",
        "defer trace resnet50 --requests 32 --in-flight 8 -o trace.json --plot gantt.svg",
        "defer trace --json",
    )
)
@click.argument("model_name", metavar="[MODEL]", required=False, type=GIVEN)
@click.option(
    "--requests",
    default=12,
    show_default=True,
    type=click.IntRange(1, MOST_REQUESTS),
    help="How many are traced.",
)
@click.option(
    "--in-flight", "window", default=4, show_default=True, type=click.IntRange(min=1), help="At once."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write Chrome trace JSON, for ui.perfetto.dev.",
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw the chart (.svg, .html or .png).",
)
@click.option("-f", "--force", is_flag=True, help="Replace files that are no traces or drawings.")
@click.option("--batch", default=1, show_default=True, type=click.IntRange(min=1), help="Free dimensions.")
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of the random inputs."
)
@timeout_option(60.0)
@address_option
@common_options
def command(
    model_name: str | None,
    requests: int,
    window: int,
    output: Path | None,
    plot: Path | None,
    force: bool,
    batch: int,
    seed: int,
    timeout: float,
    address: str,
    as_json: bool,
) -> None:
    """Trace requests of a served MODEL: when each waited, was moved, decoded, run and encoded, and on which device."""
    if plot is not None:
        check_plot(plot)
    if output is not None and not force and output.is_file() and not _is_trace(output):
        raise OutputExists(
            "exists and is no trace", where=str(output), hint="choose another name, or --force"
        )
    client = dialling(address, model=model_name or "", timeout=timeout, codec=AUTO, connect_timeout=CONNECT_S)
    with closing(client):
        info = choose_model(client.served.refresh(), model_name or "")
        inputs = random_inputs(info, seed, batch)
        timeline = run_traced(client, info.name, inputs, requests=requests, window=window)
    if output is not None:
        write_bytes(output, msgspec.json.encode(chrome_trace(timeline)))
        note(f"{output}: open it at https://ui.perfetto.dev or chrome://tracing", as_json=as_json)
    if plot is not None:
        from defer.tracing.gantt import gantt_page, gantt_svg

        write_drawing(plot, lambda: gantt_svg(timeline), lambda: gantt_page(timeline), force=force)
        note(f"{plot}: drawn", as_json=as_json)
    if as_json:
        print_json(summarise(timeline))
    else:
        _show(timeline, summarise(timeline))


def _is_trace(path: Path) -> bool:
    return not path.stat().st_size or b"traceEvents" in path.read_bytes()[:64]


def _show(timeline: Timeline, summary: Summary) -> None:
    from defer.tracing.terminal import chart

    screen = console()
    screen.print(chart(timeline, screen.width))
    columns = (*KINDS, "in use", "clock ±")
    shown = table("mean of a request at", *columns, right=columns)
    for place in summary.places:
        shown.add_row(*_row(place))
    screen.print(shown)
    p50, p90, worst = (units.show_duration(each) for each in (summary.p50_s, summary.p90_s, summary.worst_s))
    click.echo(
        f"{units.show_count(summary.requests, 'request')} of {summary.model}, "
        f"up to {summary.in_flight} at once: latency p50 {p50}, p90 {p90}, most {worst}; {summary.rate_per_s:.1f}/s"
    )
    longest = summary.longest
    where = f"{longest.place} → {longest.to}" if longest.to else f"at {longest.place}"
    click.echo(
        f"most of it: {longest.kind} {where}, {units.show_duration(longest.seconds)} or {longest.share:.0%} on average"
    )
    if summary.lost:
        note(f"{summary.lost} more left no whole trace, because an agent forgot or did not answer")


def _row(place: PlaceTimes) -> tuple[Any, ...]:
    spent = [units.show_duration(place.seconds[kind]) if place.seconds[kind] else "" for kind in KINDS]
    use = f"{place.utilisation:.0%}" if place.utilisation is not None else ""
    return (place.place, *spent, use, units.show_duration(place.clock_error_s) if place.clock_error_s else "")
