"""`defer init`: a commented cluster.toml from the agents that answer."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from defer.access import security_for
from defer.cli.access import access_options, warn_insecure
from defer.cli.output import common_options, console, examples, note, print_json, progress, table
from defer.cluster_writing import Findings, cluster_text
from defer.discovery import browse
from defer.documents.address import parse_address
from defer.documents.files import STDOUT, write_bytes
from defer.errors import AgentUnreachable, FileProblem, OutputExists, UsageError
from defer.finding import PORT, checked, findings, with_links
from defer.greeting import Greeted, Silent, Wanted, greet
from defer.units import show_bandwidth, show_duration, show_size
from node_agent.finite import Finite
from node_agent.quantities import is_name

LISTEN_S = 3.0
"""How long announcements are listened for."""


@click.command(
    epilog=examples(
        "defer init 10.0.0.2:7700 10.0.0.3:7700",
        "defer init jetson=10.0.0.2:7700 10.0.0.3:7700 -o edge.toml --keys ~/keys",
        "defer init                                     # agents that announce themselves",
        "defer init 10.0.0.2:7700 --no-links -o -",
    )
)
@click.argument("agents", nargs=-1, metavar="[NAME=]HOST:PORT...")
@click.option(
    "-o",
    "--output",
    default="cluster.toml",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Write the file there; - for standard output.",
)
@click.option("--force", is_flag=True, help="Overwrite a file that is there.")
@click.option(
    "--discover",
    is_flag=True,
    help="Add agents that announce themselves on the local network; so it is where no address is given.",
)
@click.option(
    "--links/--no-links",
    "measure",
    default=True,
    show_default=True,
    help="Measure what lies between any two devices, a quarter of a second per direction.",
)
@click.option(
    "--port",
    default=PORT,
    show_default=True,
    type=click.IntRange(1, 65533),
    help="The dispatcher's first port.",
)
@click.option(
    "--wait", default=5.0, show_default=True, type=Finite(0.1, 3600), help="Seconds for all agents."
)
@access_options
@common_options
def command(
    agents: tuple[str, ...],
    output: Path,
    force: bool,
    discover: bool,
    measure: bool,
    port: int,
    wait: float,
    as_json: bool,
) -> None:
    """Write a commented cluster.toml from the agents that answer.

    Without an address, agents are looked for that announce themselves (`defer agent --announce`). Each address is
    greeted; what answers is written with its name, memory and engines, and what lies between any two is measured.
    Addresses that stay silent are named in a comment. The file can be planned with at once.
    """
    wanted = [_wanted(text) for text in agents]
    _check_target(output, force=force)  # before seconds of measuring, not after
    if discover or not wanted:
        wanted += _announced(as_json=as_json)
    hosts = [each.address.host for each in wanted]
    security = security_for(("dispatcher",), hosts)
    if security.insecure:
        warn_insecure(hosts, as_json=as_json)
    with progress("init", as_json=as_json) as step:
        done: list[Greeted] = []

        def ended(one: Greeted) -> None:
            done.append(one)
            step(
                f"{one.address} {'failed' if isinstance(one, Silent) else 'answered'}",
                len(done) / len(wanted),
            )

        step("greeting agents", 0.0)
        greeted = greet(wanted, security=security, timeout=wait, on_end=ended)
        found = findings(greeted, port=port, at=f"{datetime.now(UTC):%Y-%m-%d}")
        if measure:
            found = with_links(found, security=security, timeout=wait, on_step=step)
    text = cluster_text(found)
    checked(text)
    write_bytes(output, text.encode())
    if str(output) == STDOUT:
        return
    if as_json:
        print_json(_told(found, output))
    else:
        _show(found, output)


def _wanted(text: str) -> Wanted:
    name, equals, address = text.rpartition("=")
    if equals and not is_name(name):
        raise UsageError(f"{name!r} is not a device's name", hint="write NAME=HOST:PORT, or HOST:PORT alone")
    return Wanted(parse_address(address, "the agent's address"), name)


def _announced(*, as_json: bool) -> list[Wanted]:
    with progress("init", as_json=as_json) as step:
        step("listening for agents", 0.0)
        heard = browse(LISTEN_S, ["agent"])
    if not heard:
        raise AgentUnreachable(
            f"no agent announced itself within {LISTEN_S:g} s",
            hint="start agents with --announce, or give addresses: `defer init 10.0.0.2:7700 10.0.0.3:7700`",
        )
    return [Wanted(address, one.name) for one in heard for address in one.addresses]


def _check_target(output: Path, *, force: bool) -> None:
    if str(output) == STDOUT:
        return
    if not output.resolve().parent.is_dir():
        raise FileProblem(
            "its directory does not exist", where=str(output), hint="create it, or write elsewhere"
        )
    if not force and output.is_file() and output.stat().st_size:
        raise OutputExists(
            "exists, and people write such files",
            where=str(output),
            hint="choose another name with -o, or overwrite it with --force",
        )


def _told(found: Findings, output: Path) -> dict[str, object]:
    return {
        "path": str(output),
        "listen": found.listen,
        "devices": [
            {
                "name": device.name,
                "address": device.address,
                "memory_bytes": device.offer.memory_bytes,
                "engines": [each.name for each in device.offer.engines if not each.missing],
            }
            for device in found.devices
        ],
        "links": found.links,
        "silent": dict(found.silent),
    }


def _show(found: Findings, output: Path) -> None:
    out = console()
    devices = table("device", "address", "memory", "engines", right=("memory",))
    for device in found.devices:
        engines = ", ".join(each.name for each in device.offer.engines if not each.missing)
        devices.add_row(device.name, device.address, show_size(device.offer.memory_bytes), engines)
    out.print(devices)
    if found.links:
        links = table("link", "bandwidth", "delay", right=("bandwidth", "delay"))
        for link in found.links:
            rate = "–" if link.bytes_per_s is None else show_bandwidth(link.bytes_per_s)
            delay = "–" if link.delay_s is None else show_duration(link.delay_s)
            links.add_row(f"{link.source} → {link.target}", rate, delay)
        out.print(links)
    for link in found.links:
        if link.problem:
            note(f"{link.source} → {link.target} carries nothing: {link.problem}")
    for address, why in found.silent.items():
        note(f"{address} is not in the file: {why}")
    note(
        f"wrote {output}; next: defer plan MODEL.onnx --cluster {output}, "
        f"or at once: defer serve --cluster {output} --model MODEL.onnx"
    )
