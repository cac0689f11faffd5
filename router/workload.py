"""What one route asks of every resource: the row of numbers behind joint planning, replicas and online routing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from router.instance import Floats, Instance
from router.paths import load_of
from router.route import Route, Share


def work_of(instance: Instance, route: Route) -> Floats:
    """(R,) busy seconds per request of devices, links and media, not divided by their free share."""
    load = np.zeros(instance.resources)
    codecs = {codec.name: at for at, codec in enumerate(instance.problem.codecs)}
    for transfer in route.transfers:
        if len(transfer.path) == 1:
            continue
        c, i = codecs[transfer.codec], transfer.boundary
        first, last = instance.index[transfer.path[0]], instance.index[transfer.path[-1]]
        hops = [instance.index[name] for name in transfer.path]
        path = tuple(instance.edge[pair] for pair in itertools.pairwise(hops))
        load_of(instance, path, float(instance.wire[c, i]), load)
        load[first] += instance.encode[c, first, i] / instance.free[first]
        load[last] += instance.decode[c, last, i] / instance.free[last]
    for stage in route.stages:
        u = instance.index[stage.device]
        seconds = instance.overhead[u] + instance.block[u, stage.start : stage.stop].sum()
        load[u] += seconds / instance.free[u]
    return load * instance.free


def mix_load(instance: Instance, shares: Sequence[Share]) -> Floats:
    """(R,) busy seconds per request and free share of each resource, when requests are dealt in these shares.

    The largest is the period.
    """
    load = sum(
        (share.fraction * work_of(instance, share.route) for share in shares), np.zeros(instance.resources)
    )
    return load / instance.free
