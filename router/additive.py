"""Quantities that add up along a route: latency, money, energy, error, and priced load.

Every such quantity is one set of edge costs on the layered graph; a weighted sum of them is one too. That is
what lets one shortest-path routine serve every objective.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from router.instance import Floats, Instance


@dataclass(frozen=True, slots=True, eq=False)
class Additive:
    """Edge costs of one quantity.

    Attributes:
        block: (n, L). start: (n,) once per stage. encode, decode: (K, n, L+1).
        hop: (m,) per hop. per_byte: (m,) per byte on the wire.
    """

    block: Floats
    start: Floats
    encode: Floats
    decode: Floats
    hop: Floats
    per_byte: Floats

    def hops(self, wire: Floats) -> Floats:
        """Cost of every link at the given bytes on the wire: (m,), or (K, m) for K sizes."""
        cost: Floats = self.hop + wire[..., None] * self.per_byte
        return cost


def _scaled(table: Floats, factor: Floats | float) -> Floats:
    """`factor * table` where an infinite entry means 'cannot' and stays infinite for every factor."""
    return np.where(np.isinf(table), np.inf, np.where(np.isinf(table), 0.0, table) * factor)


def latency(instance: Instance) -> Additive:
    """Seconds from source to sink."""
    return Additive(
        block=instance.block,
        start=instance.overhead + instance.wait,
        encode=instance.encode,
        decode=instance.decode,
        hop=instance.delay + instance.hop_wait,
        per_byte=instance.seconds_per_byte + instance.crypt.sum(axis=1),
    )


def priced(instance: Instance, per_second: Floats, per_byte: Floats, media: Floats | None = None) -> Additive:
    """Busy seconds of each device times a price, plus bytes on each link times a price.

    Args:
        instance: the compiled problem.
        per_second: (n,) price of a busy second of each device.
        per_byte: (m,) price of a byte on each link.
        media: (media,) price of a busy second of each shared medium.
    """
    by_link = (
        per_byte
        + instance.crypt[:, 0] * per_second[instance.src]
        + instance.crypt[:, 1] * per_second[instance.dst]
    )
    if media is not None and len(media):
        shared = np.where(instance.medium >= 0, media[np.maximum(instance.medium, 0)], 0.0)
        by_link = by_link + shared * instance.seconds_per_byte
    column = per_second[:, None]
    return Additive(
        block=_scaled(instance.block, column),
        start=instance.overhead * per_second,
        encode=_scaled(instance.encode, column),
        decode=_scaled(instance.decode, column),
        hop=np.zeros(len(instance.src)),
        per_byte=by_link,
    )


def cost(instance: Instance) -> Additive:
    """Money per request."""
    return priced(instance, instance.price, instance.link_price)


def energy(instance: Instance) -> Additive:
    """Joules per request."""
    return priced(instance, instance.power, instance.link_power)


def error(instance: Instance) -> Additive:
    """Error added by the codecs; counted where a tensor is encoded."""
    cannot = np.where(np.isinf(instance.encode), np.inf, 0.0)
    return Additive(
        block=np.where(np.isinf(instance.block), np.inf, 0.0),
        start=np.zeros(instance.n),
        encode=cannot + instance.error[:, None, :],
        decode=np.where(np.isinf(instance.decode), np.inf, 0.0),
        hop=np.zeros(len(instance.src)),
        per_byte=np.zeros(len(instance.src)),
    )


def weighted(parts: list[tuple[float, Additive]]) -> Additive:
    """Weighted sum of quantities; the weights must not be negative."""
    return Additive(
        block=sum((_scaled(part.block, w) for w, part in parts), np.zeros(())),
        start=sum((w * part.start for w, part in parts), np.zeros(())),
        encode=sum((_scaled(part.encode, w) for w, part in parts), np.zeros(())),
        decode=sum((_scaled(part.decode, w) for w, part in parts), np.zeros(())),
        hop=sum((w * part.hop for w, part in parts), np.zeros(())),
        per_byte=sum((w * part.per_byte for w, part in parts), np.zeros(())),
    )
