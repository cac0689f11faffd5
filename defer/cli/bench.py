"""`defer bench`: put load on a served model, and show where its time and energy go."""

from __future__ import annotations

import click

from defer import units
from defer.bench import Load, Power, run_load
from defer.cli.dispatcher import address_option
from defer.cli.infer import choose_model, random_inputs
from defer.cli.output import common_options, console, examples, print_json, table
from defer.client import Client


@click.command(
    epilog=examples(
        "defer bench", "defer bench --model resnet50 --requests 500 --window 16", "defer bench --json"
    )
)
@click.option("-m", "--model", "model_name", default="", help="Which model; needed where several are served.")
@click.option("--requests", default=100, show_default=True, type=click.IntRange(min=1), help="For the rate.")
@click.option(
    "--window", default=16, show_default=True, type=click.IntRange(min=1), help="Under way at once."
)
@click.option(
    "--singles",
    default=20,
    show_default=True,
    type=click.IntRange(min=1),
    help="One at a time, for latencies.",
)
@click.option("--batch", default=1, show_default=True, type=click.IntRange(min=1), help="Free dimensions.")
@click.option("--seed", default=0, show_default=True, help="Of the random inputs.")
@click.option(
    "--watts",
    default=(2.0, 5.0),
    show_default=True,
    nargs=2,
    type=click.FloatRange(0),
    help="What a device without a sensor draws: idle, and in addition while it runs.",
)
@click.option(
    "--timeout",
    default=60.0,
    show_default=True,
    type=click.FloatRange(0.001, 3600),
    help="Seconds per request.",
)
@address_option
@common_options
def command(
    model_name: str,
    requests: int,
    window: int,
    singles: int,
    batch: int,
    seed: int,
    watts: tuple[float, float],
    timeout: float,
    address: str,
    as_json: bool,
) -> None:
    """Measure a model that is served: rate, latencies, and per stage its use, waits, bytes and energy."""
    with Client(address, model=model_name, timeout=timeout) as client:
        info = choose_model(client.models(), model_name)
        inputs = random_inputs(info, seed, batch)
        load = run_load(
            client, info.name, inputs, requests=requests, window=window, singles=singles, power=Power(*watts)
        )
    if as_json:
        print_json(load)
    else:
        _show(load)


def _show(load: Load) -> None:
    columns = ("in use", "wait", "decode", "run", "encode", "in", "out", "energy")
    shown = table("stage", *columns, right=columns)
    for stage in load.stages:
        seconds = (stage.wait_s, stage.decode_s, stage.run_s, stage.encode_s)
        shown.add_row(
            stage.device,
            f"{stage.utilisation:.0%}",
            *(units.show_duration(each) for each in seconds),
            *(units.show_size(round(each)) for each in (stage.bytes_in, stage.bytes_out)),
            f"{stage.energy_j:.3g} J{'' if stage.energy_by == 'sensor' else ' (model)'}",
        )
    console().print(shown)
    p50, p90, p99 = (units.show_duration(each) for each in (load.p50_s, load.p90_s, load.p99_s))
    click.echo(
        f"{load.rate_per_s:.1f}/s with {load.window} under way; one at a time p50 {p50}, p90 {p90}, p99 {p99}; "
        f"coding takes {load.coding_share:.1%} of the stages' work"
    )
