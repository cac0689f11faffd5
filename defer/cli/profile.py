"""`defer profile`: measure a model's blocks and the links on the agents of a cluster."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

import partitioner
from defer.access import security_for
from defer.agents import AgentPool
from defer.cli.access import access_options, warn_insecure
from defer.cli.chains import Shapes, analyze, blocks_option, input_option
from defer.cli.output import common_options, console, examples, progress, table
from defer.connecting import agent_hosts, connect_all
from defer.documents.address import parse_address
from defer.documents.base import encode
from defer.documents.cluster import Cluster
from defer.documents.profile import CostProfile, Created
from defer.hops import DISPATCHER
from defer.link_probe import probe_responder
from defer.paths import profile_cache
from defer.profiling import profile
from defer.units import show_bandwidth, show_duration
from defer.ways import with_fastest
from node_agent.finite import Finite


@click.command(
    epilog=examples(
        "defer profile resnet50.onnx --cluster cluster.toml -o profile.json",
        "defer profile bert.onnx --cluster cluster.toml --input input_ids=1,128 -o profile.json",
    )
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--cluster", "cluster_path", required=True, type=click.Path(path_type=Path), help="cluster.toml"
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write profile.json there.")
@input_option
@blocks_option()
@click.option("--force", is_flag=True, help="Overwrite --output even if it is something else.")
@click.option("--fresh", is_flag=True, help="Measure again what was measured before.")
@click.option("--wait", default=10.0, show_default=True, type=Finite(0.1, 3600), help="Seconds per agent.")
@access_options
@common_options
def command(
    model: Path,
    cluster_path: Path,
    output: Path | None,
    inputs: Shapes,
    blocks: int,
    force: bool,
    fresh: bool,
    wait: float,
    as_json: bool,
) -> None:
    """Measure a model's blocks on every agent, and the links between them.

    Block times are remembered by model, device and engine; links are measured every time.
    """
    cluster = Cluster.load(cluster_path)
    if output is not None:
        CostProfile.check_target(output, force=force)  # before minutes of measuring, not after
    chain = partitioner.coarsen(analyze(model, inputs, as_json=as_json), blocks)
    host = cluster.dispatcher.advertise or parse_address(cluster.dispatcher.listen).host
    security = security_for(("dispatcher",), [host, *agent_hosts(cluster)])
    if security.insecure:
        warn_insecure([host, *agent_hosts(cluster)], as_json=as_json)
    with (
        progress("profile", as_json=as_json) as step,
        tempfile.TemporaryDirectory(prefix="defer-profile-") as work,
        probe_responder(host, security) as here,
        AgentPool(DISPATCHER, security=security) as pool,
    ):
        cluster = with_fastest(cluster, security=security)
        connect_all(pool, cluster, timeout=wait)
        measured = profile(
            pool,
            cluster,
            model,
            chain,
            dispatcher=here,
            work=Path(work),
            cache=profile_cache(),
            fresh=fresh,
            on_step=lambda name, what, fraction: step(f"{name}: {what}", fraction),
        )
    measured = msgspec.structs.replace(
        measured, created=Created(at=datetime.now(UTC).isoformat(timespec="seconds"), by="defer profile")
    )
    if output is not None:
        measured.save(output, force=force)
    if as_json:
        click.echo(encode(measured).decode(), nl=False)
    else:
        _show(measured)


def _show(measured: CostProfile) -> None:
    out = console()
    devices = table(
        "device",
        "engine",
        "blocks",
        "whole model",
        "slowest block",
        right=("blocks", "whole model", "slowest block"),
    )
    for name, device in measured.devices.items():
        devices.add_row(
            name,
            device.engine,
            str(len(device.block_seconds)),
            show_duration(sum(device.block_seconds)),
            show_duration(max(device.block_seconds)),
        )
    out.print(devices)
    links = table("link", "bandwidth", "delay", right=("bandwidth", "delay"))
    for link in measured.links:
        links.add_row(
            f"{link.source} → {link.target}", show_bandwidth(link.bytes_per_s), show_duration(link.delay_s)
        )
    out.print(links)
