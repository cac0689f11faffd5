"""A plan for the terminal: devices from top to bottom, what each runs, and what moves between them."""

from __future__ import annotations

from typing import Final

from defer import units
from defer.documents.plan import Plan, PlanShare, PlanStage, PlanTransfer
from defer.draw_words import (
    PER,
    accuracy,
    first_tensor,
    headline,
    is_bottleneck,
    shortened,
    show_value,
    stage_facts,
    transfer_facts,
    verdict,
)

BAR: Final = 20
"""Characters of the longest bar."""

WIDTH: Final = 72
"""Characters of a stage's box."""


def plan_text(plan: Plan) -> str:
    """The plan as lines of text, for a terminal of 100 columns; bars are seconds, ◀ marks the bottleneck."""
    longest = plan.longest_s
    lines = [headline(plan), verdict(plan), "", f"  {plan.source}  (requests)"]
    for number, transfer in enumerate(plan.transfers):
        lines += _transfer(plan, transfer, longest)
        if number < len(plan.stages):
            lines += _stage(plan, plan.stages[number], number, longest)
    lines.append(f"  {plan.sink}  (results)")
    lines += ["", _beside(plan)]
    if plan.bottleneck:
        lines.append(
            f"One result every {units.show_duration(plan.period_s)}; the bottleneck is {plan.bottleneck}."
        )
    if plan.shares:
        lines += _routes(plan)
    if plan.accuracy is not None:
        lines.append(accuracy(plan.accuracy))
    lines += [f"Note: {note}." for note in plan.notes]
    return "\n".join(lines)


def _routes(plan: Plan) -> list[str]:
    """Where stages have replicas: every route and its part of the requests; the largest is drawn above."""
    routes = [f"  {share.fraction:6.1%}  {_way(share)}" for share in plan.shares]
    return ["", f"Requests are dealt to {len(routes)} routes:", *routes]


def _way(share: PlanShare) -> str:
    """A route's stages in order, and the devices that only pass tensors on."""
    stages = [f"{stage.device} {stage.start}–{stage.stop - 1}" for stage in share.stages]
    way: list[str] = []
    for number, transfer in enumerate(share.transfers):
        way += [f"({name})" for name in transfer.path[1:-1]]
        way += stages[number : number + 1]
    return " → ".join(way)


def _beside(plan: Plan) -> str:
    best = plan.best_alternative
    if best is None:
        return "No single device can hold the whole model."
    name, value = best
    own, alone = show_value(plan, plan.value), show_value(plan, value)
    return f"{own} {PER[plan.objective]}; the whole model on {name}, the best single device: {alone}."


def _stage(plan: Plan, stage: PlanStage, number: int, longest: float) -> list[str]:
    title = f"─ {number + 1} {shortened(stage.device, WIDTH - 12)} "
    facts = f" {stage_facts(stage)}"
    return [
        f"  ┌{title}{'─' * (WIDTH - len(title) - 2)}┐ {_bar(plan, stage, longest)}",
        f"  │{facts:<{WIDTH - 2}}│",
        f"  └{'─' * (WIDTH - 2)}┘",
    ]


def _transfer(plan: Plan, transfer: PlanTransfer, longest: float) -> list[str]:
    facts = shortened(transfer_facts(transfer), WIDTH - 4)
    names = first_tensor(transfer, WIDTH - 4)
    end = _bar(plan, transfer, longest) if len(transfer.path) > 1 else ""
    return [f"    │ {facts:<{WIDTH - 4}} {end}".rstrip(), f"    ▼ {names}".rstrip()]


def _bar(plan: Plan, part: PlanStage | PlanTransfer, longest: float) -> str:
    filled = round(BAR * part.seconds / longest) if longest > 0 else 0
    block = "█" if isinstance(part, PlanStage) else "▒"
    mark = " ◀" if is_bottleneck(plan, part) else ""
    return f"{units.show_duration(part.seconds):>8} {block * filled}{mark}"
