"""`defer status`: what the dispatcher serves, on which devices, and how it goes."""

from __future__ import annotations

import time
from typing import Final

import click
import msgspec

from defer import units
from defer.api import DeploymentInfo, DeviceInfo, ServerStatus, StageInfo, StandbyInfo
from defer.cli.dispatcher import address_option
from defer.cli.engines import engine_lines, engine_notes
from defer.cli.output import common_options, console, examples, print_json, table
from defer.client import Client
from defer.errors import Cancelled
from node_agent.finite import Finite

CLOCK_S = 1.0
"""A clock that is off by this much is worth a line; answers take less to come."""

INSTEAD: Final = {"replica": "its other routes", "planning": "not known yet", "impossible": "nothing"}
"""What a model runs on after a loss for which there is no plan."""

CANCELLED = Cancelled.code
"""Requests that ended so failed nobody."""


@click.command(epilog=examples("defer status", "defer status --watch 1", "defer status --json"))
@click.option("--watch", type=Finite(0.1, 3600), help="Show it again every so many seconds.")
@address_option
@common_options
def command(watch: float | None, address: str, as_json: bool) -> None:
    """Show the dispatcher's deployments with their stages and traffic, and the agents."""
    with Client(address) as client:
        while True:
            status = client.status()
            if as_json:
                told = {k: v for k, v in msgspec.to_builtins(status).items() if k not in ("id", "t")}
                if watch is None:
                    print_json(told)
                else:  # a line each, so that a program knows where one ends
                    click.echo(msgspec.json.encode(told).decode())
            else:
                _show(status, address)
            if watch is None:
                return
            time.sleep(watch)


def _show(status: ServerStatus, address: str) -> None:
    out = console()
    click.echo(
        f"dispatcher at {address}, defer {status.version}, up {units.show_duration(round(status.uptime_s))}; "
        f"{units.show_count(status.held_requests, 'request')} held, {units.show_size(status.held_bytes)}"
    )
    waiting = [model for model in status.models if model.state == "announced"]
    for model in waiting:
        click.echo(f"{model.name}: not ready, {model.reason}")
    if not status.deployments and not waiting:
        click.echo("no model is deployed; `defer deploy MODEL` deploys one")
    # What only stands by takes no requests: it is told with the loss that it is for, and not as one more model.
    told = {each.epoch for each in status.standby}
    for deployment in status.deployments:
        if deployment.state == "standby" and deployment.epoch in told:
            continue
        _show_deployment(deployment)
        if deployment.stages:
            stages = table(
                "stage",
                "device",
                "engine",
                "blocks",
                "requests",
                "queued",
                "run",
                "bytes out",
                right=("stage", "blocks", "requests", "queued", "run", "bytes out"),
            )
            for number, stage in enumerate(deployment.stages, 1):
                stages.add_row(
                    str(number),
                    stage.device,
                    _engine(stage),
                    f"{stage.start}–{stage.stop - 1}",
                    str(stage.items),
                    str(stage.queued),
                    units.show_duration(stage.run_s) if stage.items else "",
                    units.show_size(stage.bytes_out),
                )
            out.print(stages)
            for line in engine_lines(engine_notes([deployment])):
                click.echo(f"  {line}")
    _show_standby(status.standby)
    _show_devices(status.devices)
    refused = ", ".join(f"{count} {code}" for code, count in sorted(status.refused.items()))
    failed = ", ".join(
        f"{count} {code}" for code, count in sorted(status.failed.items()) if code != CANCELLED
    )
    if refused:
        click.echo(f"refused: {refused}")
    if failed:
        click.echo(f"failed: {failed}")
    if gone := status.failed.get(CANCELLED, 0):
        click.echo(f"given up by their clients: {gone}")


def _show_deployment(deployment: DeploymentInfo) -> None:
    click.echo()
    why = f" ({deployment.reason})" if deployment.reason else ""
    part = f", planned for {deployment.fraction:.0%} of the requests" if deployment.fraction < 1 else ""
    click.echo(f"{deployment.model}: {deployment.state}{why}, deployment {deployment.epoch}{part}")
    if deployment.state == "standby":
        click.echo("  takes over when what serves is lost")
        return
    line = (
        f"  {deployment.answered} answered (the dispatcher's own canaries among them), "
        f"{deployment.failed - deployment.cancelled} failed, "
        + (f"{deployment.cancelled} cancelled, " if deployment.cancelled else "")
        + f"{deployment.in_flight} in flight, {deployment.waiting} waiting, {deployment.rate:.1f}/s"
    )
    if deployment.answered:
        line += f", p50 {units.show_duration(deployment.p50_s)}, p99 {units.show_duration(deployment.p99_s)}"
    click.echo(line)
    if deployment.compared:
        click.echo(
            f"  {deployment.compared} compared with the lossless pipeline: mean error {deployment.mean_error:.2%}, "
            f"worst {deployment.worst_error:.2%}, allowed {deployment.max_error:.2%}"
        )


def _show_standby(standby: tuple[StandbyInfo, ...]) -> None:
    if not standby:
        return
    shown = table("if lost", "model", "prepared", "then runs on", right=())
    for each in standby:
        prepared = f"{each.by}, deployment {each.epoch}" if each.by == "loaded" else each.by
        shown.add_row(each.lost, each.model, prepared, " → ".join(each.devices) or INSTEAD.get(each.by, ""))
    click.echo()
    console().print(shown)
    for each in standby:
        if each.reason:
            click.echo(f"  {each.model} without {each.lost}: {each.reason}")


def _show_devices(devices: tuple[DeviceInfo, ...]) -> None:
    shown = table(
        "device",
        "state",
        "engine",
        "heard",
        "done",
        "queued",
        "item age",
        "memory",
        right=("heard", "done", "queued", "item age", "memory"),
    )
    for device in devices:
        known = device.state != "unknown"
        shown.add_row(
            device.name,
            device.state,
            device.engine,
            f"{units.show_duration(round(device.heard_s, 3))} ago" if known else "",
            str(device.progress) if known else "",
            str(device.queued) if known else "",
            units.show_duration(round(device.item_age_s, 3)) if device.item_age_s else "",
            f"{units.show_size(device.resident_bytes)}, {units.show_size(device.memory_bytes)} for partitions"
            if known
            else "",
        )
    click.echo()
    console().print(shown)
    for device in devices:
        offset = device.clock_offset_s
        if offset is not None and abs(offset) >= CLOCK_S:
            side = "ahead of" if offset > 0 else "behind"
            click.echo(f"{device.name}: its clock is {abs(offset):.1f} s {side} the dispatcher's")
        if device.sensors:
            readings = ", ".join(f"{name} {value:.4g}" for name, value in sorted(device.sensors.items()))
            click.echo(f"{device.name}: {readings}")


def _engine(stage: StageInfo) -> str:
    return stage.engine + (f" {stage.precision}" if stage.precision != "fp32" else "")
