"""A `cluster.toml` with comments, from what was found and measured. Pure: values in, text out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from defer.documents.cluster import loads_cluster
from defer.units import format_bandwidth, format_duration, format_size
from node_agent.messages import Offer

ALIKE = 1.25
"""Directions of a link whose bandwidths differ by no more are written as one."""

MEBIBYTE = 1024 * 1024

LONGEST_COMMENT = 100
"""Characters of what an agent says of itself."""


@dataclass(frozen=True, slots=True)
class FoundDevice:
    """An agent: what it is called, where it answers as `host:port`, what it offers, and where it answers as well."""

    name: str
    address: str
    offer: Offer
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FoundLink:
    """One direction of a link; `problem` says why it carries nothing, and then nothing was measured.

    Attributes:
        source: Sending device.
        target: Receiving device.
        bytes_per_s: Bandwidth; None where it was not measured.
        delay_s: One-way delay, likewise.
        problem: Why they cannot talk.
    """

    source: str
    target: str
    bytes_per_s: float | None = None
    delay_s: float | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Findings:
    """What goes into the file.

    Attributes:
        devices: Agents that answered.
        links: Directions that were tried; empty where none was.
        listen: Where the dispatcher is to listen, `host:port`.
        advertise: Host that agents reach it at, where `listen` names all interfaces.
        silent: Why, by address that did not answer.
        at: When, for the comment at the top.
        home: Name of the dispatcher's device.
    """

    devices: Sequence[FoundDevice]
    links: Sequence[FoundLink] = ()
    listen: str = "127.0.0.1:7600"
    advertise: str = ""
    silent: Mapping[str, str] = field(default_factory=dict)
    at: str = ""
    home: str = "dispatcher"


def cluster_text(found: Findings) -> str:
    """The file.

    Raises:
        InvalidCluster: What was found makes no cluster, for instance two agents of one name.
    """
    parted = [link for link in found.links if link.problem]
    lines = [
        f"# Written by `defer init`{f' on {found.at}' if found.at else ''} from what answered. Edit it as you like:",
        "# docs/cluster.md has every key, and `defer schema cluster` the JSON Schema.",
        "version = 1",
        "",
        "[dispatcher]                  # where requests enter and results leave: `defer serve`, on this machine",
        f"listen = {_text(found.listen)}",
    ]
    if found.advertise:
        lines.append(f"advertise = {_text(found.advertise)}")
    lines += ["", "[network]"]
    if parted:
        lines.append("mesh = false                  # only devices that a [[link]] joins may talk")
    else:
        lines.append("mesh = true                   # every two devices may talk")
    lines.append(
        'codec = "auto"                # how tensors travel between stages: planned from what was measured'
    )
    for device in found.devices:
        lines += ["", *_device(device)]
    for address, why in found.silent.items():
        lines += ["", f"# {_comment(address)} did not answer: {_comment(why)}"]
    if found.links:
        lines += [
            "",
            "# Measured. A figure here goes before what `defer profile` and `defer serve` measure: take",
            "# `bandwidth` and `delay` out of a link to have it measured each time.",
        ]
    for link in parted:
        lines.append(f"# {link.source} -> {link.target} carries nothing: {_comment(link.problem)}")
    for entry in _links([link for link in found.links if not link.problem]):
        lines += ["", *entry]
    text = "\n".join(lines) + "\n"
    loads_cluster(text, "what `defer init` found")
    return text


def _device(device: FoundDevice) -> list[str]:
    offer = device.offer
    lines = [
        "[[device]]",
        f"name = {_text(device.name)}",
        f"address = {_text(device.address)}",
    ]
    if device.also:
        others = ", ".join(_text(each) for each in device.also)
        lines.append(f"also = [{others}]  # the fastest that answers is used")
    memory = offer.memory_bytes // MEBIBYTE * MEBIBYTE
    if memory:
        stated = f"memory = {_text(format_size(memory))}"
        lines.append(f"{stated:<29} # what its agent offers; less leaves room for others")
    runs = ", ".join(
        f"{engine.name} {engine.version}".strip() for engine in offer.engines if not engine.missing
    )
    lines.append(f'engine = "auto"               # it can run {_comment(runs) or "none"}')
    lines.append(f"# {offer.cores:g} cores, {offer.threads} engine threads")
    return lines


def _links(links: Sequence[FoundLink]) -> list[list[str]]:
    """One entry for both directions where they are alike, else one for each."""
    by_pair = {(link.source, link.target): link for link in links}
    entries = []
    for (source, target), link in by_pair.items():
        back = by_pair.get((target, source))
        if back is None or not _alike(link, back):
            entries.append(
                ["[[link]]", f"from = {_text(source)}", f"to = {_text(target)}", *_figures(link, link)]
            )
        elif (source, target) < (target, source):
            names = f"between = [{_text(source)}, {_text(target)}]"
            entries.append(["[[link]]", names, *_figures(link, back)])
    return entries


def _alike(link: FoundLink, back: FoundLink) -> bool:
    if link.bytes_per_s is None or back.bytes_per_s is None:
        return link.bytes_per_s is back.bytes_per_s
    slow, fast = sorted((link.bytes_per_s, back.bytes_per_s))
    return fast <= ALIKE * slow


def _figures(link: FoundLink, back: FoundLink) -> list[str]:
    """The slower direction's figures: a plan that counts on less is kept."""
    lines = []
    rates = [each.bytes_per_s for each in (link, back) if each.bytes_per_s is not None]
    delays = [each.delay_s for each in (link, back) if each.delay_s is not None]
    if rates:
        # In bits, so that what is written is what was rounded.
        lines.append(f"bandwidth = {_text(format_bandwidth(_rounded(8 * min(rates)) / 8))}")
    if delays:
        lines.append(f"delay = {_text(format_duration(_rounded(max(delays))))}")
    return lines


def _rounded(value: float) -> float:
    """Three digits: a measured figure has no more."""
    return float(f"{value:.3g}")


def _text(value: str) -> str:
    return json.dumps(value)


def _comment(text: str) -> str:
    """What an agent said, as part of a comment: one line of printable characters."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(plain.split())[:LONGEST_COMMENT]
