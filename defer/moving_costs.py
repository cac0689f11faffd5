"""What a cut costs the devices at both ends beside the time on the link. Pure.

Moving tensors takes them copies, kernel and process, by the byte that is sent; and partitions run a little longer than
the blocks in them (`defer.span_costs`), by the boundary. By the byte counts what was measured over the device's links,
or within the device if that is more: over a slow link bytes come in many small pieces, each with work of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median

import msgspec
import numpy as np
import numpy.typing as npt

import router
from defer.documents.profile import CostProfile, DeviceProfile, LinkProfile

LEVEL = 1.5
"""Links that differ by no more than this factor are of one speed."""


def with_moving(
    codecs: Sequence[router.CodecCost],
    profile: CostProfile | None,
    boundary_bytes: Sequence[int],
    devices: Sequence[str],
) -> tuple[router.CodecCost, ...]:
    """The codecs with what a cut costs added: half where tensors are sent, half where they are received.

    Args:
        codecs: What may travel how.
        profile: What was measured.
        boundary_bytes: Raw bytes of each boundary.
        devices: Every device that may send or receive.
    """
    known = profile.devices if profile else {}
    if profile is None or not any(device.byte_s or device.cut_seconds for device in known.values()):
        return tuple(codecs)
    links = _of_one_kind(profile.links, {name: device.fingerprint for name, device in known.items()})
    sending = {name: _usual(link.send_byte_s for link in links if link.source == name) for name in known}
    receiving = {name: _usual(link.receive_byte_s for link in links if link.target == name) for name in known}
    sizes = np.asarray(boundary_bytes, np.float64)
    return tuple(_moved(codec, known, sizes, devices, sending, receiving) for codec in codecs)


def _usual(measured: Iterable[float]) -> float:
    """The median of what was measured; 0 where nothing was."""
    return median([seconds for seconds in measured if seconds] or [0.0])


def _of_one_kind(links: Sequence[LinkProfile], kinds: Mapping[str, str]) -> list[LinkProfile]:
    """Links with the median of what a byte costs at either end of links that are alike.

    That is a property of the devices' kinds and of the link's speed, which sets how small the pieces are in which bytes
    come; a probe short enough for many links tells it badly. Boards of one kind also stay alike for the planner.

    `kinds` has the devices' by name; a device that is not there is of its own kind.
    """
    groups: dict[tuple[str, str], list[LinkProfile]] = {}
    for link in links:
        ends = kinds.get(link.source, link.source), kinds.get(link.target, link.target)
        groups.setdefault(ends, []).append(link)
    found: dict[tuple[str, str], LinkProfile] = {}
    for group in groups.values():
        for level in _levels(group):
            send = _usual(link.send_byte_s for link in level)
            receive = _usual(link.receive_byte_s for link in level)
            for link in level:
                known = msgspec.structs.replace(link, send_byte_s=send, receive_byte_s=receive)
                found[link.source, link.target] = known
    return [found[link.source, link.target] for link in links]


def _levels(links: Iterable[LinkProfile]) -> list[list[LinkProfile]]:
    """Links of nearly one speed each, slowest first."""
    levels: list[list[LinkProfile]] = []
    for link in sorted(links, key=lambda link: link.bytes_per_s):
        if not levels or link.bytes_per_s > LEVEL * levels[-1][0].bytes_per_s:
            levels.append([])
        levels[-1].append(link)
    return levels


def _moved(
    codec: router.CodecCost,
    known: Mapping[str, DeviceProfile],
    nbytes: npt.NDArray[np.float64],
    devices: Sequence[str],
    sending: Mapping[str, float],
    receiving: Mapping[str, float],
) -> router.CodecCost:
    sent = nbytes / np.asarray(codec.ratio, np.float64)

    def per_end(name: str, over_links: Mapping[str, float]) -> npt.NDArray[np.float64]:
        device = known.get(name)
        if device is None:
            return np.zeros(len(nbytes))
        cuts = np.asarray(device.cut_seconds or 0.0, np.float64)
        return sent * max(device.byte_s / 2, over_links[name]) + cuts / 2

    def added(
        table: dict[str, Sequence[float]], over_links: Mapping[str, float]
    ) -> dict[str, Sequence[float]]:
        # An empty table is free for everybody; a device that a table leaves out cannot use the codec at all.
        costs = table or {name: [0.0] * len(nbytes) for name in devices}
        return {
            name: (np.asarray(seconds, np.float64) + per_end(name, over_links)).tolist()
            for name, seconds in costs.items()
        }

    return replace(
        codec,
        encode=added(dict(codec.encode), sending),
        decode=added(dict(codec.decode), receiving),
    )
