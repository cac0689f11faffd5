"""Whether a new plan is worth loading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from router.cluster import Cluster
from router.errors import InvalidProblem
from router.evaluation import measure, objective_value
from router.instance import Instance, compile_problem
from router.limits import broken, counted
from router.problem import Objective, Problem
from router.route import Evaluation, Share, Solution
from router.workload import mix_load


@dataclass(frozen=True, slots=True)
class Change:
    """What to do with a running plan.

    Attributes:
        change: whether to load the new plan.
        reason: one sentence for the operator.
        moved_bytes: of what devices do not hold yet.
        load_seconds: until the last device has it, all loading at once over `load_bandwidth`.
        gain: seconds (or money, joules, their weighted sum) saved over the horizon, loading not counted.
        price: of loading, in the same unit.
    """

    change: bool
    reason: str
    moved_bytes: float
    load_seconds: float
    gain: float
    price: float


UNITS = {"latency": " s", "throughput": " s", "cost": " of money", "energy": " J", "weighted": ""}
"""What gain and price of each objective are counted in."""

_SMALL = ((1e3, "ms"), (1e6, "µs"), (1e9, "ns"))
"""What is less than a second is shown in, largest first."""


def predict(problem: Problem, shares: Sequence[Share], objective: Objective) -> Solution:
    """What a running plan, with or without replicas, takes in a problem as it is now.

    Latency and error are those of the worst route, cost and energy the mean of all; the bound is 0.

    Raises:
        NoRoute: It breaks a limit, which the message names.
        InvalidProblem: It uses a device that the problem does not have.
    """
    instance = compile_problem(problem)
    measured = [measure(instance, share.route) for share in shares]
    together = _together(instance, shares, measured)
    for share, alone in zip(shares, measured, strict=True):
        refusal = broken(instance, objective, share.route, replace(alone, period=together.period))
        if refusal is not None:
            raise refusal
    return Solution(
        route=shares[0].route,
        objective=objective.name,
        value=objective_value(objective, together),
        bound=0.0,
        optimal=False,
        latency=together.latency,
        period=together.period,
        cost=together.cost,
        energy=together.energy,
        error=together.error,
        shares=tuple(shares) if len(shares) > 1 else (),
    )


def _together(instance: Instance, shares: Sequence[Share], measured: Sequence[Evaluation]) -> Evaluation:
    if len(shares) == 1:
        return measured[0]
    parts = [share.fraction for share in shares]
    return replace(
        measured[0],
        latency=max(each.latency for each in measured),
        period=float(mix_load(instance, shares).max()),
        cost=sum(part * each.cost for part, each in zip(parts, measured, strict=True)),
        energy=sum(part * each.energy for part, each in zip(parts, measured, strict=True)),
        error=max(each.error for each in measured),
    )


def _price(cluster: Cluster, objective: Objective, need: Mapping[str, float], bandwidth: float) -> float:
    """What loading takes in the objective's unit: its seconds, or what the devices cost or consume meanwhile."""
    busy = {name: size / bandwidth for name, size in need.items()}
    seconds = max(busy.values(), default=0.0)
    cost = sum(cluster.device(name).price * each for name, each in busy.items())
    energy = sum(cluster.device(name).power * each for name, each in busy.items())
    if objective.name == "weighted":
        weights = objective.weights
        # The seconds pass once, whether latency, period or both are weighed.
        of_time = max(weights.get("latency", 0.0), weights.get("period", 0.0))
        return of_time * seconds + weights.get("cost", 0.0) * cost + weights.get("energy", 0.0) * energy
    return {"cost": cost, "energy": energy}.get(objective.name, seconds)


def weigh(
    cluster: Cluster,
    objective: Objective,
    before: float,
    after: float,
    need: Mapping[str, float],
    *,
    load_bandwidth: float,
    horizon: float,
    rate: float = 1.0,
    threshold: float = 0.05,
    broken: str = "",
    periods: tuple[float, float] = (0.0, 0.0),
) -> Change:
    """Decide between a running plan and a new one.

    The change is made when the running plan can no longer run, or when the relative gain is above `threshold`
    (hysteresis) and what is saved over the horizon, at `rate` requests per second, exceeds what loading takes: seconds
    for latency and throughput, the money or joules of the devices that load for cost and energy, and the weighted sum
    of these. For throughput the gain is the time in which the horizon's requests are served faster. A plan that cannot
    carry the rate never takes the place of one that carries more.

    Args:
        cluster: whose devices load, with their prices and powers.
        objective: what is made least.
        before: its value under the running plan, as it is predicted now.
        after: its value under the new plan.
        need: bytes that each device must receive.
        load_bandwidth: bytes per second at which a device receives them.
        horizon: seconds for which the new plan is expected to serve.
        rate: requests per second.
        threshold: least relative gain.
        broken: why the running plan can no longer run; empty where it can.
        periods: least seconds between requests of the running plan and of the new one.

    Raises:
        InvalidProblem: numbers that make no sense.
    """
    if not (load_bandwidth > 0 and horizon >= 0 and rate >= 0 and threshold >= 0):
        raise InvalidProblem(
            "load_bandwidth must be positive; horizon, rate and threshold must not be negative"
        )
    moved, seconds = sum(need.values()), max(need.values(), default=0.0) / load_bandwidth
    price = _price(cluster, objective, need, load_bandwidth)
    if broken:
        return Change(True, f"the running plan can no longer run: {broken}", moved, seconds, 0.0, price)
    relative = 1 - after / before if before > 0 else 0.0
    gain = relative * horizon if objective.name == "throughput" else (before - after) * rate * horizon
    if relative <= threshold:
        text = f"kept: a new plan gains {relative:.1%}, less than {threshold:.1%}"
        return Change(False, text, moved, seconds, gain, price)
    least, most = min(periods[0], periods[1]), periods[1]
    if most > least and most * rate > 1:
        text = f"kept: a new plan carries {1 / most:.4g} requests/s of {rate:.4g}, the running one {1 / least:.4g}"
        return Change(False, text, moved, seconds, gain, price)
    unit = UNITS[objective.name]
    requests = counted(rate * horizon, "request")
    over = f"in {horizon:.4g} s" if objective.name == "throughput" else f"over {requests}"
    if gain <= price:
        text = f"kept: a new plan gains {_shown(gain, unit)} {over}, loading takes {_shown(price, unit)}"
        return Change(False, text, moved, seconds, gain, price)
    expected = f"where loading was expected to take {_shown(price, unit)}"
    text = f"changed: gains {relative:.1%}, and {_shown(gain, unit)} {over}, {expected}"
    return Change(True, text, moved, seconds, gain, price)


def _shown(value: float, unit: str) -> str:
    """A gain or a price for people; seconds of any length."""
    if unit != UNITS["latency"] or not 0 < abs(value) < 0.9995:
        return f"{value:.4g}{unit}"
    scale, small = next((each for each in _SMALL if abs(value) * each[0] >= 0.9995), _SMALL[-1])
    return f"{value * scale:.3g} {small}"
