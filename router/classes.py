"""Devices that are interchangeable, so that a planner need not tell them apart.

Two devices belong together when swapping them changes nothing: same blocks, memory, overheads, codecs, and the same
links to everybody else. Four equal boards then give 5 subsets to look at, not 16.
"""

from __future__ import annotations

import numpy as np

from router.instance import Instance


def _own(instance: Instance, u: int) -> tuple[bytes, ...]:
    scalars = np.array(
        [
            instance.overhead[u],
            instance.wait[u],
            instance.memory[u],
            instance.free[u],
            instance.power[u],
            instance.price[u],
        ]
    )
    tables = (instance.block[u], instance.encode[:, u], instance.decode[:, u], scalars)
    return tuple(np.ascontiguousarray(table).tobytes() for table in tables)


def interchangeable(instance: Instance) -> list[list[int]]:
    """Groups of the devices that can compute; source and sink stand alone."""
    n, m = instance.n, len(instance.src)
    # One number per kind of link, so that rows of links can be compared at once. Links on a shared medium stay
    # apart: whoever sends, the medium is the same, but its members are not interchangeable with others.
    columns = [
        instance.seconds_per_byte,
        instance.delay,
        instance.hop_wait,
        instance.crypt[:, 0],
        instance.crypt[:, 1],
        instance.medium.astype(float),
        instance.free[n : n + m],
        instance.link_power,
        instance.link_price,
    ]
    kind = np.zeros((n, n), np.int64)
    if m:
        _, label = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
        kind[instance.src, instance.dst] = label.reshape(-1) + 1
    alone = {instance.source, instance.sink}
    groups: list[list[int]] = []
    by_own: dict[tuple[bytes, ...], list[list[int]]] = {}
    for u in np.flatnonzero(np.isfinite(instance.block).any(axis=1)).tolist():
        if u in alone:
            groups.append([u])
            continue
        candidates = by_own.setdefault(_own(instance, u), [])
        for group in candidates:
            v = group[0]
            others = np.ones(n, bool)
            others[[u, v]] = False
            if (
                kind[u, v] == kind[v, u]
                and (kind[u, others] == kind[v, others]).all()
                and (kind[others, u] == kind[others, v]).all()
            ):
                group.append(u)
                break
        else:
            candidates.append([u])
            groups.append(candidates[-1])
    return groups
