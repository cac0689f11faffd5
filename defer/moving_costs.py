"""What moving tensors costs the devices at both ends beside the time on the link: copies, kernel, process. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

import router
from defer.documents.profile import CostProfile


def with_moving(
    codecs: Sequence[router.CodecCost],
    profile: CostProfile | None,
    boundary_bytes: Sequence[int],
    devices: Sequence[str],
) -> tuple[router.CodecCost, ...]:
    """The codecs with what the encoded bytes cost added: half where they are sent, half where they are received.

    Args:
        codecs: What may travel how.
        profile: What was measured.
        boundary_bytes: Raw bytes of each boundary.
        devices: Every device that may send or receive.
    """
    rates = {name: device.byte_s for name, device in profile.devices.items()} if profile else {}
    if not any(rates.values()):
        return tuple(codecs)
    return tuple(_moved(codec, rates, np.asarray(boundary_bytes, np.float64), devices) for codec in codecs)


def _moved(
    codec: router.CodecCost, rates: dict[str, float], nbytes: npt.NDArray[np.float64], devices: Sequence[str]
) -> router.CodecCost:
    sent = nbytes / np.asarray(codec.ratio, np.float64)

    def added(table: dict[str, Sequence[float]]) -> dict[str, Sequence[float]]:
        # An empty table is free for everybody; a device that a table leaves out cannot use the codec at all.
        known = table or {name: [0.0] * len(nbytes) for name in devices}
        return {
            name: (np.asarray(seconds, np.float64) + sent * rates.get(name, 0.0) / 2).tolist()
            for name, seconds in known.items()
        }

    return replace(codec, encode=added(dict(codec.encode)), decode=added(dict(codec.decode)))
