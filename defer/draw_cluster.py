"""The cluster in a plan's drawing: its devices on a ring, how busy each is, and what crosses the links between them."""

from __future__ import annotations

import math
from typing import Final

from defer import units
from defer.documents.plan import Plan, PlanLink
from defer.draw_canvas import (
    ALERT,
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

MOST: Final = 12
"""Devices on the ring, and links in the list; more would touch each other."""

BOX: Final = (156.0, 52.0)
RING: Final = (378.0, 150.0)
"""Half the width and height of the ring on which the middles of the boxes lie."""

Point = tuple[float, float]


def draw_cluster(page: Page, plan: Plan, colours: dict[str, str]) -> None:
    """Adds the ring and the list of links; nothing for a plan that does not know its cluster.

    Args:
        page: Where to.
        plan: With loads.
        colours: Of the devices that run stages.
    """
    if not plan.device_loads:
        return
    page.y += 44
    page.text(MARGIN, page.y, "Cluster and traffic", size=15, bold=True)
    hint = "Bars: how much of the time a device works when the pipeline is full. Lines: bytes per request."
    page.text(MARGIN, page.y + 20, hint, size=12, colour=GREY)
    shown, left = _shown(plan)
    flat = len(shown) <= 2
    height = 0.0 if flat else 2 * RING[1]
    middle = (WIDTH / 2, page.y + 52 + BOX[1] / 2 + height / 2)
    places = {}
    for number, name in enumerate(shown):
        angle = math.pi + 2 * math.pi * number / len(shown)
        places[name] = (middle[0] + RING[0] * math.cos(angle), middle[1] + RING[1] * math.sin(angle))
    for link in sorted(plan.link_loads, key=lambda link: link.wire_bytes):
        if link.source in places and link.target in places:
            _line(page, plan, link, places[link.source], places[link.target])
    for name in shown:
        _node(page, plan, name, places[name], colours.get(name, GREY))
    page.y += 52 + BOX[1] + height + 14
    if left:
        page.text(
            MARGIN, page.y + 8, f"and {left} more devices that this plan does not use", size=12, colour=GREY
        )
        page.y += 16
    _traffic(page, plan)


def _shown(plan: Plan) -> tuple[list[str], int]:
    """Devices on the ring in the order in which requests pass, the unused last; and how many are left out."""
    used = list(dict.fromkeys((*plan.devices, *_passed(plan))))
    others = [load.name for load in plan.device_loads if load.name not in used]
    names = [*used, *others][: max(MOST, 1)]
    return names, len(used) + len(others) - len(names)


def _passed(plan: Plan) -> list[str]:
    """Every device on any route."""
    transfers = [*plan.transfers, *(transfer for share in plan.shares for transfer in share.transfers)]
    return [name for transfer in transfers for name in transfer.path]


def _node(page: Page, plan: Plan, name: str, at: Point, colour: str) -> None:
    load = next((each for each in plan.device_loads if each.name == name), None)
    stages = [*plan.stages, *(stage for share in plan.shares for stage in share.stages)]
    runs, passed = any(stage.device == name for stage in stages), name in _passed(plan)
    left, top = at[0] - BOX[0] / 2, at[1] - BOX[1] / 2
    alert = plan.bottleneck == f"device {name}"
    busy = load.busy_s if load is not None else 0.0
    share = min(1.0, busy / plan.period_s) if plan.period_s > 0 else 0.0
    ends = name in (plan.source, plan.sink)
    words = (
        f"{share:.0%} busy"
        if runs
        else "requests, results"
        if ends
        else "passes on"
        if passed
        else "not used"
    )
    part = Page()
    part.box(
        left, top, *BOX, PAPER if passed else SHADE, stroke=ALERT if alert else colour if runs else FAINT
    )
    part.text(left + 12, top + 20, fit(name, BOX[0] - 20), bold=runs, colour=INK if passed else GREY)
    part.text(left + 12, top + 37, words, size=11, colour=ALERT if alert else GREY)
    part.box(left + 12, top + 42, BOX[0] - 24, 4, FAINT, radius=2)
    if runs and share > 0:
        part.box(left + 12, top + 42, (BOX[0] - 24) * share, 4, ALERT if alert else colour, radius=2)
    room = ""
    if load is not None and load.used_bytes:
        limit = f" of {units.show_size(load.memory_bytes)}" if load.memory_bytes is not None else ""
        room = f", {units.show_size(load.used_bytes)}{limit} of memory"
    page.tip(f"{name}: {words}, {units.show_duration(busy)} of work per request{room}", part.elements)


def _line(page: Page, plan: Plan, link: PlanLink, start: Point, stop: Point) -> None:
    """A curve that bends to its own right, so that the way back is another line."""
    across, down = stop[0] - start[0], stop[1] - start[1]
    length = math.hypot(across, down)
    bend = 0.09 * length
    control = (
        (start[0] + stop[0]) / 2 - bend * down / length,
        (start[1] + stop[1]) / 2 + bend * across / length,
    )
    begin, end = _border(start, control), _border(stop, control)
    used = link.wire_bytes > 0
    alert = _is_bottleneck(plan, link)
    colour = ALERT if alert else STAGE_BAR if used else FAINT
    most = max(each.wire_bytes for each in plan.link_loads)
    width = 1.5 + 5 * math.sqrt(link.wire_bytes / most) if used else 1.0
    dashes = "" if used else ' stroke-dasharray="3 4"'
    curve = (
        f'<path d="M{begin[0]:.1f} {begin[1]:.1f} Q{control[0]:.1f} {control[1]:.1f} {end[0]:.1f} {end[1]:.1f}" '
        f'stroke="{colour}" stroke-width="{width:.1f}" fill="none"{dashes}/>'
    )
    page.tip(_facts(link), [curve, *([_head(control, end, width, colour)] if used else [])])


def _border(box: Point, towards: Point) -> Point:
    """Where the line from the middle of a box to a point leaves the box, with a little air."""
    across, down = towards[0] - box[0], towards[1] - box[1]
    scale = min(
        (BOX[0] / 2 + 5) / abs(across) if across else math.inf,
        (BOX[1] / 2 + 5) / abs(down) if down else math.inf,
    )
    return box[0] + across * min(scale, 1.0), box[1] + down * min(scale, 1.0)


def _head(control: Point, end: Point, width: float, colour: str) -> str:
    angle = math.atan2(end[1] - control[1], end[0] - control[0])
    size = 6 + 1.6 * width
    sides = [angle + math.pi - 0.42, angle + math.pi + 0.42]
    corners = [end, *((end[0] + size * math.cos(side), end[1] + size * math.sin(side)) for side in sides)]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    return f'<polygon points="{points}" fill="{colour}"/>'


def _is_bottleneck(plan: Plan, link: PlanLink) -> bool:
    if link.wire_bytes == 0:
        return False
    return plan.bottleneck in (f"link {link.source} -> {link.target}", f"medium {link.medium}")


def _facts(link: PlanLink) -> str:
    shared = f", shares {link.medium}" if link.medium else ""
    speed = f"{units.show_bandwidth(link.bytes_per_s)}, {units.show_duration(link.delay_s)}{shared}"
    return f"{link.source} → {link.target}: {units.show_size(link.wire_bytes)} per request; {speed}"


def _traffic(page: Page, plan: Plan) -> None:
    """The links in use, the busiest first: bytes per request, and the time that they take."""
    used = sorted((link for link in plan.link_loads if link.wire_bytes), key=lambda link: -link.busy_s)
    if not used:
        return
    longest = max(plan.period_s, used[0].busy_s)
    page.y += 6
    for link in used[:MOST]:
        page.y += 24
        page.text(MARGIN, page.y, fit(f"{link.source} → {link.target}", 300))
        facts = f"{units.show_size(link.wire_bytes)} at {units.show_bandwidth(link.bytes_per_s)}"
        page.text(MARGIN + 310, page.y, facts, size=12, colour=GREY)
        colour = ALERT if _is_bottleneck(plan, link) else TRANSFER_BAR
        share = link.busy_s / longest if longest > 0 else 0.0
        page.bar(page.y - 4.5, share, units.show_duration(link.busy_s), colour, height=10)
    if len(used) > MOST:
        page.y += 22
        page.text(
            MARGIN,
            page.y,
            f"and {units.show_count(len(used) - MOST, 'link')} with less",
            size=12,
            colour=GREY,
        )
