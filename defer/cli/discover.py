"""`defer discover`: agents and dispatchers that announce themselves on the local network."""

from __future__ import annotations

import click

from defer.cli.output import common_options, console, examples, note, print_json, progress, table
from defer.discovery import browse
from node_agent.finite import Finite


@click.command(epilog=examples("defer discover", "defer discover --seconds 10 --json"))
@click.option(
    "--seconds",
    default=3.0,
    show_default=True,
    type=Finite(0.1, 600),
    help="How long to listen.",
)
@common_options
def command(seconds: float, as_json: bool) -> None:
    """List agents and dispatchers that announce themselves (`--announce`) on the local network.

    An announcement is a hint that anybody there can send: nothing is connected, and nothing is believed. `defer init`
    greets what it finds.
    """
    with progress("discover", as_json=as_json) as step:
        step("listening", 0.0)
        heard = browse(seconds, on_found=lambda one: step(f"{one.kind} {one.name}", 0.0))
    if as_json:
        print_json(
            [
                {
                    "kind": each.kind,
                    "name": each.name,
                    "addresses": [str(address) for address in each.addresses],
                    "keys": each.keys,
                }
                for each in heard
            ]
        )
        return
    if not heard:
        note("nothing announces itself here; agents do with `defer agent --announce`")
        return
    shown = table("", "name", "address", "keys")
    for each in heard:
        addresses = ", ".join(str(address) for address in each.addresses)
        shown.add_row(each.kind, each.name or "–", addresses, "needed" if each.keys else "none")
    console().print(shown)
