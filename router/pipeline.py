"""Stage-by-stage plans for one stage per device: what a stage and a transfer cost, and back to a route.

Two uses of the same program: the least period (combine by `maximum`; every transfer takes the widest path), and the
least of what adds up while no stage and no link takes longer than a given period (combine by `add`; every transfer
takes the cheapest path among the links that are fast enough). Both leave out that transfers may share links, that
the source's encoding and the sink's decoding add to other work on those devices, and the encryption work of devices;
so the value is a lower bound, and the optimum whenever the route measured attains it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from router import additive
from router.additive import Additive
from router.chain import ChainCosts, ChainPlan, best_chain, effort
from router.classes import interchangeable
from router.instance import Floats, Instance
from router.paths import ShortestPaths, load_of
from router.route import Route, Stage, Transfer

EFFORT = 3e9  # operations of the program; about ten seconds


@dataclass(frozen=True, slots=True, eq=False)
class Pipeline:
    """Tables of one instance that do not depend on the objective.

    Attributes:
        groups: interchangeable devices, one class each.
        airtime: (m,) seconds per byte that a link is busy, or its medium if that is slower, per free share.
        stage_load: per class (K, L+1, L+1, K) busy seconds per free share of arriving in c, running [i, j) and
            leaving in d; inf where memory, a block or a codec forbids it.
    """

    instance: Instance
    groups: list[list[int]]
    airtime: Floats

    @property
    def max_stages(self) -> int:
        """Stages that limits and devices allow."""
        instance = self.instance
        return min(
            instance.problem.max_stages or instance.blocks, instance.blocks, sum(map(len, self.groups))
        )

    @property
    def effort(self) -> float:
        """Operations of one run of the program."""
        sizes = [len(group) for group in self.groups]
        return effort(sizes, self.instance.blocks, self.instance.codecs, self.max_stages)


def make_pipeline(instance: Instance) -> Pipeline:
    """Group the devices and find how long a byte keeps each link or its medium busy."""
    n, m = instance.n, len(instance.src)
    share = instance.free[n : n + m].copy()
    shared = instance.medium >= 0
    share[shared] = np.minimum(share[shared], instance.free[n + m :][instance.medium[shared]])
    return Pipeline(instance, interchangeable(instance), instance.seconds_per_byte / share)


def widest(instance: Instance, airtime: Floats, *, relays: bool = True) -> Floats:
    """(n, n) least over paths of the largest airtime per byte; without relays, over direct links only."""
    wide = np.full((instance.n, instance.n), np.inf)
    wide[instance.src, instance.dst] = airtime
    for k in range(instance.n if relays else 0):
        np.minimum(wide, np.maximum(wide[:, k, None], wide[None, k]), out=wide)
    return wide


def _pick(groups: list[list[int]]) -> tuple[list[int], list[int]]:
    """A first and a second device of every class (the same one where there is no second)."""
    return [group[0] for group in groups], [group[-1] for group in groups]


def spans(values: Floats) -> Floats:
    """(L+1, L+1) sums of values[i:j] at [i, j], inf for i >= j or where a value is infinite."""
    blocks = len(values)
    cannot = np.isinf(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(cannot, 0.0, values))])
    walls = np.concatenate([[0], np.cumsum(cannot)])
    table = total[None, :] - total[:, None]
    at = np.arange(blocks + 1)
    never = (at[:, None] >= at[None, :]) | (walls[None, :] > walls[:, None])
    return np.where(never, np.inf, table)


def _stage(instance: Instance, u: int, cost: Additive, scale: float) -> tuple[Floats, Floats, Floats, float]:
    """Tables of `ChainCosts` for stages on device u: moving both ways, staying first, staying last, staying."""
    span = spans(cost.block[u]) + cost.start[u]
    span[instance.stage_bytes > instance.memory[u]] = np.inf
    enters, leaves = cost.decode[:, u], cost.encode[:, u]  # (K, L+1)
    full = enters[:, :, None, None] + span[None, :, :, None] + leaves.T[None, None]
    first = span[0, :, None] + leaves.T
    last = enters + span[:, -1]
    tables: tuple[Floats, Floats, Floats] = (full * scale, first * scale, last * scale)
    return tables[0], tables[1], tables[2], float(span[0, -1]) * scale


def _busy(instance: Instance) -> Additive:
    """Busy seconds of devices: latency without waits and links."""
    return Additive(
        block=instance.block,
        start=instance.overhead,
        encode=instance.encode,
        decode=instance.decode,
        hop=np.zeros(len(instance.src)),
        per_byte=np.zeros(len(instance.src)),
    )


def _assemble(
    pipeline: Pipeline,
    way: Floats,
    tables: list[tuple[Floats, Floats, Floats, float]],
    source_end: Floats,
    sink_end: Floats,
    maximum: bool,
) -> ChainCosts:
    """Put the tables together; `way` is (n, n, K, L+1) between devices."""
    instance, groups = pipeline.instance, pipeline.groups
    firsts, seconds = _pick(groups)
    combine = np.maximum if maximum else np.add
    move = way[np.array(firsts)[:, None], np.array(seconds)[None, :]]
    heads = {group[0]: at for at, group in enumerate(groups)}
    at_source, at_sink = heads.get(instance.source, -1), heads.get(instance.sink, -1)
    blocks, codecs = instance.blocks, instance.codecs
    return ChainCosts(
        sizes=[len(group) for group in groups],
        enter=combine(source_end[None], way[instance.source, firsts, :, 0]),
        move=move,
        leave=combine(sink_end[None], way[firsts, instance.sink, :, blocks]),
        stage=[table[0] for table in tables],
        at_source=at_source,
        at_sink=at_sink,
        stay_first=tables[at_source][1] if at_source >= 0 else np.full((blocks + 1, codecs), np.inf),
        stay_last=tables[at_sink][2] if at_sink >= 0 else np.full((codecs, blocks + 1), np.inf),
        stay_both=tables[at_source][3] if at_source == at_sink >= 0 else math.inf,
        maximum=maximum,
        max_stages=pipeline.max_stages,
    )


def period_costs(pipeline: Pipeline, *, relays: bool = True) -> ChainCosts:
    """The program whose value is the least period."""
    instance = pipeline.instance
    wide = widest(instance, pipeline.airtime, relays=relays)
    np.fill_diagonal(wide, np.inf)
    with np.errstate(invalid="ignore"):
        way = wide[:, :, None, None] * instance.wire[None, None]
    way[np.isnan(way)] = np.inf  # nothing to send still needs a path
    busy = _busy(instance)
    tables = [_stage(instance, group[0], busy, 1 / instance.free[group[0]]) for group in pipeline.groups]
    source_end = instance.encode[:, instance.source, 0] / instance.free[instance.source]
    sink_end = instance.decode[:, instance.sink, -1] / instance.free[instance.sink]
    return _assemble(pipeline, way, tables, source_end, sink_end, maximum=True)


def additive_costs(pipeline: Pipeline, cost: Additive, period: float = math.inf) -> ChainCosts:
    """The program whose value is the least of `cost` while every stage and hop keeps `period`."""
    instance = pipeline.instance
    n, limit = instance.n, period * (1 + 1e-9)
    way = np.full((n, n, instance.codecs, instance.blocks + 1), np.inf)
    for c in range(instance.codecs):
        for i in range(instance.blocks + 1):
            wire = float(instance.wire[c, i])
            fast = pipeline.airtime * wire <= limit
            # A stored zero would be no edge; what free links add up to is nothing again, so that a bound of 0 holds.
            tiny = float(np.finfo(float).tiny)
            weight = np.maximum(cost.hops(np.asarray(wire))[fast], tiny)
            graph = csr_array((weight, (instance.src[fast], instance.dst[fast])), shape=(n, n))
            least = dijkstra(graph, indices=list(range(n)))
            way[:, :, c, i] = np.where(least <= tiny * n, 0.0, least)
    way[np.arange(n), np.arange(n)] = np.inf
    tables = []
    busy = _busy(instance)
    for group in pipeline.groups:
        table = _stage(instance, group[0], cost, 1.0)
        load = _stage(instance, group[0], busy, 1 / instance.free[group[0]])
        for part, heavy in zip(table[:3], load[:3], strict=True):
            part[heavy > limit] = np.inf
        tables.append((*table[:3], table[3] if load[3] <= limit else math.inf))
    source_load = instance.encode[:, instance.source, 0] / instance.free[instance.source]
    sink_load = instance.decode[:, instance.sink, -1] / instance.free[instance.sink]
    source_end = np.where(source_load > limit, np.inf, cost.encode[:, instance.source, 0])
    sink_end = np.where(sink_load > limit, np.inf, cost.decode[:, instance.sink, -1])
    return _assemble(pipeline, way, tables, source_end, sink_end, maximum=False)


def to_route(
    pipeline: Pipeline, plan: ChainPlan, cost: Additive | None, period: float, *, relays: bool = True
) -> Route:
    """Name the devices of a chain and lead every transfer along the cheapest links that still have room."""
    instance = pipeline.instance
    cost = cost or additive.latency(instance)
    members = [list(group) for group in pipeline.groups]
    devices = [members[group].pop(0) for group in plan.classes]
    starts = (0, *plan.stops[:-1])
    names = instance.names
    stages = tuple(Stage(names[u], a, b) for u, a, b in zip(devices, starts, plan.stops, strict=True))
    holders = [instance.source, *devices, instance.sink]
    load = np.zeros(instance.resources)
    transfers = []
    for boundary, codec, u, v in zip((0, *plan.stops), plan.codecs, holders, holders[1:], strict=False):
        if codec < 0:
            transfers.append(Transfer(boundary, (names[u],)))
            continue
        wire = float(instance.wire[codec, boundary])
        direct = instance.edge.get((u, v))
        if direct is not None and not relays:
            path: tuple[int, ...] = (direct,)
        else:
            path = _roomy_path(pipeline, cost, wire, load, period, u, v)
        load_of(instance, path, wire, load)
        hops = (names[u], *(names[instance.dst[edge]] for edge in path))
        transfers.append(Transfer(boundary, hops, instance.problem.codecs[codec].name))
    return Route(stages, tuple(transfers))


def _roomy_path(
    pipeline: Pipeline, cost: Additive, wire: float, load: Floats, period: float, u: int, v: int
) -> tuple[int, ...]:
    instance = pipeline.instance
    n, m = instance.n, len(instance.src)
    taken = load[n : n + m].copy()
    shared = instance.medium >= 0
    taken[shared] = np.maximum(taken[shared], load[n + m :][instance.medium[shared]])
    weight = cost.hops(np.asarray(wire))
    airtime = pipeline.airtime * wire
    for room in (airtime + taken, airtime):
        open_link = np.where(room <= period * (1 + 1e-9), weight, np.inf)
        found = ShortestPaths(instance, open_link, u).between(u, v)
        if found:
            return found[0]
    return ShortestPaths(instance, weight, u).between(u, v)[0]


def least_period(pipeline: Pipeline) -> tuple[float, list[Route]]:
    """Least period of the relaxed problem, and routes that may attain it; (inf, []) when even that has none.

    Widest paths like to share the best link, which the relaxation does not see; so a second route uses direct links
    only, of which each is used once.
    """
    plan = best_chain(period_costs(pipeline))
    if plan is None:
        return math.inf, []
    routes = [to_route(pipeline, plan, None, plan.value)]
    direct = best_chain(period_costs(pipeline, relays=False))
    if direct is not None:
        routes.append(to_route(pipeline, direct, None, direct.value, relays=False))
    return plan.value, routes


def least_cost(pipeline: Pipeline, cost: Additive, period: float = math.inf) -> tuple[float, Route | None]:
    """Least of an additive quantity of the relaxed problem under a period, and its route."""
    plan = best_chain(additive_costs(pipeline, cost, period))
    if plan is None:
        return math.inf, None
    return plan.value, to_route(pipeline, plan, cost, period)
