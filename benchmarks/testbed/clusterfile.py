"""The `cluster.toml` that a bed writes for `defer`: the devices' real addresses, and links where it must know."""

from __future__ import annotations

import json

from benchmarks.testbed.layout import Layout
from benchmarks.testbed.spec import AGENT_PORT, DISPATCHER_PORT, Link, Spec
from defer import units


def cluster_toml(layout: Layout) -> str:
    """The document as text.

    Links are left out where every two devices may talk and the bed does not declare them: they are measured then,
    as on real boxes. A shared medium cannot be measured link by link, so it is always told.
    """
    spec = layout.spec
    lines = ["# Written by the testbed.", "[dispatcher]", _text("device", spec.dispatcher)]
    lines.append(_text("listen", f"{layout.address(spec.dispatcher)}:{DISPATCHER_PORT}"))
    if not spec.full_mesh:
        lines += ["", "[network]", "mesh = false"]
    for device in spec.devices:
        lines += ["", "[[device]]", _text("name", device.name)]
        if device.agent:
            lines.append(_text("address", f"{layout.address(device.name)}:{AGENT_PORT}"))
        if not device.computes:
            lines.append("computes = false")
    for link in spec.links:
        lines += _link(spec, link)
    return "\n".join(lines) + "\n"


def _link(spec: Spec, link: Link) -> list[str]:
    said = []
    bandwidth = link.bandwidth if link.medium is None else spec.media[link.medium]
    if spec.declare and bandwidth is not None:
        said.append(_text("bandwidth", units.format_bandwidth(bandwidth)))
    if spec.declare:
        said.append(_text("delay", units.format_duration(link.delay)))
    if link.medium is not None:
        said.append(_text("medium", link.medium))
    if not said and spec.full_mesh:
        return []
    return ["", "[[link]]", _text("from", link.source), _text("to", link.target), *said]


def _text(key: str, value: str) -> str:
    # A JSON string is a TOML basic string as long as it is plain text, which all of these are.
    return f"{key} = {json.dumps(value, ensure_ascii=False)}"
