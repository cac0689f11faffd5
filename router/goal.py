"""An objective as arrays: what adds up, what is bounded, and whether loads matter."""

from __future__ import annotations

import math
from dataclasses import dataclass

from router import additive
from router.additive import Additive
from router.instance import Instance
from router.problem import Objective


@dataclass(frozen=True, slots=True, eq=False)
class Goal:
    """Minimise `sum of primary + period_weight * period` under bounds.

    Attributes:
        primary: the part of the objective that adds up along a route; None = there is none.
        period_weight: factor of the period in the objective.
        bounds: additive quantities with the most they may be.
        max_period: seconds.
    """

    objective: Objective
    primary: Additive | None
    period_weight: float
    bounds: tuple[tuple[Additive, float], ...]
    max_period: float

    @property
    def loads_matter(self) -> bool:
        """Whether the loads of devices and links have a say."""
        return self.period_weight > 0 or math.isfinite(self.max_period)


def make_goal(instance: Instance, objective: Objective) -> Goal:
    """Compile an objective for one instance."""
    makers = {"latency": additive.latency, "cost": additive.cost, "energy": additive.energy}
    primary: Additive | None = None
    period_weight = 0.0
    if objective.name == "throughput":
        period_weight = 1.0
    elif objective.name == "weighted":
        period_weight = objective.weights.get("period", 0.0)
        parts = [
            (w, makers[name](instance)) for name, w in objective.weights.items() if name in makers and w > 0
        ]
        primary = additive.weighted(parts) if parts else None
    else:
        primary = makers[objective.name](instance)
    limits = (
        (objective.max_latency, additive.latency),
        (objective.max_cost, additive.cost),
        (objective.max_energy, additive.energy),
        (objective.max_error, additive.error),
    )
    bounds = tuple((make(instance), limit) for limit, make in limits if math.isfinite(limit))
    return Goal(objective, primary, period_weight, bounds, objective.max_period)
