"""What one route takes: the one place where a route is turned into seconds, joules, money and bytes.

Solvers search with arrays; what they report always comes from here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from router.errors import InvalidProblem, NoRoute
from router.instance import Instance, compile_problem
from router.problem import Objective, Problem
from router.route import Evaluation, Route, Term


@dataclass(slots=True)
class _Ledger:
    """Busy seconds and additive quantities of one route."""

    devices: dict[str, float] = field(default_factory=dict)
    links: dict[tuple[str, str], float] = field(default_factory=dict)
    media: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    cost: float = 0.0
    energy: float = 0.0
    error: float = 0.0


def check_shape(instance: Instance, route: Route) -> None:
    """Refuse a route that does not lead from source to sink over all blocks along existing links.

    Raises:
        InvalidProblem: what is wrong and where.
    """
    blocks, problem = instance.blocks, instance.problem
    if not route.stages or len(route.transfers) != len(route.stages) + 1:
        raise InvalidProblem("a route needs one stage or more, and one transfer more than stages")
    holders = [problem.source, *(stage.device for stage in route.stages), problem.sink]
    edges = [0, *(stage.stop for stage in route.stages)]
    for number, (stage, begin) in enumerate(zip(route.stages, edges, strict=False)):
        if stage.start != begin or stage.stop <= stage.start or stage.stop > blocks:
            raise InvalidProblem(
                f"stage {number} has blocks [{stage.start}, {stage.stop}); it must start at {begin}"
            )
        if stage.device not in instance.index:
            raise InvalidProblem(f"stage {number} names device {stage.device!r}, which is not in the cluster")
    if edges[-1] != blocks:
        raise InvalidProblem(f"the last stage stops at block {edges[-1]} of {blocks}")
    codecs = {codec.name for codec in problem.codecs}
    for number, transfer in enumerate(route.transfers):
        ends = (holders[number], holders[number + 1])
        if (
            not transfer.path
            or transfer.boundary != edges[number]
            or (transfer.path[0], transfer.path[-1]) != ends
        ):
            raise InvalidProblem(
                f"transfer {number} must carry boundary {edges[number]} from {ends[0]!r} to {ends[1]!r}"
            )
        if len(transfer.path) > 1 and transfer.codec not in codecs:
            raise InvalidProblem(
                f"transfer {number} uses codec {transfer.codec!r}, which the problem does not offer"
            )
        for pair in zip(transfer.path, transfer.path[1:], strict=False):
            problem.cluster.link(*pair)
            if (instance.index[pair[0]], instance.index[pair[1]]) not in instance.edge:
                banned = next(name for name in pair if name in problem.pins.banned)
                raise NoRoute(f"device {banned!r} is excluded", limit="pins")


def _walk(instance: Instance, route: Route, ledger: _Ledger) -> Iterator[Term]:
    """Yield the latency terms in order of time and fill the ledger on the way."""
    problem, index = instance.problem, instance.index
    codec_index = {codec.name: at for at, codec in enumerate(problem.codecs)}

    def work(device: str, seconds: float) -> None:
        ledger.devices[device] = ledger.devices.get(device, 0.0) + seconds
        if price := float(instance.price[index[device]]):  # not 0 * inf, where a device cannot do the work
            ledger.cost += seconds * price
        if power := float(instance.power[index[device]]):
            ledger.energy += seconds * power

    for number, transfer in enumerate(route.transfers):
        i = transfer.boundary
        if len(transfer.path) > 1:
            c = codec_index[transfer.codec]
            wire = float(instance.wire[c, i])
            size, label = round(wire), f"boundary {i}, {transfer.codec}"
            ledger.error += float(instance.error[c, i])
            first, last = transfer.path[0], transfer.path[-1]
            seconds = float(instance.encode[c, index[first], i])
            work(first, seconds)
            yield Term("encode", first, seconds, size, label)
            for pair in zip(transfer.path, transfer.path[1:], strict=False):
                e = instance.edge[index[pair[0]], index[pair[1]]]
                where = f"{pair[0]} -> {pair[1]}"
                airtime = wire * float(instance.seconds_per_byte[e])
                yield Term("wait", where, float(instance.hop_wait[e]), 0, label)
                yield Term("propagation", where, float(instance.delay[e]), 0, label)
                yield Term("transmission", where, airtime, size, label)
                ledger.links[pair] = ledger.links.get(pair, 0.0) + airtime
                if instance.medium[e] >= 0:
                    name = instance.media[instance.medium[e]]
                    ledger.media[name] = ledger.media.get(name, 0.0) + airtime
                ledger.cost += wire * float(instance.link_price[e])
                ledger.energy += wire * float(instance.link_power[e])
                for end, device in enumerate(pair):
                    seconds = wire * float(instance.crypt[e, end])
                    if seconds:
                        work(device, seconds)
                        yield Term("encrypt", device, seconds, size, label)
            seconds = float(instance.decode[c, index[last], i])
            work(last, seconds)
            yield Term("decode", last, seconds, size, label)
        if number < len(route.stages):
            stage = route.stages[number]
            u = index[stage.device]
            label = f"blocks [{stage.start}, {stage.stop})"
            yield Term("wait", stage.device, float(instance.wait[u]), 0, label)
            work(stage.device, float(instance.overhead[u]))
            yield Term("overhead", stage.device, float(instance.overhead[u]), 0, label)
            seconds = float(instance.block[u, stage.start : stage.stop].sum())
            work(stage.device, seconds)
            yield Term("compute", stage.device, seconds, 0, label)
            needed = int(instance.stage_bytes[stage.start, stage.stop])
            ledger.memory[stage.device] = ledger.memory.get(stage.device, 0) + needed


def measure(instance: Instance, route: Route) -> Evaluation:
    """`evaluate` on a compiled problem."""
    check_shape(instance, route)
    ledger = _Ledger()
    latency = math.fsum(term.seconds for term in _walk(instance, route, ledger))
    load = instance.problem.load
    devices = {name: work / (1 - load.device_busy.get(name, 0.0)) for name, work in ledger.devices.items()}
    links = {pair: work / (1 - load.link_busy.get(pair, 0.0)) for pair, work in ledger.links.items()}
    media = {name: work / (1 - load.medium_busy.get(name, 0.0)) for name, work in ledger.media.items()}
    candidates = [(work, f"device {name}") for name, work in devices.items()]
    candidates += [(work, f"link {a} -> {b}") for (a, b), work in links.items()]
    candidates += [(work, f"medium {name}") for name, work in media.items()]
    period, bottleneck = max(candidates, key=lambda each: each[0])
    return Evaluation(
        latency,
        period,
        ledger.cost,
        ledger.energy,
        ledger.error,
        devices,
        links,
        media,
        ledger.memory,
        bottleneck,
    )


def evaluate(problem: Problem, route: Route) -> Evaluation:
    """Predict latency, period, cost, energy, error and every load of a route; limits are not checked.

    Raises:
        InvalidProblem: the route does not fit the problem.
    """
    return measure(compile_problem(problem), route)


def explain(problem: Problem, route: Route) -> tuple[Term, ...]:
    """Every addend of the route's latency, in order of time; `math.fsum` of their seconds is the latency.

    Raises:
        InvalidProblem: the route does not fit the problem.
    """
    instance = compile_problem(problem)
    check_shape(instance, route)
    return tuple(_walk(instance, route, _Ledger()))


def objective_value(objective: Objective, evaluation: Evaluation) -> float:
    """The number that the objective minimises."""
    quantities: Mapping[str, float] = {
        "latency": evaluation.latency,
        "period": evaluation.period,
        "cost": evaluation.cost,
        "energy": evaluation.energy,
    }
    if objective.name == "weighted":
        return math.fsum(weight * quantities[key] for key, weight in objective.weights.items())
    return quantities["period" if objective.name == "throughput" else objective.name]
