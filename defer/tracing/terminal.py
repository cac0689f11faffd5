"""A timeline for the terminal: a line per device, time to the right, each run as the last digit of its request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from defer import units
from defer.tracing.timeline import CLIENT, DISPATCHER, Span, Timeline

if TYPE_CHECKING:
    from rich.text import Text

COLOURS: Final = ("blue", "green", "magenta", "yellow", "cyan", "red")
MOVE, WAIT, CODE = "─", "·", "▒"
MOST_COLUMNS: Final = 160


def chart(timeline: Timeline, width: int) -> Text:
    """The pipeline as lines: runs as digits, coding as ▒, waiting as ·, and above each device what comes to it as ─.

    Args:
        timeline: A traced run with one request or more.
        width: Columns of the terminal.
    """
    from rich.text import Text

    devices = [place for place in timeline.places if place not in (CLIENT, DISPATCHER)]
    names = [*devices, "results"]
    label = min(20, max(len(name) for name in names)) + 2
    columns = max(20, min(width, MOST_COLUMNS) - label - 1)
    text = Text()
    spans = list(timeline.spans())
    for name in names:
        to = DISPATCHER if name == "results" else name
        coming = [
            span for span in spans if span.kind == "transfer" and span.to == to and span.where != CLIENT
        ]
        _line(text, name if name == "results" else "", label, _cells(timeline, coming, columns))
        if name != "results":
            here = [span for span in spans if span.where == name and span.kind != "transfer"]
            _line(text, name[: label - 2], label, _cells(timeline, here, columns))
    half = columns // 2
    middle, end = (units.show_duration(seconds) for seconds in (timeline.seconds / 2, timeline.seconds))
    text.append(" " * label + "0".ljust(half) + middle.ljust(columns - half - len(end)) + end + "\n", "dim")
    return text


Cell = tuple[str, int]
_RANK = {"wait": 0, "transfer": 0, "decode": 1, "encode": 1, "run": 2}


def _cells(timeline: Timeline, spans: list[Span], columns: int) -> list[Cell | None]:
    """What each column shows: of what goes on then, the most important, and of equals the longest."""
    best: list[tuple[int, float, Cell] | None] = [None] * columns
    step = timeline.seconds / columns if timeline.seconds > 0 else 1.0
    for span in spans:
        first = min(columns - 1, max(0, int(span.begun_s / step)))
        last = min(columns - 1, max(first, int(span.ended_s / step)))
        for column in range(first, last + 1):
            inside = min(span.ended_s, (column + 1) * step) - max(span.begun_s, column * step)
            # A run that fills less than half of a column leaves it to what fills more.
            rank = _RANK[span.kind] if inside >= step / 2 or first == last else -1
            found = best[column]
            if found is None or (rank, inside) > found[:2]:
                best[column] = (rank, inside, (_sign(span), span.request))
    return [each[2] if each is not None else None for each in best]


def _sign(span: Span) -> str:
    if span.kind == "run":
        return str(span.request % 10)
    return MOVE if span.kind == "transfer" else WAIT if span.kind == "wait" else CODE


def _line(text: Text, name: str, label: int, cells: list[Cell | None]) -> None:
    text.append(name.ljust(label), "bold")
    for cell in cells:
        if cell is None:
            text.append(" ")
            continue
        sign, request = cell
        colour = COLOURS[request % len(COLOURS)]
        text.append(sign, f"black on {colour}" if sign.isdigit() else colour)
    text.append("\n")
