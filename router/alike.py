"""Devices and links that are nearly alike, taken for alike: what makes a measured cluster small enough to solve.

Eight boards of one kind never measure quite the same. Told apart they are 2⁸ subsets of devices for the stage-by-stage
program; taken for the fastest of them they are a count from 0 to 8. What the program then proves is still a bound for
the true cluster, since nothing became slower, and the routes that it finds are measured there, with the true numbers.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from router.instance import Floats, Instance

NEARLY = (0.05, 0.1, 0.2)
"""Devices and links whose numbers differ by no more than such a part are taken for alike: by the least of them that
makes the problem small. Measuring them again would change them by the first; a single link may be off by the others."""

SOON = 0.2e-3
"""Seconds of delay that make no difference."""


MOST = 64
"""Kinds of devices; a cluster of more is not made small enough by this."""


def alike(instance: Instance, nearly: float = NEARLY[0]) -> Instance:
    """The instance with the best of nearly equal numbers in the place of each; nothing in it is slower or smaller.

    Args:
        instance: Devices and links as they are.
        nearly: Part by which numbers may differ.

    Returns:
        The instance itself where its devices are of more than `MOST` kinds.
    """
    families = _families(instance, nearly)
    if len(families) > MOST:
        return instance
    n, m = instance.n, len(instance.src)
    tables: dict[str, Floats] = {
        "block": instance.block.copy(),
        "encode": instance.encode.copy(),
        "decode": instance.decode.copy(),
    }
    rows: dict[str, Floats] = {
        name: getattr(instance, name).copy() for name in ("overhead", "wait", "memory", "power", "price")
    }
    free = instance.free.copy()
    for group in families:
        for name, table in tables.items():
            axis = 0 if name == "block" else 1
            best = np.take(table, group, axis).min(axis, keepdims=True)
            if axis == 0:
                table[group] = best
            else:
                table[:, group] = best
        for name, row in rows.items():
            row[group] = row[group].max() if name == "memory" else row[group].min()
        free[group] = free[group].max()
    links = free[n : n + m]
    free[n : n + m] = 1 / _leveled(1 / links, nearly) if m else links
    return replace(
        instance,
        block=tables["block"],
        encode=tables["encode"],
        decode=tables["decode"],
        overhead=rows["overhead"],
        wait=rows["wait"],
        memory=rows["memory"],
        power=rows["power"],
        price=rows["price"],
        free=free,
        seconds_per_byte=_leveled(instance.seconds_per_byte, nearly),
        delay=_leveled(instance.delay, nearly, SOON),
        hop_wait=_leveled(instance.hop_wait, nearly, SOON),
        crypt=np.stack([_leveled(instance.crypt[:, end], nearly) for end in (0, 1)], axis=1),
        link_power=_leveled(instance.link_power, nearly),
        link_price=_leveled(instance.link_price, nearly),
    )


def _families(instance: Instance, nearly: float) -> list[list[int]]:
    """Devices that compute, source and sink aside, each with those that are nearly like the first of its family."""
    families: list[tuple[Floats, list[int]]] = []
    for u in np.flatnonzero(np.isfinite(instance.block).any(axis=1)).tolist():
        if u in (instance.source, instance.sink):
            continue
        numbers = np.concatenate(
            [
                instance.block[u],
                instance.encode[:, u].ravel(),
                instance.decode[:, u].ravel(),
                [instance.overhead[u], instance.wait[u], instance.memory[u], instance.free[u]],
                [instance.power[u], instance.price[u]],
            ]
        )
        for first, members in families:
            if _near(first, numbers, nearly):
                members.append(u)
                break
        else:
            families.append((numbers, [u]))
            if len(families) > MOST:
                break
    return [members for _, members in families]


def _near(a: Floats, b: Floats, nearly: float) -> bool:
    """Whether no two numbers differ by more than that part; infinite ones are only like each other."""
    return bool(np.all((a == b) | (np.maximum(a, b) <= (1 + nearly) * np.minimum(a, b))))


def _leveled(values: Floats, nearly: float, least: float = 0.0) -> Floats:
    """Each number lowered to the smallest one that is nearly like it."""
    level = np.empty_like(values)
    start = -np.inf
    for at in np.argsort(values, kind="stable"):
        if not values[at] <= max(start * (1 + nearly), start + least):
            start = values[at]
        level[at] = start
    return level
