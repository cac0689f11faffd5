"""What a cut costs the devices at both ends beside the time on the link. Pure.

Moving tensors takes them copies, kernel and process, by the byte that is sent; and partitions run a little longer than
the blocks in them (`defer.span_costs`), by the boundary. By the byte counts what was measured over the device's links,
or within the device if that is more: over a slow link bytes come in many small pieces, each with work of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median

import numpy as np
import numpy.typing as npt

import router
from defer.documents.profile import CostProfile, DeviceProfile


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
    sending = {
        name: _usual(link.send_byte_s for link in profile.links if link.source == name) for name in known
    }
    receiving = {
        name: _usual(link.receive_byte_s for link in profile.links if link.target == name) for name in known
    }
    sizes = np.asarray(boundary_bytes, np.float64)
    return tuple(_moved(codec, known, sizes, devices, sending, receiving) for codec in codecs)


def _usual(measured: Iterable[float]) -> float:
    """The median of what was measured; 0 where nothing was."""
    return median([seconds for seconds in measured if seconds] or [0.0])


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
