"""`defer bench`: put load on a served model, and show where its time and energy go."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from defer import units
from defer.bench import Load, LoadPlan, run_load, run_remote
from defer.bench_stages import Power
from defer.cli.dispatcher import address_option, timeout_option
from defer.cli.gateway_options import TOKEN_VARIABLE
from defer.cli.infer import choose_model, random_inputs
from defer.cli.output import common_options, console, examples, note, print_json, table
from defer.cli.values import GIVEN
from defer.client import Client
from defer.documents.files import read_bytes
from defer.errors import UsageError
from node_agent.finite import Finite

if TYPE_CHECKING:
    from defer.bench_http import Encoding


@click.command(
    epilog=examples(
        "defer bench",
        "defer bench --model resnet50 --requests 500 --window 16",
        "defer bench --rate 40 --requests 1000 --json",
        "defer bench --url http://127.0.0.1:8000 --model resnet50",
    )
)
@click.option("-m", "--model", "model_name", type=GIVEN, help="Which model; needed where several are served.")
@click.option(
    "--url",
    metavar="http://HOST:PORT",
    help="Load any server of the Open Inference Protocol v2, ours or another.",
)
@click.option("--requests", default=100, show_default=True, type=click.IntRange(min=1), help="For the rate.")
@click.option(
    "--window",
    "--concurrency",
    "window",
    default=16,
    show_default=True,
    type=click.IntRange(min=1),
    help="Under way at once, at most.",
)
@click.option("--rate", type=Finite(min=0, min_open=True), help="Requests per second, on a schedule.")
@click.option(
    "--singles",
    default=20,
    show_default=True,
    type=click.IntRange(min=1),
    help="One at a time, for latencies.",
)
@click.option(
    "--warm-up", default=3, show_default=True, type=click.IntRange(min=0), help="Requests that nobody counts."
)
@click.option("--batch", default=1, show_default=True, type=click.IntRange(min=1), help="Free dimensions.")
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of the random inputs."
)
@click.option(
    "--watts",
    default=(2.0, 5.0),
    show_default=True,
    nargs=2,
    type=Finite(0),
    help="What a device without a sensor draws: idle, and in addition while it runs.",
)
@click.option(
    "--encoding",
    default="binary",
    show_default=True,
    type=click.Choice(["binary", "json"]),
    help="With --url: tensors as bytes behind the JSON, or in it.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=f"With --url: bearer token; or set {TOKEN_VARIABLE}.",
)
@timeout_option(60.0)
@address_option
@common_options
def command(
    model_name: str | None,
    url: str | None,
    requests: int,
    window: int,
    rate: float | None,
    singles: int,
    warm_up: int,
    batch: int,
    seed: int,
    watts: tuple[float, float],
    encoding: Encoding,
    token_file: Path | None,
    timeout: float,
    address: str,
    as_json: bool,
) -> None:
    """Measure a model that is served: rate, latencies, and per stage its use, waits, bytes and energy.

    With --rate a latency counts from when its request was due, so that a server that stalls does not look fast.
    """
    plan = LoadPlan(requests, window, singles, warm_up, rate)
    if url is not None:
        token = _token(token_file)
        load = _remote(url, model_name or "", plan, encoding, token, timeout, seed=seed, batch=batch)
    elif token_file is not None or encoding != "binary":
        raise UsageError("--token-file and --encoding need --url")
    else:
        with Client(address, model=model_name or "", timeout=timeout) as client:
            info = choose_model(client.models(), model_name or "")
            load = run_load(client, info, random_inputs(info, seed, batch), plan, Power(*watts))
    if as_json:
        print_json(load)
    else:
        _show(load)


def _token(file: Path | None) -> str:
    return read_bytes(file).decode().strip() if file is not None else os.environ.get(TOKEN_VARIABLE, "")


def _remote(
    url: str,
    model: str,
    plan: LoadPlan,
    encoding: Encoding,
    token: str,
    timeout: float,
    *,
    seed: int,
    batch: int,
) -> Load:
    from defer.bench_http import V2Client, made_up_strings

    with ExitStack() as stack:
        client = stack.enter_context(V2Client(url, timeout=timeout, token=token, threads=plan.window))
        info = client.signature(model)
        numbers = tuple(spec for spec in info.inputs if spec.dtype != "string")
        inputs = random_inputs(msgspec.structs.replace(info, inputs=numbers), seed, batch)
        prepared = client.prepare(info, {**inputs, **made_up_strings(info, batch)}, encoding)
        received = client.check(prepared, info)
        return run_remote(
            lambda: client.submit(prepared),
            info.name,
            plan,
            url=client.url,
            sent_bytes=len(prepared.body),
            received_bytes=received,
        )


def _show(load: Load) -> None:
    if load.stages:
        _show_stages(load)
    p50, p90, p99 = (units.show_duration(each) for each in (load.p50_s, load.p90_s, load.p99_s))
    how = f"asked for {load.asked_per_s:g}/s, at most" if load.asked_per_s else "with"
    click.echo(
        f"{load.rate_per_s:.1f}/s {how} {load.window} under way; one at a time p50 {p50}, p90 {p90}, p99 {p99}"
    )
    if sum(load.failed.values()) != load.requests:
        under = [units.show_duration(each) for each in msgspec.structs.astuple(load.loaded)]
        since = ", from when each was due" if load.asked_per_s else ""
        click.echo(f"under that load p50 {under[0]}, p90 {under[1]}, p99 {under[2]}, most {under[3]}{since}")
    if load.url:
        sizes = (units.show_size(each) for each in (load.sent_bytes, load.received_bytes))
        click.echo("{} out and {} in per request, {}".format(*sizes, load.url))
    if load.quantities is not None:
        four = load.quantities
        by = {"sensor": "by sensors", "model": "by --watts", "both": "by sensors and --watts"}[four.energy_by]
        click.echo(
            f"per request: {units.show_energy(four.energy_j)} ({by}), {units.show_size(round(four.payload_bytes))} "
            f"on the network, {units.show_duration(four.overhead_s)} of encoding and decoding "
            f"({units.show_duration(load.client_coding_s)} of it at the client; {load.coding_share:.1%} of the "
            "stages' work)"
        )
    if load.uncounted:
        routes = units.show_count(load.uncounted, "route")
        note(f"stages and energy are without {routes} of the model, lost or back meanwhile")
    if load.failed:
        note("failed: " + ", ".join(f"{count} by {code}" for code, count in sorted(load.failed.items())))


def _show_stages(load: Load) -> None:
    batched = any(stage.batch > 1 for stage in load.stages)
    shared = any(stage.share < 1 for stage in load.stages)
    columns = (
        *(["blocks", "requests"] if shared else []),
        "in use",
        "wait",
        "decode",
        "run",
        "encode",
        "in",
        "out",
        "energy",
        *(["batch"] if batched else []),
    )
    shown = table("stage", *columns, right=columns)
    for stage in load.stages:
        seconds = (stage.wait_s, stage.decode_s, stage.run_s, stage.encode_s)
        shown.add_row(
            stage.device,
            *([f"{stage.start}–{stage.stop - 1}", f"{stage.share:.0%}"] if shared else []),
            f"{stage.utilisation:.0%}",
            *(units.show_duration(each) for each in seconds),
            *(units.show_size(round(each)) for each in (stage.bytes_in, stage.bytes_out)),
            f"{stage.energy_j:.3g} J{'' if stage.energy_by == 'sensor' else ' (model)'}",
            *([f"{stage.batch:.1f}"] if batched else []),
        )
    console().print(shown)
