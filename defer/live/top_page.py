"""One frame of `defer top`, from what a dispatcher says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from defer import units
from defer.api import DeploymentInfo, DeviceInfo, ServerStatus
from defer.event_log import EventInfo
from defer.live.rates import StageLoad, stage_loads

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

BAR: Final = 20
"""Characters of a bar that is full."""

STYLES: Final = {
    "ready": "green",
    "alive": "green",
    "announced": "yellow",
    "connecting": "yellow",
    "retired": "dim",
    "standby": "dim",
}
"""Colour of a state; those that are not here are bad."""

LEVELS: Final = {"warning": "yellow", "error": "red"}


def frame(
    address: str,
    before: ServerStatus | None,
    now: ServerStatus,
    events: Sequence[EventInfo],
    *,
    trouble: str = "",
) -> Group:
    """Everything at once.

    Args:
        address: Of the dispatcher.
        before: The look before this one, if any.
        now: The newest look.
        events: The last events, the oldest first.
        trouble: Why `now` is old, if it is.
    """
    from rich.console import Group
    from rich.text import Text

    loads = stage_loads(before, now)
    parts: list[Text | Table] = [_head(address, now, trouble), Text()]
    for info in now.deployments:
        parts += [_line(info), _stages(info, [load for load in loads if load.epoch == info.epoch]), Text()]
    waiting = [model for model in now.models if model.state == "announced"]
    parts += [Text(f"{model.name}: not ready, {model.reason}", "yellow") for model in waiting]
    if not now.deployments and not waiting:
        parts.append(Text("no model is deployed; `defer deploy MODEL` deploys one", "dim"))
    parts += [_devices(now.devices), Text()]
    parts += [_event(event) for event in events]
    return Group(*parts)


def _head(address: str, now: ServerStatus, trouble: str) -> Text:
    from rich.text import Text

    up = units.show_duration(round(now.uptime_s))
    text = Text.assemble(
        ("defer ", "bold"),
        f"{now.version} at {address}, up {up}; {units.show_count(now.held_requests, 'request')} held, ",
        units.show_size(now.held_bytes),
    )
    for name, counts in (("refused", now.refused), ("failed", now.failed)):
        if counts:
            text.append(
                f"; {name} {', '.join(f'{count} {code}' for code, count in sorted(counts.items()))}", "red"
            )
    if trouble:
        text.append(f"\n{trouble}", "bold red")
    return text


def _line(info: DeploymentInfo) -> Text:
    from rich.text import Text

    text = Text.assemble((info.model, "bold"), " ", (info.state, STYLES.get(info.state, "bold red")))
    if info.reason and info.state != "ready":
        text.append(f" ({info.reason})", "red")
    part = f", planned for {info.fraction:.0%} of the requests" if info.fraction < 1 else ""
    text.append(f"  deployment {info.epoch}{part}: {info.rate:.1f}/s")
    if info.answered:
        text.append(f", p50 {units.show_duration(info.p50_s)}, p99 {units.show_duration(info.p99_s)}")
    text.append(f"; {info.waiting} waiting, {info.in_flight} under way, {info.answered} answered")
    if info.cancelled:
        text.append(f", {info.cancelled} cancelled")
    if info.failed > info.cancelled:
        text.append(f", {info.failed - info.cancelled} failed", "red")
    return text


def _stages(info: DeploymentInfo, loads: Sequence[StageLoad]) -> Table:
    from rich.text import Text

    from defer.cli.output import table

    shown = table(
        "stage",
        "device",
        "blocks",
        "busy",
        "",
        "rate",
        "run",
        "queued",
        "out",
        "",
        right=("stage", "blocks", "rate", "run", "queued", "out"),
    )
    for stage, load in zip(info.stages, loads, strict=True):
        style = "bold red" if load.bottleneck else ""
        bar = "█" * round(BAR * load.utilisation)
        shown.add_row(
            str(load.number),
            stage.device,
            f"{stage.start}–{stage.stop - 1}",
            Text(f"{bar:░<{BAR}}", "red" if load.bottleneck else "cyan"),
            f"{load.utilisation:4.0%}",
            f"{load.rate:.1f}/s",
            units.show_duration(load.run_s) if stage.items else "",
            str(load.queued),
            f"{units.show_size(round(load.bytes_out_per_s))}/s",
            "◀ bottleneck" if load.bottleneck else "",
            style=style,
        )
    return shown


def _devices(devices: Sequence[DeviceInfo]) -> Table:
    from rich.text import Text

    from defer.cli.output import table

    shown = table(
        "device",
        "state",
        "engine",
        "done",
        "queued",
        "item age",
        "memory",
        right=("done", "queued", "item age", "memory"),
    )
    for device in devices:
        known = device.state != "unknown"
        memory = (
            f"{units.show_size(device.resident_bytes)}, {units.show_size(device.memory_bytes)} for partitions"
        )
        shown.add_row(
            device.name,
            Text(device.state, STYLES.get(device.state, "bold red")),
            device.engine,
            str(device.progress) if known else "",
            str(device.queued) if known else "",
            units.show_duration(round(device.item_age_s, 3)) if device.item_age_s else "",
            memory if known else "",
        )
    return shown


def _event(event: EventInfo) -> Text:
    from rich.text import Text

    at = datetime.fromtimestamp(event.at, UTC).astimezone()
    count = f" (×{event.count})" if event.count > 1 else ""
    return Text.assemble((f"{at:%H:%M:%S}  ", "dim"), (event.text + count, LEVELS.get(event.level, "")))
