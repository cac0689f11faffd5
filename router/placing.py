"""An operator's own placement: blocks per device given, everything else still chosen for the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from router.errors import InvalidProblem
from router.evaluation import measure
from router.instance import compile_problem
from router.limits import broken
from router.problem import Objective, Pins, Problem
from router.route import Route, Solution, Stage
from router.solver import LABELS, solution, solve


def _pinned(problem: Problem, stages: Sequence[Stage]) -> Problem:
    edge = 0
    for number, stage in enumerate(stages):
        problem.cluster.device(stage.device)
        if stage.start != edge or stage.stop <= stage.start:
            raise InvalidProblem(
                f"stage {number} of the placement has blocks [{stage.start}, {stage.stop}); "
                f"it must start at {edge}"
            )
        edge = stage.stop
    if edge != problem.blocks:
        raise InvalidProblem(f"the placement covers blocks [0, {edge}) of {problem.blocks}")
    blocks = {block: stage.device for stage in stages for block in range(stage.start, stage.stop)}
    # Where no device is given two stages none has two; said so, the faster methods apply (see `router.solver`).
    once = 1 if len({stage.device for stage in stages}) == len(stages) else problem.stages_per_device
    pins = Pins(blocks=blocks, banned=problem.pins.banned)
    return replace(problem, pins=pins, max_stages=len(stages), stages_per_device=once)


def place(
    problem: Problem,
    placement: Route | Sequence[Stage],
    objective: str | Objective = "latency",
    *,
    labels: int = LABELS,
) -> Solution:
    """Check an operator's placement against the limits and predict what it takes.

    A `Route` is taken as it is. Stages alone are completed: paths and codecs are chosen for the objective.
    Pins of the problem on blocks and devices are overridden, bans are not; memory, stage and bound limits
    hold.

    Raises:
        InvalidProblem: stages that do not follow one another, or unknown devices.
        NoRoute: the placement breaks a limit; the message names it.
    """
    wanted = Objective(objective) if isinstance(objective, str) else objective
    stages = placement.stages if isinstance(placement, Route) else tuple(placement)
    pinned = _pinned(problem, stages)
    if not isinstance(placement, Route):
        return solve(pinned, wanted, labels=labels)
    instance = compile_problem(replace(pinned, max_stages=problem.max_stages))
    refusal = broken(instance, wanted, placement, measure(instance, placement))
    if refusal is not None:
        raise refusal
    return solution(instance, wanted, placement, bound=0.0)
