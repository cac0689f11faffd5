"""A timeline as Chrome trace JSON, which Perfetto (ui.perfetto.dev) and chrome://tracing open. Pure.

Source: the Trace Event Format (Google): complete events (`X`) on a thread must nest or not overlap, so what happens
at once gets lanes of its own; flow events (`s`, `t`, `f`) tie the spans of one request together.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from defer.tracing.timeline import Span, Timeline

COLOURS: Final = {
    "run": "thread_state_running",
    "wait": "grey",
    "decode": "thread_state_runnable",
    "encode": "thread_state_iowait",
    "transfer": "rail_load",
}
"""Names from the palette that chrome://tracing has; Perfetto takes its own."""

Event = dict[str, Any]


def chrome_trace(timeline: Timeline) -> dict[str, Any]:
    """The document.

    Args:
        timeline: A traced run.

    Returns:
        What to write as JSON: times in µs from the begin of the run, a process per place and a thread per lane.
    """
    events: list[Event] = []
    pids = {place: number for number, place in enumerate(timeline.places, 1)}
    lanes = _Lanes()
    for place, pid in pids.items():
        error = timeline.errors.get(place, 0.0)
        name = f"{place} (clock ± {error * 1e6:.0f} µs)" if error else place
        events += [_meta("process_name", pid, name=name), _meta("process_sort_index", pid, sort_index=pid)]
    placed = [(span, lanes.of(span)) for span in sorted(timeline.spans(), key=lambda span: span.begun_s)]
    threads = {
        (pids[span.where], lane): number
        for number, (span, lane) in enumerate(sorted(placed, key=lambda each: (each[0].where, each[1])), 1)
    }
    for (pid, (kind, number)), tid in threads.items():
        name = kind if number == 0 else f"{kind} {number + 1}"
        events.append(_meta("thread_name", pid, tid, name=name))
    flows: dict[int, list[tuple[Span, int]]] = {}
    for span, lane in placed:
        tid = threads[(pids[span.where], lane)]
        events.append(_complete(span, pids[span.where], tid))
        flows.setdefault(span.request, []).append((span, tid))
    for request, spans in flows.items():
        spans.sort(key=lambda each: (each[0].begun_s, each[0].ended_s))
        events += _flow(request, spans, pids)
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {
            "model": timeline.model,
            "requests": len(timeline.requests),
            "clock_error_us": {place: error * 1e6 for place, error in timeline.errors.items()},
        },
    }


class _Lanes:
    """Gives spans that overlap lanes of their own; to be asked in the order of their begins."""

    def __init__(self) -> None:
        self._free: dict[tuple[str, str], list[float]] = {}

    def of(self, span: Span) -> tuple[str, int]:
        name = f"to {span.to}" if span.kind == "transfer" else span.kind
        ends = self._free.setdefault((span.where, name), [])
        for number, end in enumerate(ends):
            if end <= span.begun_s:
                ends[number] = max(span.begun_s, span.ended_s)
                return name, number
        ends.append(max(span.begun_s, span.ended_s))
        return name, len(ends) - 1


def _meta(what: str, pid: int, tid: int = 0, **about: Any) -> Event:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": about}


def _complete(span: Span, pid: int, tid: int) -> Event:
    about: dict[str, Any] = {"request": span.request}
    if span.hop >= 0:
        about["hop"] = span.hop
    if span.nbytes:
        about["bytes"] = span.nbytes
    if span.error_s:
        about["error_us"] = span.error_s * 1e6
    if span.detail:
        about["what"] = span.detail
    return {
        "ph": "X",
        "name": f"{span.kind} {span.request}",
        "cat": span.kind,
        "pid": pid,
        "tid": tid,
        "ts": span.begun_s * 1e6,
        # Clocks that are off may let a transfer end before it began.
        "dur": max(0.0, span.seconds) * 1e6,
        "cname": COLOURS[span.kind],
        "args": about,
    }


def _flow(request: int, spans: list[tuple[Span, int]], pids: dict[str, int]) -> Iterable[Event]:
    """An arrow through a request's runs, from its first span to its last."""
    stops = [spans[0], *(each for each in spans[1:-1] if each[0].kind == "run"), spans[-1]]
    for number, (span, tid) in enumerate(stops):
        phase = "s" if number == 0 else "f" if number == len(stops) - 1 else "t"
        event: Event = {
            "ph": phase,
            "id": request + 1,
            "name": "request",
            "cat": "request",
            "pid": pids[span.where],
            "tid": tid,
            "ts": span.begun_s * 1e6,
        }
        yield {**event, "bp": "e"} if phase != "s" else event
