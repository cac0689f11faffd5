"""A plan as one self-contained SVG: stages from top to bottom, what moves between them, and where the time goes.

The flow is on the left and a bar of seconds beside each step on the right, so that one sees at a glance which step a
request waits for. Rows are added downwards, so that any number of stages keeps its room.
"""

from __future__ import annotations

from typing import Final
from xml.sax.saxutils import escape

from defer import units
from defer.documents.plan import Plan, PlanStage, PlanTransfer
from defer.draw_canvas import (
    ALERT,
    BAR_X,
    BOX_WIDTH,
    BOX_X,
    DEVICES,
    FAINT,
    GREY,
    INK,
    MARGIN,
    PAPER,
    SHADE,
    STAGE_BAR,
    TRANSFER_BAR,
    WIDTH,
    Page,
    fit,
)
from defer.draw_cluster import draw_cluster
from defer.draw_words import (
    first_tensor,
    headline,
    is_bottleneck,
    show_value,
    stage_facts,
    tensor_names,
    transfer_facts,
    verdict,
)

STAGE_HEIGHT: Final = 62
TRANSFER_HEIGHT: Final = 58

TITLES: Final = {
    "latency": "Time of one request",
    "throughput": "Time between two results",
    "cost": "Money per request",
    "energy": "Energy per request",
    "weighted": "Weighted sum",
}


def plan_svg(plan: Plan) -> str:
    """The plan as an SVG document that needs nothing else: no script, no font, no link.

    Args:
        plan: What to draw, with 1 or more stages.

    Returns:
        The text of the file, in UTF-8 when written.
    """
    page = Page(y=MARGIN)
    colours = {name: DEVICES[number % len(DEVICES)] for number, name in enumerate(_order(plan))}
    longest = plan.longest_s
    _header(page, plan)
    _end(page, plan.source, "requests come from here")
    for number, transfer in enumerate(plan.transfers):
        _draw_transfer(page, plan, transfer, longest)
        if number < len(plan.stages):
            stage = plan.stages[number]
            _draw_stage(page, plan, stage, number, longest, colours[stage.device])
    _end(page, plan.sink, "results go here")
    draw_cluster(page, plan, colours)
    _comparison(page, plan)
    _notes(page, plan)
    height = page.y + MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" '
            f"height=\"{height:g}\" font-family=\"system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', "
            f'sans-serif" role="img">',
            f"<title>{escape(headline(plan))}</title>",
            f"<desc>{escape(verdict(plan))}</desc>",
            f'<rect width="{WIDTH}" height="{height:g}" fill="{PAPER}"/>',
            *page.elements,
            "</svg>",
            "",
        ]
    )


def _order(plan: Plan) -> list[str]:
    everywhere = [*plan.stages, *(stage for share in plan.shares for stage in share.stages)]
    return list(dict.fromkeys(stage.device for stage in everywhere))


def _header(page: Page, plan: Plan) -> None:
    page.text(MARGIN, page.y + 18, fit(headline(plan), WIDTH - 2 * MARGIN, 20), size=20, bold=True)
    page.text(MARGIN, page.y + 42, fit(verdict(plan), WIDTH - 2 * MARGIN), colour=GREY)
    page.y += 66
    page.box(BAR_X, page.y + 8, 12, 12, STAGE_BAR, radius=2)
    page.text(BAR_X + 20, page.y + 18, "compute", size=12, colour=GREY)
    page.box(BAR_X + 90, page.y + 8, 12, 12, TRANSFER_BAR, radius=2)
    page.text(BAR_X + 110, page.y + 18, "transfer", size=12, colour=GREY)
    page.box(BAR_X + 178, page.y + 8, 12, 12, ALERT, radius=2)
    page.text(BAR_X + 198, page.y + 18, "bottleneck", size=12, colour=GREY)


def _end(page: Page, device: str, what: str) -> None:
    name = fit(device, 300)
    page.box(BOX_X, page.y, BOX_WIDTH, 30, SHADE, stroke=FAINT, radius=15)
    page.text(BOX_X + 16, page.y + 20, name, bold=True)
    page.text(BOX_X + BOX_WIDTH - 16, page.y + 20, what, size=12, colour=GREY, anchor="end")
    page.y += 30


def _draw_stage(page: Page, plan: Plan, stage: PlanStage, number: int, longest: float, colour: str) -> None:
    top, alert = page.y, is_bottleneck(plan, stage)
    part = Page()
    part.box(BOX_X, top, BOX_WIDTH, STAGE_HEIGHT, PAPER, stroke=ALERT if alert else FAINT)
    part.box(BOX_X, top, 8, STAGE_HEIGHT, colour, radius=3)
    part.text(BOX_X + 24, top + 38, str(number + 1), size=20, colour=colour, bold=True)
    part.text(BOX_X + 56, top + 26, fit(stage.device, BOX_WIDTH - 180, 15), size=15, bold=True)
    part.text(BOX_X + 56, top + 47, fit(stage_facts(stage), BOX_WIDTH - 70), colour=GREY)
    if alert:
        part.text(
            BOX_X + BOX_WIDTH - 14, top + 25, "bottleneck", size=12, colour=ALERT, bold=True, anchor="end"
        )
    _bar(part, top + STAGE_HEIGHT / 2, stage.seconds, longest, ALERT if alert else STAGE_BAR)
    page.tip(
        f"stage {number + 1} on {stage.device}: {stage_facts(stage)}, ops {stage.ops[0]} to {stage.ops[1]}",
        part.elements,
    )
    page.y += STAGE_HEIGHT


def _draw_transfer(page: Page, plan: Plan, transfer: PlanTransfer, longest: float) -> None:
    top, alert, x = page.y, is_bottleneck(plan, transfer), BOX_X + 30
    colour = ALERT if alert else GREY
    foot = top + TRANSFER_HEIGHT - 4
    part = Page()
    dashes = ' stroke-dasharray="3 4"' if len(transfer.path) == 1 else ""
    part.elements.append(
        f'<path d="M{x} {top + 4:g} V{foot - 8:g}" stroke="{colour}" stroke-width="2" fill="none"{dashes}/>'
        f'<path d="M{x - 6} {foot - 9:g} L{x} {foot:g} L{x + 6} {foot - 9:g} Z" fill="{colour}"/>'
    )
    room = BOX_WIDTH - 70 - (80 if alert else 0)
    part.text(x + 26, top + 24, fit(transfer_facts(transfer), room), colour=INK)
    part.text(x + 26, top + 42, first_tensor(transfer, int((BOX_WIDTH - 70) / 6.9)), size=12, colour=GREY)
    if alert:
        part.text(
            BOX_X + BOX_WIDTH - 14, top + 24, "bottleneck", size=12, colour=ALERT, bold=True, anchor="end"
        )
    if len(transfer.path) > 1:
        _bar(
            part,
            top + TRANSFER_HEIGHT / 2,
            transfer.seconds,
            longest,
            ALERT if alert else TRANSFER_BAR,
            height=10,
        )
    page.tip(
        f"{' → '.join(transfer.path)}: {transfer_facts(transfer)}; {tensor_names(transfer)}", part.elements
    )
    page.y += TRANSFER_HEIGHT


def _bar(page: Page, middle: float, seconds: float, longest: float, colour: str, height: float = 18) -> None:
    page.bar(middle, seconds / longest if longest > 0 else 0.0, units.show_duration(seconds), colour, height)


def _comparison(page: Page, plan: Plan) -> None:
    """This plan beside the whole model on each single device, at most six of them."""
    page.y += 40
    page.text(MARGIN, page.y, f"{TITLES[plan.objective]}, beside one device alone", size=15, bold=True)
    values = {
        name: plan.valued(each.latency_s, each.period_s, each.cost, each.energy_j)
        for name, each in plan.alternatives.items()
    }
    rows = sorted(values.items(), key=lambda item: item[1])[:6]
    if not rows:
        page.text(MARGIN, page.y + 26, "No single device can hold the whole model.", colour=GREY)
        page.y += 36
        return
    most = max(plan.value, *(value for _, value in rows))
    for number, (name, value) in enumerate([("this plan", plan.value), *rows]):
        page.y += 26
        page.text(MARGIN, page.y, fit(name, BOX_WIDTH - 20), bold=number == 0)
        colour = STAGE_BAR if number == 0 else TRANSFER_BAR
        share = value / most if most > 0 else 0.0
        page.bar(page.y - 4.5, share, show_value(plan, value), colour, height=12)
    page.y += 10


def _notes(page: Page, plan: Plan) -> None:
    for note in plan.notes:
        page.y += 22
        page.text(MARGIN, page.y, fit(f"Note: {note}.", WIDTH - 2 * MARGIN, 12), size=12, colour=GREY)
