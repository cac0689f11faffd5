"""A timeline drawn as one self-contained SVG, or as a page: a row per place, time to the right, a colour per request.

Blocks are what a device does: runs, and coding in a lighter tone. Lines below them are requests that wait there. Slanted
lines between rows are transfers. The dispatcher and the client stand above, where requests come from, and again
below, where results go, so that time always runs down as well as to the right.
"""

from __future__ import annotations

import math
from html import escape as escape_html
from typing import Final
from xml.sax.saxutils import escape

from defer import units
from defer.draw_canvas import DEVICES, FAINT, GREY, INK, MARGIN, PAPER, SHADE, WIDTH, Page, fit
from defer.draw_page import page_around, table_html
from defer.tracing.summary import Summary, summarise
from defer.tracing.timeline import CLIENT, DISPATCHER, KINDS, Span, Timeline

LEFT: Final = 168
RIGHT: Final = WIDTH - MARGIN
WORK, LANE, LANES, GAP, SLIM = 28, 4, 4, 24, 16
"""Pixels: a row's blocks, a line of waiting, how many lines, between rows, a row of the dispatcher or the client."""

SMALLEST: Final = 1.0
"""Pixels that a block takes at least, so that nothing vanishes."""

Row = tuple[str, bool]
"""A place, and whether it is the one below that takes results."""


def gantt_svg(timeline: Timeline) -> str:
    """The drawing, with no script, no font and no link.

    Args:
        timeline: A traced run with one request or more.

    Returns:
        The text of the file, in UTF-8 when written.
    """
    summary = summarise(timeline)
    page = Page(y=MARGIN)
    _header(page, timeline, summary)
    tops = _rows(page, timeline, summary)
    bottom = page.y
    _axis(page, timeline, min(tops.values()) - 6, bottom)
    for number, spans in enumerate(timeline.requests):
        _request(page, timeline, spans, tops, DEVICES[number % len(DEVICES)])
    page.y = bottom + 48
    _legend(page)
    height = page.y + MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" '
            f"height=\"{height:g}\" font-family=\"system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', "
            f'sans-serif" role="img">',
            f"<title>{escape(_title(summary))}</title>",
            f"<desc>{escape(_verdict(summary))}</desc>",
            f'<rect width="{WIDTH}" height="{height:g}" fill="{PAPER}"/>',
            *page.elements,
            "</svg>",
            "",
        ]
    )


def gantt_page(timeline: Timeline) -> str:
    """The drawing as a page, in light and dark, with its numbers as a table."""
    summary = summarise(timeline)
    rows = [
        (
            place.place,
            *(units.show_duration(place.seconds[kind]) if place.seconds[kind] else "" for kind in KINDS),
            f"{place.utilisation:.0%}" if place.utilisation is not None else "",
            units.show_duration(place.clock_error_s) if place.clock_error_s else "",
        )
        for place in summary.places
    ]
    head = ("at", *KINDS, "in use", "clock ±")
    body = table_html("Mean of a request", head, rows, numbers=set(head[1:]))
    return page_around(_title(summary), gantt_svg(timeline), f"<p>{escape_html(_verdict(summary))}</p>{body}")


def _title(summary: Summary) -> str:
    requests = units.show_count(summary.requests, "request")
    return f"{summary.model}: {requests}, up to {summary.in_flight} at once"


def _verdict(summary: Summary) -> str:
    busiest = max(summary.places, key=lambda place: place.utilisation or 0.0)
    latency = f"Latency p50 {units.show_duration(summary.p50_s)}, most {units.show_duration(summary.worst_s)}"
    return (
        f"{latency}; {summary.rate_per_s:.1f}/s; the busiest device is {busiest.place}, "
        f"in use {busiest.utilisation or 0.0:.0%} of the time"
    )


def _header(page: Page, timeline: Timeline, summary: Summary) -> None:
    page.text(MARGIN, page.y + 18, fit(_title(summary), WIDTH - 2 * MARGIN, 20), size=20, bold=True)
    page.text(MARGIN, page.y + 42, fit(_verdict(summary), WIDTH - 2 * MARGIN), colour=GREY)
    page.y += 58
    if any(timeline.errors.values()):
        worst = max(timeline.errors.values())
        words = (
            f"Clocks are brought together by round trips; between two places a time may be off by "
            f"{units.show_duration(2 * worst)}."
        )
        page.text(MARGIN, page.y + 8, words, size=12, colour=GREY)
        page.y += 18
    page.y += 14


def _rows(page: Page, timeline: Timeline, summary: Summary) -> dict[Row, float]:
    """Draws the rows' names and grounds; where each begins."""
    devices = [place for place in timeline.places if place not in (CLIENT, DISPATCHER)]
    used = {place.place: place for place in summary.places}
    order: list[Row] = [(CLIENT, False), (DISPATCHER, False)]
    order += [*((device, False) for device in devices), (DISPATCHER, True), (CLIENT, True)]
    tops: dict[Row, float] = {}
    for row in order:
        place, below = row
        tops[row] = page.y
        slim = place in (CLIENT, DISPATCHER)
        height = SLIM if slim else WORK + LANE * LANES
        page.box(LEFT, page.y, RIGHT - LEFT, height, SHADE, radius=2)
        middle = page.y + height / 2 + 4
        if slim:
            page.text(MARGIN, middle, f"{place}{', results' if below else ''}", size=12, colour=GREY)
        else:
            about = used[place]
            page.text(MARGIN, page.y + 17, fit(place, LEFT - MARGIN - 8), bold=True)
            words = f"in use {about.utilisation or 0.0:.0%}"
            if about.clock_error_s:
                words += f", ± {units.show_duration(about.clock_error_s)}"
            page.text(MARGIN, page.y + 34, fit(words, LEFT - MARGIN - 4, 11), size=11, colour=GREY)
        page.y += height + GAP
    page.y -= GAP
    return tops


def _axis(page: Page, timeline: Timeline, top: float, bottom: float) -> None:
    step = _nice(timeline.seconds / 6)
    ticks = math.floor(timeline.seconds / step + 1e-9) if step > 0 else 0
    for number in range(ticks + 1):
        x = _x(timeline, number * step)
        page.elements.append(
            f'<path d="M{x:.1f} {top:g} V{bottom + 4:g}" stroke="{FAINT}" stroke-width="1" fill="none"/>'
        )
        label = "0" if number == 0 else units.show_duration(number * step)
        page.text(x, bottom + 20, label, size=11, colour=GREY, anchor="middle")


def _nice(seconds: float) -> float:
    """The next step of 1, 2 or 5 times a power of ten."""
    if seconds <= 0:
        return 0.0
    scale = 10.0 ** math.floor(math.log10(seconds))
    return next((factor * scale for factor in (1, 2, 5) if factor * scale >= seconds), 10 * scale)


def _x(timeline: Timeline, seconds: float) -> float:
    return LEFT + (RIGHT - LEFT) * (seconds / timeline.seconds if timeline.seconds > 0 else 0.0)


def _request(
    page: Page, timeline: Timeline, spans: tuple[Span, ...], tops: dict[Row, float], colour: str
) -> None:
    below = False
    for span in spans:
        left, right = _x(timeline, span.begun_s), _x(timeline, span.ended_s)
        row = (span.where, below)
        if span.kind == "transfer":
            below = below or (span.to == DISPATCHER and span.where != CLIENT)
            _transfer(page, span, (left, _foot(row, tops)), (right, tops[(span.to, below)]), colour)
            continue
        width = max(right - left, SMALLEST)
        slim = span.where in (CLIENT, DISPATCHER)
        part = Page()
        if span.kind == "wait":
            lane = span.request % LANES
            y = tops[row] + (SLIM / 2 - 1 if slim else WORK + LANE * lane + 1)
            part.box(left, y, width, 2, colour, radius=0)
        else:
            top, height = tops[row] + (3 if slim else 0), (SLIM - 6 if slim else WORK)
            if span.kind == "run":
                part.box(left, top, width, height, colour, radius=1)
                if width >= 16:
                    words = str(span.request)
                    part.text(left + width / 2, top + 18, words, size=11, colour=PAPER, anchor="middle")
            else:
                part.elements.append(
                    f'<rect x="{left:.2f}" y="{top + 5:g}" width="{width:.2f}" height="{height - 10 or 2:g}" '
                    f'fill="{colour}" fill-opacity="0.55"/>'
                    if not slim
                    else f'<rect x="{left:.2f}" y="{top:g}" width="{width:.2f}" height="{height:g}" '
                    f'fill="{colour}" fill-opacity="0.55"/>'
                )
        page.tip(_words(span), part.elements)


def _foot(row: Row, tops: dict[Row, float]) -> float:
    return tops[row] + (SLIM if row[0] in (CLIENT, DISPATCHER) else WORK + LANE * LANES)


def _transfer(
    page: Page, span: Span, begun: tuple[float, float], ended: tuple[float, float], colour: str
) -> None:
    line = (
        f'<path d="M{begun[0]:.1f} {begun[1]:g} L{ended[0]:.1f} {ended[1]:g}" stroke="{colour}" '
        f'stroke-width="1.5" stroke-opacity="0.8" fill="none"/>'
    )
    page.tip(_words(span), [line])


def _words(span: Span) -> str:
    lasted = units.show_duration(max(0.0, span.seconds))
    if span.kind == "transfer":
        moved = f", {units.show_size(span.nbytes)}" if span.nbytes else ""
        error = f" ± {units.show_duration(span.error_s)}" if span.error_s else ""
        return f"request {span.request}: {span.where} → {span.to}{moved}, {lasted}{error}"
    detail = f" {span.detail}" if span.detail else ""
    return f"request {span.request}: {span.kind}{detail} at {span.where}, {lasted}"


def _legend(page: Page) -> None:
    x = float(LEFT)
    y = page.y
    page.box(x, y - 9, 22, 12, INK, radius=1)
    page.text(x + 30, y + 1, "run", size=12, colour=GREY)
    page.elements.append(
        f'<rect x="{x + 72:g}" y="{y - 7:g}" width="22" height="8" fill="{INK}" fill-opacity="0.55"/>'
    )
    page.text(x + 102, y + 1, "decode, encode", size=12, colour=GREY)
    page.box(x + 216, y - 4, 22, 2, INK, radius=0)
    page.text(x + 246, y + 1, "wait", size=12, colour=GREY)
    page.elements.append(
        f'<path d="M{x + 296:g} {y - 9:g} L{x + 312:g} {y + 3:g}" stroke="{INK}" stroke-width="1.5" fill="none"/>'
    )
    page.text(x + 322, y + 1, "transfer", size=12, colour=GREY)
    page.text(x + 400, y + 1, "a colour is a request", size=12, colour=GREY)
