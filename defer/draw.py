"""A plan as one self-contained SVG: stages from top to bottom, what moves between them, and where the time goes.

The flow is on the left and a bar of seconds beside each step on the right, so that one sees at a glance which step a
request waits for. Rows are added downwards, so that any number of stages keeps its room.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final
from xml.sax.saxutils import escape

from defer import units
from defer.documents.plan import Plan, PlanStage, PlanTransfer
from defer.draw_words import (
    first_tensor,
    headline,
    is_bottleneck,
    shortened,
    stage_facts,
    tensor_names,
    transfer_facts,
    verdict,
)

WIDTH: Final = 980
MARGIN: Final = 28
BOX_X: Final = MARGIN
BOX_WIDTH: Final = 540
BAR_X: Final = 600
BAR_WIDTH: Final = 240
"""Pixels of the longest bar; its seconds stand to the right of it."""

STAGE_HEIGHT: Final = 62
TRANSFER_HEIGHT: Final = 58
CHARACTER: Final = 7.4
"""Pixels that one character of 13 px text takes at most, on average; names are shortened by it."""

INK, GREY, FAINT, PAPER = "#1b1f24", "#57606a", "#d0d7de", "#ffffff"
STAGE_BAR, TRANSFER_BAR, ALERT = "#2f6feb", "#8a94a0", "#c2410c"
DEVICES: Final = ("#2f6feb", "#1a7f37", "#8250df", "#9a6700", "#0e7490", "#bf3989", "#475569", "#7c2d12")
"""Colours of the devices in order of appearance; all at least 4.5:1 on white."""


@dataclass(slots=True)
class _Page:
    """Elements so far, and how far down they reach."""

    elements: list[str] = field(default_factory=list)
    y: float = 0.0

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: int = 13,
        colour: str = INK,
        bold: bool = False,
        anchor: str = "",
    ) -> None:
        weight = ' font-weight="600"' if bold else ""
        place = f' text-anchor="{anchor}"' if anchor else ""
        self.elements.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}"{weight}{place}>{escape(words)}</text>'
        )

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str,
        *,
        stroke: str = "none",
        radius: int = 6,
    ) -> None:
        self.elements.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius}" fill="{fill}" '
            f'stroke="{stroke}"/>'
        )

    def tip(self, words: str, elements: Iterable[str]) -> None:
        """Elements that show `words` under the pointer: whatever was shortened is there in full."""
        self.elements.append(f"<g><title>{escape(words)}</title>{''.join(elements)}</g>")


def plan_svg(plan: Plan) -> str:
    """The plan as an SVG document that needs nothing else: no script, no font, no link.

    Args:
        plan: What to draw, with 1 or more stages.

    Returns:
        The text of the file, in UTF-8 when written.
    """
    page = _Page(y=MARGIN)
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
    return list(dict.fromkeys(stage.device for stage in plan.stages))


def _fit(words: str, pixels: float, size: int = 13) -> str:
    return shortened(words, max(8, int(pixels / (CHARACTER * size / 13))))


def _header(page: _Page, plan: Plan) -> None:
    page.text(MARGIN, page.y + 18, _fit(headline(plan), WIDTH - 2 * MARGIN, 20), size=20, bold=True)
    page.text(MARGIN, page.y + 42, _fit(verdict(plan), WIDTH - 2 * MARGIN), colour=GREY)
    page.y += 66
    page.box(BAR_X, page.y + 8, 12, 12, STAGE_BAR, radius=2)
    page.text(BAR_X + 20, page.y + 18, "compute", size=12, colour=GREY)
    page.box(BAR_X + 90, page.y + 8, 12, 12, TRANSFER_BAR, radius=2)
    page.text(BAR_X + 110, page.y + 18, "transfer", size=12, colour=GREY)
    page.box(BAR_X + 178, page.y + 8, 12, 12, ALERT, radius=2)
    page.text(BAR_X + 198, page.y + 18, "bottleneck", size=12, colour=GREY)


def _end(page: _Page, device: str, what: str) -> None:
    name = _fit(device, 300)
    page.box(BOX_X, page.y, BOX_WIDTH, 30, "#f6f8fa", stroke=FAINT, radius=15)
    page.text(BOX_X + 16, page.y + 20, name, bold=True)
    page.text(BOX_X + BOX_WIDTH - 16, page.y + 20, what, size=12, colour=GREY, anchor="end")
    page.y += 30


def _draw_stage(page: _Page, plan: Plan, stage: PlanStage, number: int, longest: float, colour: str) -> None:
    top, alert = page.y, is_bottleneck(plan, stage)
    part = _Page()
    part.box(BOX_X, top, BOX_WIDTH, STAGE_HEIGHT, PAPER, stroke=ALERT if alert else FAINT)
    part.box(BOX_X, top, 8, STAGE_HEIGHT, colour, radius=3)
    part.text(BOX_X + 24, top + 38, str(number + 1), size=20, colour=colour, bold=True)
    part.text(BOX_X + 56, top + 26, _fit(stage.device, BOX_WIDTH - 180, 15), size=15, bold=True)
    part.text(BOX_X + 56, top + 47, _fit(stage_facts(stage), BOX_WIDTH - 70), colour=GREY)
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


def _draw_transfer(page: _Page, plan: Plan, transfer: PlanTransfer, longest: float) -> None:
    top, alert, x = page.y, is_bottleneck(plan, transfer), BOX_X + 30
    colour = ALERT if alert else GREY
    foot = top + TRANSFER_HEIGHT - 4
    part = _Page()
    dashes = ' stroke-dasharray="3 4"' if len(transfer.path) == 1 else ""
    part.elements.append(
        f'<path d="M{x} {top + 4:g} V{foot - 8:g}" stroke="{colour}" stroke-width="2" fill="none"{dashes}/>'
        f'<path d="M{x - 6} {foot - 9:g} L{x} {foot:g} L{x + 6} {foot - 9:g} Z" fill="{colour}"/>'
    )
    room = BOX_WIDTH - 70 - (80 if alert else 0)
    part.text(x + 26, top + 24, _fit(transfer_facts(transfer), room), colour=INK)
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


def _bar(page: _Page, middle: float, seconds: float, longest: float, colour: str, height: float = 18) -> None:
    width = BAR_WIDTH * seconds / longest if longest > 0 else 0.0
    page.box(BAR_X, middle - height / 2, max(width, 1.5), height, colour, radius=2)
    page.text(BAR_X + max(width, 1.5) + 10, middle + 4.5, units.show_duration(seconds))


def _comparison(page: _Page, plan: Plan) -> None:
    """This plan beside the whole model on each single device, at most six of them."""
    page.y += 40
    latency = plan.objective == "latency"
    title = "Time of one request" if latency else "Time between two results"
    page.text(MARGIN, page.y, f"{title}, beside one device alone", size=15, bold=True)
    values = {name: each.latency_s if latency else each.period_s for name, each in plan.alternatives.items()}
    rows = sorted(values.items(), key=lambda item: item[1])[:6]
    if not rows:
        page.text(MARGIN, page.y + 26, "No single device can hold the whole model.", colour=GREY)
        page.y += 36
        return
    longest = max(plan.value, *(seconds for _, seconds in rows))
    for number, (name, seconds) in enumerate([("this plan", plan.value), *rows]):
        page.y += 26
        page.text(MARGIN, page.y, _fit(name, BOX_WIDTH - 20), bold=number == 0)
        _bar(page, page.y - 4.5, seconds, longest, STAGE_BAR if number == 0 else TRANSFER_BAR, height=12)
    page.y += 10


def _notes(page: _Page, plan: Plan) -> None:
    for note in plan.notes:
        page.y += 22
        page.text(MARGIN, page.y, _fit(f"Note: {note}.", WIDTH - 2 * MARGIN, 12), size=12, colour=GREY)
