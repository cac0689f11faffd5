"""What a plan must not say, beyond types. Every error names the place and the way out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from defer.errors import InvalidDocument

if TYPE_CHECKING:
    from defer.documents.plan import Plan


def check_plan(plan: Plan) -> None:
    """Finds the first contradiction.

    Raises:
        InvalidDocument: Stages that do not cover the chain without a gap, transfers that do not join them, shares that
            do not add up, an order that is none, batch sizes or weights that cannot be.
    """
    _check_stages(plan)
    _check_transfers(plan)
    _check_shares(plan)
    if plan.order and sorted(plan.order) != list(range(plan.positions[-1])):
        raise _wrong(plan, f"an order must hold each of the ops 0 to {plan.positions[-1] - 1} once", "order")
    if plan.batching is not None and (problem := plan.batching.problem()):
        raise InvalidDocument(problem, where="batching", hint="for example sizes [4, 8] and delay_s 0.002")
    if unknown := sorted(plan.weights.keys() - {"latency", "period", "cost", "energy"}):
        raise InvalidDocument(
            f"{unknown[0]!r} is nothing to weigh", where="weights", hint="latency, period, cost or energy"
        )


def _check_stages(plan: Plan) -> None:
    blocks = len(plan.positions) - 1
    if not plan.stages:
        raise _wrong(plan, "a plan needs at least one stage", "stages")
    if len(plan.transfers) != len(plan.stages) + 1:
        raise _wrong(
            plan,
            f"{len(plan.stages)} stages need {len(plan.stages) + 1} transfers, not {len(plan.transfers)}",
            "transfers",
        )
    at = 0
    for number, stage in enumerate(plan.stages):
        if stage.start != at or not stage.start < stage.stop <= blocks:
            raise _wrong(
                plan,
                f"blocks {stage.start} to {stage.stop} do not follow on block {at} of {blocks}",
                f"stages[{number}]",
            )
        if stage.ops != (plan.positions[stage.start], plan.positions[stage.stop]):
            raise _wrong(
                plan,
                f"ops {list(stage.ops)} are not those of blocks {stage.start} to {stage.stop}",
                f"stages[{number}].ops",
            )
        at = stage.stop
    if at != blocks:
        raise _wrong(plan, f"blocks {at} to {blocks} are not placed", "stages")


def _check_transfers(plan: Plan) -> None:
    for number, transfer in enumerate(plan.transfers):
        last = number == len(plan.stages)
        expected = plan.stages[-1].stop if last else plan.stages[number].start
        start = plan.stages[number - 1].device if number else None
        stop = None if last else plan.stages[number].device
        path = transfer.path
        if not path or (start and path[0] != start) or (stop and path[-1] != stop):
            ends = f"from {start or 'the source'} to {stop or 'the sink'}"
            raise _wrong(
                plan,
                f"the path {' → '.join(path) or '(empty)'} does not lead {ends}",
                f"transfers[{number}].path",
            )
        if transfer.boundary != expected:
            raise _wrong(
                plan,
                f"boundary {transfer.boundary} is not where stage {number} begins, which is {expected}",
                f"transfers[{number}].boundary",
            )


def _check_shares(plan: Plan) -> None:
    for number, share in enumerate(plan.shares):
        route = msgspec.structs.replace(plan, stages=share.stages, transfers=share.transfers, shares=())
        try:
            check_plan(route)
        except InvalidDocument as exc:
            exc.where = f"shares[{number}].{exc.where}"
            raise
    if plan.shares and abs(sum(share.fraction for share in plan.shares) - 1) > 1e-6:
        raise _wrong(plan, "the fractions do not add up to 1", "shares")


def _wrong(plan: Plan, message: str, where: str) -> InvalidDocument:
    """What nobody writes by hand: the command that makes it makes it anew."""
    return InvalidDocument(message, where=where, hint=f"`{plan.MADE_BY}`")
