"""Which codecs the planner may use where, and what they cost: the router's codecs from a profile. Pure.

A lossy codec is on offer only where its error is known: without an error budget none is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

import router
from defer.documents.cluster import Cluster
from defer.documents.profile import CostProfile
from defer.errors import NoRoute, UsageError
from node_agent.codecs import CODECS, is_lossless

Errors = Mapping[str, Sequence[float]]
"""Per lossy codec, what it adds to the error at each boundary; infinite where it must not be used."""

NEVER: Final = float("inf")


def offered_codecs(
    boundaries: int,
    cluster: Cluster,
    profile: CostProfile | None,
    wanted: str,
    sink: str,
    errors: Errors | None = None,
) -> tuple[router.CodecCost, ...]:
    """What may travel encoded.

    Args:
        boundaries: L + 1.
        cluster: The devices.
        profile: What was measured; without it nothing is known of a codec, and none is taken but a wanted one.
        wanted: `raw`, `auto`, `every` (also those that bring nothing; to price a plan that is there), or the one codec
            between stages.
        sink: The router's name for where results go.
        errors: What lossy codecs do.

    Raises:
        UsageError: The wanted codec is lossy and no errors are given.
        NoRoute: The wanted codec was not measured.
    """
    if wanted == "raw":
        return (router.RAW,)
    if wanted in CODECS and not _harmless(wanted) and wanted not in (errors or {}):
        raise UsageError(
            f"codec {wanted!r} changes values, and no error budget is given",
            hint="say how much the output may change, for example --max-error 0.01",
        )
    names = sorted(profile.codecs) if profile else []
    usable = [name for name in names if name != "raw" and (_harmless(name) or name in (errors or {}))]
    offered = [_measured(profile, name, cluster, sink, errors or {}) for name in usable if profile]
    if wanted == "every":
        return (router.RAW, *offered)
    if wanted == "auto":
        return (router.RAW, *_undominated(offered, boundaries))
    return _only(wanted, offered, boundaries, cluster, sink, measured=profile is not None)


def _harmless(name: str) -> bool:
    """Whether a codec is known to give back every bit."""
    return name in CODECS and is_lossless(name)


def _measured(
    profile: CostProfile, name: str, cluster: Cluster, sink: str, errors: Errors
) -> router.CodecCost:
    having = {
        device: costs.codecs[name]
        for device, costs in profile.devices.items()
        if name in costs.codecs and device in cluster.names  # a profile may know one that is gone
    }
    error = np.array(errors.get(name, np.zeros(len(profile.positions))), np.float64)
    # Infinite seconds say that a codec must not be used; an infinite error is not a number to the router.
    barred = np.where(np.isfinite(error), 0.0, NEVER)
    encode = {device: (barred + cost.encode_s).tolist() for device, cost in having.items()}
    decode = {device: cost.decode_s for device, cost in having.items()}
    client, home = profile.client.get(name), cluster.dispatcher.device
    if client is not None:
        # Where the dispatcher has no agent, it is the client who encodes requests and decodes results.
        encode.setdefault(home, (barred + client.encode_s).tolist())
        decode.setdefault(sink, client.decode_s)
    finite = np.where(np.isfinite(error), error, 0.0)
    return router.CodecCost(name, profile.codecs[name], encode, decode, finite.tolist())


def _only(
    wanted: str,
    offered: Sequence[router.CodecCost],
    boundaries: int,
    cluster: Cluster,
    sink: str,
    *,
    measured: bool,
) -> tuple[router.CodecCost, ...]:
    """The one codec between stages, raw at both ends: infinite seconds forbid the other."""
    chosen = next((codec for codec in offered if codec.name == wanted), None)
    if chosen is None and measured:
        known = ", ".join(("raw", *(codec.name for codec in offered)))
        raise NoRoute(f"codec {wanted!r} was not measured on these devices", hint=f"measured were {known}")
    inner = [0 < boundary < boundaries - 1 for boundary in range(boundaries)]
    raw = router.CodecCost(
        "raw", encode={name: [NEVER if i else 0.0 for i in inner] for name in (*cluster.names, sink)}
    )
    if chosen is None:
        unmeasured = {device.name: [0.0 if i else NEVER for i in inner] for device in cluster.agents}
        return (raw, router.CodecCost(wanted, encode=unmeasured))
    encode = {
        name: [cost if i else NEVER for cost, i in zip(costs, inner, strict=True)]
        for name, costs in chosen.encode.items()
    }
    return (raw, replace(chosen, encode=encode))


def _undominated(codecs: Sequence[router.CodecCost], boundaries: int) -> tuple[router.CodecCost, ...]:
    """The codecs without those that bring nothing: planning takes time with the square of their number.

    A codec is of use at a boundary where it makes the tensors smaller and no other codec is as good in everything:
    bytes, error, and seconds on every device.
    """
    tables = [_table(codec, boundaries, _devices(codecs)) for codec in codecs]
    useful = []
    for at, own in enumerate(tables):
        of_use = (own[0] < 1) & np.isfinite(own[2:]).any(axis=0)
        for other, rival in enumerate(tables):
            as_good = (rival <= own).all(axis=0)
            # Of two that are equal in everything, the first stays.
            as_good &= (rival < own).any(axis=0) | (other < at)
            if other != at:
                of_use &= ~as_good
        if of_use.any():
            useful.append(codecs[at])
    return tuple(useful)


def _devices(codecs: Sequence[router.CodecCost]) -> list[str]:
    return sorted({name for codec in codecs for name in (*codec.encode, *codec.decode)})


def _table(codec: router.CodecCost, boundaries: int, devices: Sequence[str]) -> npt.NDArray[np.float64]:
    """Bytes (as a share), error, and seconds to encode and to decode on every device: rows by boundary."""
    never = np.full(boundaries, NEVER)
    rows = [1 / np.asarray(codec.ratio, np.float64), np.asarray(codec.error, np.float64)]
    rows += [np.asarray(codec.encode.get(name, never), np.float64) for name in devices]
    rows += [np.asarray(codec.decode.get(name, never), np.float64) for name in devices]
    return np.array([np.broadcast_to(row, boundaries) for row in rows])
