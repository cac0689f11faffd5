"""A plan as one HTML page that needs nothing else: the drawing, in light and dark, and its figures as tables."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from html import escape
from typing import Final

from defer import units
from defer.documents.plan import Plan
from defer.draw import plan_svg
from defer.draw_canvas import ALERT, DEVICES, FAINT, GREY, INK, PAPER, SHADE, TRANSFER_BAR
from defer.draw_words import bottleneck_words, gain_words, headline, show_value

LIGHTER: Final = ("#6ea8fe", "#56d364", "#c297ff", "#e3b341", "#39c5cf", "#ff80c8", "#a9b4c2", "#f0883e")
DARK: Final = {
    INK: "#e6edf3",
    GREY: "#9aa4af",
    FAINT: "#3d444d",
    PAPER: "#0d1117",
    SHADE: "#161b22",
    ALERT: "#ff9457",
    TRANSFER_BAR: "#7d8794",
    **dict(zip(DEVICES, LIGHTER, strict=True)),
}
"""What the drawing's colours become on a dark ground. A style goes before an attribute, so the drawing itself stays."""


def plan_page(plan: Plan) -> str:
    """The page; no script, no font and no file from elsewhere.

    Args:
        plan: What to draw, with 1 or more stages.

    Returns:
        The text of the file, in UTF-8 when written.
    """
    return page_around(headline(plan), plan_svg(plan), _tables(plan))


def page_around(title: str, drawing: str, below: str) -> str:
    """A page of a drawing in the colours of `draw_canvas`, in light and dark, with HTML below it.

    Args:
        title: Of the page, as plain text.
        drawing: An SVG.
        below: What follows, as HTML.
    """
    dark = "".join(
        f'svg [{kind}="{colour}"]{{{kind}:{other}}}'
        for colour, other in DARK.items()
        for kind in ("fill", "stroke")
    )
    style = (
        f"body{{margin:0 auto;max-width:980px;background:{PAPER};color:{INK};font:14px/1.5 system-ui,sans-serif}}"
        "svg{width:100%;height:auto;display:block}section{padding:0 28px 24px}"
        "table{border-collapse:collapse;width:100%}caption{text-align:left;font-weight:600;padding:12px 0 4px}"
        f"td,th{{text-align:left;padding:2px 12px 2px 0;border-bottom:1px solid {FAINT}}}"
        ".n{text-align:right;font-variant-numeric:tabular-nums}"
        f"@media (prefers-color-scheme:dark){{body{{background:{DARK[PAPER]};color:{DARK[INK]}}}"
        f"td,th{{border-color:{DARK[FAINT]}}}{dark}}}"
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><style>{style}</style></head>\n<body>\n{drawing}<section>\n'
        f"{below}</section></body></html>\n"
    )


def _tables(plan: Plan) -> str:
    whole = math.fsum(term.seconds for term in plan.terms) or 1.0
    terms = [
        (term.where, term.kind, units.show_duration(term.seconds), f"{term.seconds / whole:.1%}")
        for term in plan.terms
    ]
    parts = (
        [table_html("Where the time of one request goes", ("where", "what", "time", "share"), terms)]
        if terms
        else []
    )
    if plan.shares:
        routes = [
            (f"{share.fraction:.1%}", ", ".join(f"{s.device} {s.start}–{s.stop - 1}" for s in share.stages))
            for share in plan.shares
        ]
        parts.append(
            table_html("Routes; the drawing and the times are of the largest", ("requests", "stages"), routes)
        )
    if plan.advice is not None and plan.advice.what_ifs:
        tried = [
            (each.change, show_value(plan, each.value), gain_words(each.gain))
            for each in plan.advice.what_ifs
        ]
        parts.append(table_html("What a change would gain", ("change", "then", "gain"), tried))
    if plan.bottleneck:
        parts.append(f"<p>Bottleneck: {escape(bottleneck_words(plan))}.</p>\n")
    if plan.advice is not None and plan.advice.binding:
        parts.append(f"<p>Binding: {escape(', '.join(plan.advice.binding))}.</p>\n")
    return "".join(parts)


def table_html(
    title: str,
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    numbers: Collection[str] = ("time", "share", "then", "gain"),
) -> str:
    """A table; columns named in `numbers` stand to the right."""
    classes = [' class="n"' if name in numbers else "" for name in head]
    top = "".join(f"<th{css}>{escape(name)}</th>" for name, css in zip(head, classes, strict=True))
    body = "".join(
        "<tr>"
        + "".join(f"<td{css}>{escape(cell)}</td>" for cell, css in zip(row, classes, strict=True))
        + "</tr>\n"
        for row in rows
    )
    return f"<table><caption>{escape(title)}</caption>\n<tr>{top}</tr>\n{body}</table>\n"
