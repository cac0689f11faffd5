"""`defer events`: what happened in a dispatcher, and what happens."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Final

import click
import msgspec

from defer import api
from defer.admin import CONNECT_S, Admin
from defer.cli.dispatcher import address_option
from defer.cli.output import common_options, examples, note
from defer.errors import DispatcherUnreachable
from defer.event_log import EventInfo
from defer.units import show_count

AGAIN_S: Final = 0.5
"""Pause between two questions while following."""

COLOURS: Final = {"warning": "yellow", "error": "red"}


@click.command(epilog=examples("defer events", "defer events --follow", "defer events --json --last 10"))
@click.option("--follow", "-f", is_flag=True, help="Go on with what happens, until Ctrl-C.")
@click.option(
    "--after", default=0, type=click.IntRange(min=0), metavar="NUMBER", help="Only events after this one."
)
@click.option(
    "--last", default=256, show_default=True, type=click.IntRange(0, 1024), help="The newest so many."
)
@address_option
@common_options
def command(follow: bool, after: int, last: int, address: str, as_json: bool) -> None:
    """Show what happened: agents that join and go, deployments, routes that stand still, requests that failed.

    The dispatcher keeps the last 1,024. With --json each is one object on a line of its own.
    """
    boot, limit = "", last
    while True:
        try:
            with Admin(address) as admin:
                while True:
                    told = admin.ask(api.GetEvents(0, after, limit), api.Events, timeout=CONNECT_S)
                    if boot and told.boot != boot:
                        note("the dispatcher has started anew, and counts from 1", as_json=as_json)
                        boot, after = told.boot, 0
                        continue
                    boot, limit = told.boot, 1024
                    _show(told.events, after, as_json=as_json)
                    after = max(after, told.last)
                    if not follow:
                        return
                    time.sleep(AGAIN_S)
        except DispatcherUnreachable:
            if not (follow and boot):
                raise
            note("the dispatcher does not answer, trying again", as_json=as_json)


def _show(events: tuple[EventInfo, ...], after: int, *, as_json: bool) -> None:
    if after and events and events[0].seq > after + 1:
        note(f"no longer kept: {show_count(events[0].seq - after - 1, 'event')}", as_json=as_json)
    # Events that are put together are numbered when they are told, after later ones.
    for event in events if as_json else sorted(events, key=lambda each: (each.at, each.seq)):
        if as_json:
            click.echo(msgspec.json.encode(event).decode())
            continue
        at = datetime.fromtimestamp(event.at, UTC).astimezone()
        click.echo(f"{at:%Y-%m-%d %H:%M:%S}  {event.seq:>5}  {styled(event)}")


def styled(event: EventInfo) -> str:
    """An event's sentence as a terminal shows it."""
    text = event.text + (f" (×{event.count})" if event.count > 1 else "")
    colour = COLOURS.get(event.level)
    return click.style(text, fg=colour) if colour else text
