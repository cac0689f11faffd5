"""Traced requests: clocks that differ, spans that follow each other, and the file for Perfetto."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from defer import api
from defer.dispatcher.noted import RequestTraces
from defer.tracing.chrome import chrome_trace
from defer.tracing.clocks import OURS, Clock, Reading, best_reading
from defer.tracing.gantt import gantt_page, gantt_svg
from defer.tracing.summary import summarise
from defer.tracing.terminal import chart
from defer.tracing.timeline import CLIENT, ClientTrace, Timeline, agent_clocks, make_timeline
from node_agent.messages import HopTrace, Infer, Item

MS = 1_000_000
AHEAD = st.integers(-(10**12), 10**12)
LEG = st.integers(0, 50 * MS)


def read(ahead: int, there: int, back: int, at: int = 0) -> Reading:
    """A reading over a way there and a way back of those lengths."""
    return Reading.of(at, at + there + ahead, at + there + back)


@given(AHEAD, st.lists(st.tuples(LEG, LEG), min_size=1, max_size=8))
def test_a_reading_is_right_within_its_error(ahead: int, legs: list[tuple[int, int]]) -> None:
    readings = [read(ahead, there, back) for there, back in legs]
    for reading in readings:
        assert abs(reading.ahead_ns - ahead) <= reading.error_ns
    best = best_reading(readings)
    assert best.error_ns == min(reading.error_ns for reading in readings)


@given(AHEAD, st.integers(-100, 100), LEG, LEG, LEG, LEG, st.integers(0, 10**10))
def test_a_clock_that_drifts_is_right_between_its_readings(
    ahead: int, drift: int, a: int, b: int, c: int, d: int, when: int
) -> None:
    def shows(ns: int) -> int:
        return ns + ahead + drift * ns // 1_000_000  # parts per million

    whole = 10**10
    begun = Reading.of(-a, shows(0), b)
    ended = Reading.of(whole - c, shows(whole), whole + d)
    clock = Clock(begun, ended)
    # At most 100 ppm over the round trips' halves come on top of what the readings are off by.
    assert abs(clock.ours(shows(when)) - when) <= clock.error_ns + 200 * (a + b + c + d) // 10**6 + 3


def test_our_own_clock_is_taken_as_it_is() -> None:
    assert OURS.ours(123) == 123
    assert OURS.error_ns == 0


def noted(
    requests: int, aheads: dict[str, int], errors: dict[str, int], gap: int = 2 * MS
) -> tuple[list[ClientTrace], api.Traces, dict[str, Clock]]:
    """A relay and two stages, each step of 1 ms, told by clocks that are ahead and read wrongly by `errors`."""
    seen: list[ClientTrace] = []
    passed: list[api.RequestTrace] = []
    hops: dict[str, list[HopTrace]] = defaultdict(list)
    for number in range(requests):
        trace, start = f"00-{number:032x}-{1:016x}-01", 10**9 + number * gap

        def at(step: int, place: str, start: int = start) -> int:
            return start + step * MS + aheads.get(place, 0)

        seen.append(ClientTrace(trace, at(0, CLIENT), at(1, CLIENT), at(21, CLIENT)))
        passed.append(
            api.RequestTrace(trace, 1, number, at(2, ""), at(3, ""), at(19, ""), at(20, ""), hops=3)
        )
        hops["relay"].append(HopTrace(trace, 1, number, 0, at(4, "relay"), at(5, "relay"), bytes_in=8))
        for hop, (device, begun) in enumerate((("a", 6), ("b", 12)), 1):
            hops[device].append(
                HopTrace(
                    trace,
                    1,
                    number,
                    hop,
                    at(begun, device),
                    at(begun + 6, device),
                    (at(begun + 1, device), at(begun + 2, device)),
                    (at(begun + 2, device), at(begun + 4, device)),
                    (at(begun + 4, device), at(begun + 5, device)),
                    bytes_in=8,
                    bytes_out=16,
                )
            )
    traces = api.Traces(
        0, 0, tuple(passed), tuple(api.AgentTraces(name, tuple(each)) for name, each in hops.items())
    )
    clocks = {}
    for name in (CLIENT, "relay", "a", "b"):
        wrong = errors.get(name, 0)
        reading = Reading(0, aheads.get(name, 0) + wrong, abs(wrong))
        clocks[name] = Clock(reading, reading)
    return seen, traces, clocks


PLACES = (CLIENT, "relay", "a", "b")


@given(
    st.fixed_dictionaries(dict.fromkeys(PLACES, AHEAD)),
    st.fixed_dictionaries(dict.fromkeys(PLACES, st.integers(-5 * MS, 5 * MS))),
)
def test_spans_follow_each_other_and_add_up_whatever_the_clocks(
    aheads: dict[str, int], errors: dict[str, int]
) -> None:
    timeline = make_timeline("m", *noted(2, aheads, errors))
    assert timeline.places == (CLIENT, "dispatcher", "relay", "a", "b")
    for spans, latency in zip(timeline.requests, timeline.latencies, strict=True):
        for before, after in pairwise(spans):
            assert after.begun_s == before.ended_s
        assert sum(span.seconds for span in spans) == pytest.approx(latency)
        assert latency == pytest.approx(0.021)  # begin and end are by one clock
        for span in spans:
            true = 0.002 if span.kind == "run" else 0.0 if span.kind == "transfer" else 0.001
            if span.kind == "transfer" and span.to in (CLIENT, "dispatcher", "relay", "a"):
                true = 0.001
            if span.kind == "transfer" and span.where == "a":
                true = 0.0
            if span.kind == "transfer" and span.where == "b":
                true = 0.001
            assert abs(span.seconds - true) <= span.error_s + 1e-9


def test_requests_of_which_too_little_is_known_are_counted() -> None:
    seen, traces, clocks = noted(3, {}, {})
    short = api.Traces(0, 0, traces.requests[:2], traces.agents)
    assert (
        len(make_timeline("m", seen, short, clocks).requests),
        make_timeline("m", seen, short, clocks).lost,
    ) == (2, 1)
    without_b = api.Traces(0, 0, traces.requests, traces.agents[:2])
    assert make_timeline("m", seen, without_b, clocks).lost == 3
    clocks.pop("a")
    assert make_timeline("m", seen, traces, clocks).requests == ()


def test_clocks_of_agents_come_from_both_looks() -> None:
    before = api.Traces(0, 0, agents=(api.AgentTraces("a", (), 10, 5, 1), api.AgentTraces("b")))
    after = api.Traces(0, 0, agents=(api.AgentTraces("a", (), 20, 6, 2),))
    assert agent_clocks(before, after) == {"a": Clock(Reading(10, 5, 1), Reading(20, 6, 2))}


def test_the_dispatcher_remembers_the_first_arrival_and_the_last_sending() -> None:
    notes = RequestTraces(kept=2)
    infer = Infer(b"x" * 16, "m", -1, (), (), "t")
    item = Item(1, 7, 0, -1, (), "t")
    notes.arrived(infer, 1)
    notes.arrived(infer, 2)
    notes.sent(item, 3)
    notes.sent(Item(2, 8, 0, -1, (), "t"), 4)
    notes.returned(Item(1, 7, 3, -1, (), "t"), 5)  # of the route that was given up
    notes.returned(Item(2, 8, 3, -1, (), "t"), 6)
    notes.answered(b"y" * 16, 6)
    notes.answered(b"x" * 16, 7)
    notes.answered(b"x" * 16, 8)
    assert not notes.open
    assert notes.find(("t", "unknown")) == (api.RequestTrace("t", 2, 8, 1, 4, 6, 7, 3),)
    for trace in ("u", "v"):
        notes.arrived(Infer(b"x" * 16, "m", -1, (), (), trace), 1)
    assert [each.trace for each in notes.find(("t", "u", "v"))] == ["u", "v"]


def timeline_of(requests: int = 5) -> Timeline:
    return make_timeline("m", *noted(requests, {"a": 5 * MS}, {"b": MS}))


def check_chrome(document: dict[str, Any]) -> None:
    """What the Trace Event Format asks for of the events that we use."""
    assert set(document) == {"traceEvents", "displayTimeUnit", "otherData"}
    assert document["displayTimeUnit"] in ("ms", "ns")
    named = {"process_name": set(), "thread_name": set()}
    tracks: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    flows: dict[int, list[tuple[float, str]]] = defaultdict(list)
    for event in document["traceEvents"]:
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        match event["ph"]:
            case "M":
                assert event["args"]
                if event["name"] in named:
                    named[event["name"]].add((event["pid"], event["tid"]))
                    assert isinstance(event["args"]["name"], str)
            case "X":
                assert event["ts"] >= 0
                assert event["dur"] >= 0
                assert event["name"]
                assert event["cat"]
                tracks[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
            case "s" | "t" | "f":
                flows[event["id"]].append((event["ts"], event["ph"]))
            case other:
                raise AssertionError(f"phase {other} is none of ours")
    assert {pid for pid, _ in tracks} <= {pid for pid, _ in named["process_name"]}
    assert set(tracks) <= named["thread_name"]
    for spans in tracks.values():
        spans.sort()
        for (_, end), (begin, _) in pairwise(spans):
            assert end <= begin + 1e-6  # complete events on a thread must not overlap
    for steps in flows.values():
        phases = "".join(phase for _, phase in sorted(steps, key=lambda step: step[0]))
        assert (phases[0], phases[-1], set(phases[1:-1])) == ("s", "f", {"t"})


def test_the_file_for_perfetto_has_the_structure_of_the_format() -> None:
    document = chrome_trace(timeline_of())
    check_chrome(document)
    runs = [event for event in document["traceEvents"] if event.get("cat") == "run"]
    assert len(runs) == 10
    assert all(event["dur"] == pytest.approx(2000) for event in runs)
    assert document["otherData"]["clock_error_us"]["b"] == pytest.approx(1000)


def test_numbers_of_a_run() -> None:
    summary = summarise(timeline_of())
    assert (summary.requests, summary.lost, summary.in_flight) == (5, 0, 5)
    assert summary.p50_s == summary.worst_s == pytest.approx(0.021)
    a = next(place for place in summary.places if place.place == "a")
    assert a.seconds["run"] == pytest.approx(0.002)
    assert summary.longest.share == pytest.approx(2 / 21)
    assert summary.longest.kind in ("run", "wait")
    assert a.utilisation is not None
    assert 0 < a.utilisation <= 1


def test_drawings_show_every_place_and_request() -> None:
    timeline = timeline_of()
    drawing = gantt_svg(timeline)
    page = gantt_page(timeline)
    for words in ("relay", ">a<", ">b<", "results", "request 4: run at b", "± 1 ms"):
        assert words in drawing
    assert drawing.strip() in page
    assert "Mean of a request" in page
    text = chart(timeline, 100).plain
    assert all(name in text for name in ("relay", "a ", "b ", "results"))
    assert all(digit in text for digit in "01234")
    assert all(len(line) <= 100 for line in text.splitlines())


def test_a_run_of_one_request_is_drawn() -> None:
    timeline = timeline_of(1)
    assert summarise(timeline).p90_s == pytest.approx(0.021)
    assert "1 request" in gantt_svg(timeline)
    check_chrome(chrome_trace(timeline))
