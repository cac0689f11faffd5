"""Whether a new plan is worth loading."""

from __future__ import annotations

from dataclasses import dataclass

from router.errors import InvalidProblem, RouterError
from router.evaluation import measure, objective_value
from router.instance import compile_problem
from router.limits import broken
from router.problem import Objective, Problem
from router.route import Route, Solution, Stage
from router.solver import LABELS, solution, solve


@dataclass(frozen=True, slots=True)
class Replan:
    """What to do with a running plan.

    Attributes:
        change: whether to load `best`.
        reason: one sentence for the operator.
        best: the best plan now.
        running: the running plan under the changed problem, or None if it can no longer run.
        moved_bytes: of blocks that a device does not hold yet.
        load_seconds: until the last device has them, all loading at once over `load_bandwidth`.
        gain: seconds (or money, joules, their weighted sum) saved over the horizon, loading not counted.
        price: of loading, in the same unit.
    """

    change: bool
    reason: str
    best: Solution
    running: Solution | None
    moved_bytes: float
    load_seconds: float
    gain: float
    price: float


def _missing(problem: Problem, running: Route, wanted: Route) -> dict[str, float]:
    """Bytes of blocks per device that the wanted plan needs and the running one did not have there."""
    sizes = problem.block_memory or [0.0] * problem.blocks

    def held(stage: Stage, route: Route) -> set[int]:
        ranges = (range(s.start, s.stop) for s in route.stages if s.device == stage.device)
        return {block for blocks in ranges for block in blocks}

    need: dict[str, float] = {}
    for stage in wanted.stages:
        new = set(range(stage.start, stage.stop)) - held(stage, running)
        need[stage.device] = need.get(stage.device, 0.0) + sum(sizes[block] for block in new)
    return need


UNITS = {"latency": " s", "throughput": " s", "cost": " of money", "energy": " J", "weighted": ""}
"""What gain and price of each objective are counted in."""


def _price(problem: Problem, objective: Objective, need: dict[str, float], bandwidth: float) -> float:
    """What loading takes in the objective's unit: its seconds, or what the devices cost or consume meanwhile."""
    busy = {name: size / bandwidth for name, size in need.items()}
    seconds = max(busy.values(), default=0.0)
    cost = sum(problem.cluster.device(name).price * each for name, each in busy.items())
    energy = sum(problem.cluster.device(name).power * each for name, each in busy.items())
    taken = {"latency": seconds, "throughput": seconds, "period": seconds, "cost": cost, "energy": energy}
    if objective.name == "weighted":
        return sum(weight * taken[name] for name, weight in objective.weights.items())
    return taken[objective.name]


def replan(
    problem: Problem,
    running: Route,
    objective: str | Objective = "latency",
    *,
    load_bandwidth: float,
    horizon: float,
    rate: float = 1.0,
    threshold: float = 0.05,
    labels: int = LABELS,
) -> Replan:
    """Compare the best plan with the running one and the price of changing.

    The change is made when the running plan can no longer run, or when the relative gain is above `threshold`
    (hysteresis) and what is saved over the horizon, at `rate` requests per second, exceeds what loading takes: seconds
    for latency and throughput, the money or joules of the devices that load for cost and energy, and the weighted sum
    of these. For throughput the gain is the time in which the horizon's requests are served faster.

    Args:
        problem: as it is now (changed cluster, profile or load).
        running: the plan that serves now.
        objective: what to minimise, with bounds.
        load_bandwidth: bytes per second at which a device receives partitions.
        horizon: seconds for which the new plan is expected to serve.
        rate: requests per second.
        threshold: least relative gain.
        labels: effort of the solver.

    Raises:
        InvalidProblem: numbers that make no sense. NoRoute: there is no plan any more.
    """
    if not (load_bandwidth > 0 and horizon >= 0 and rate >= 0 and threshold >= 0):
        raise InvalidProblem(
            "load_bandwidth must be positive; horizon, rate and threshold must not be negative"
        )
    wanted = Objective(objective) if isinstance(objective, str) else objective
    best = solve(problem, wanted, labels=labels)
    now: Solution | None = None
    reason: RouterError | None
    try:
        instance = compile_problem(problem)
        measured = measure(instance, running)
        reason = broken(instance, wanted, running, measured)
        if reason is None:
            now = solution(instance, wanted, running, best.bound)
    except RouterError as refusal:
        reason = refusal
    need = _missing(problem, running, best.route)
    moved, seconds = sum(need.values()), max(need.values(), default=0.0) / load_bandwidth
    price = _price(problem, wanted, need, load_bandwidth)
    if now is None:
        text = f"the running plan can no longer run: {reason}"
        return Replan(True, text, best, None, moved, seconds, 0.0, price)
    before, after = (objective_value(wanted, measure(instance, each.route)) for each in (now, best))
    gain = (before - after) * rate * horizon
    if wanted.name == "throughput":
        gain = (1 - after / before) * horizon if before > 0 else 0.0
    relative = 1 - after / before if before > 0 else 0.0
    if relative <= threshold:
        text = f"kept: a new plan gains {relative:.1%}, less than {threshold:.1%}"
        return Replan(False, text, best, now, moved, seconds, gain, price)
    unit = UNITS[wanted.name]
    if gain <= price:
        text = f"kept: a new plan gains {gain:.3g}{unit} in {horizon:.3g} s, loading takes {price:.3g}{unit}"
        return Replan(False, text, best, now, moved, seconds, gain, price)
    text = f"changed: gains {relative:.1%}, and {gain:.3g}{unit} in {horizon:.3g} s for {price:.3g}{unit} of loading"
    return Replan(True, text, best, now, moved, seconds, gain, price)
