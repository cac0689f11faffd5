"""A timeline in numbers: what a request spends where on average. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import quantiles

import msgspec

from defer.tracing.timeline import CLIENT, DISPATCHER, KINDS, Span, Timeline


class PlaceTimes(msgspec.Struct, frozen=True):
    """Mean seconds of a request at one place.

    Attributes:
        place: `client`, `dispatcher` or a device.
        seconds: By kind; a transfer counts where it begins.
        utilisation: Share of the run in which it decoded, ran or encoded; None for the client and the dispatcher.
        clock_error_s: What its clock may be off by against the dispatcher's.
    """

    place: str
    seconds: dict[str, float]
    utilisation: float | None
    clock_error_s: float


class Longest(msgspec.Struct, frozen=True):
    """What takes most of a request's time on average: its kind, place and, for a transfer, destination; s and share."""

    kind: str
    place: str
    to: str
    seconds: float
    share: float


class Summary(msgspec.Struct, frozen=True):
    """A traced run in numbers; times in seconds, `lost` requests left no whole trace."""

    model: str
    requests: int
    lost: int
    in_flight: int
    rate_per_s: float
    p50_s: float
    p90_s: float
    worst_s: float
    places: tuple[PlaceTimes, ...]
    longest: Longest


def summarise(timeline: Timeline) -> Summary:
    """The numbers of a timeline with one request or more."""
    latencies = sorted(timeline.latencies)
    cuts = quantiles(latencies, n=10, method="inclusive") if len(latencies) > 1 else latencies * 9
    spans = list(timeline.spans())
    return Summary(
        model=timeline.model,
        requests=len(latencies),
        lost=timeline.lost,
        in_flight=_most_at_once(timeline),
        rate_per_s=len(latencies) / timeline.seconds if timeline.seconds > 0 else 0.0,
        p50_s=cuts[4],
        p90_s=cuts[8],
        worst_s=latencies[-1],
        places=tuple(
            _place(place, [span for span in spans if span.where == place], timeline)
            for place in timeline.places
        ),
        longest=_longest(spans, len(latencies), sum(latencies)),
    )


def _longest(spans: list[Span], requests: int, total: float) -> Longest:
    sums: dict[tuple[str, str, str], float] = {}
    for span in spans:
        key = (span.kind, span.where, span.to)
        sums[key] = sums.get(key, 0.0) + span.seconds
    (kind, place, to), most = max(sums.items(), key=lambda each: each[1])
    return Longest(kind, place, to, most / requests, most / total if total > 0 else 0.0)


def _place(place: str, spans: list[Span], timeline: Timeline) -> PlaceTimes:
    requests = len(timeline.requests)
    sums = {kind: sum(span.seconds for span in spans if span.kind == kind) for kind in KINDS}
    use = None
    if place not in (CLIENT, DISPATCHER) and timeline.seconds > 0:
        use = covered(span for span in spans if span.kind in ("decode", "run", "encode")) / timeline.seconds
    return PlaceTimes(
        place, {kind: total / requests for kind, total in sums.items()}, use, timeline.errors.get(place, 0.0)
    )


def covered(spans: Iterable[Span]) -> float:
    """Seconds in which one span or more of some was going on."""
    total, until = 0.0, float("-inf")
    for span in sorted(spans, key=lambda span: span.begun_s):
        total += max(0.0, span.ended_s - max(until, span.begun_s))
        until = max(until, span.ended_s)
    return total


def _most_at_once(timeline: Timeline) -> int:
    changes = [
        change for spans in timeline.requests for change in ((spans[0].begun_s, 1), (spans[-1].ended_s, -1))
    ]
    most = now = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most
