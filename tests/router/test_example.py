"""The worked example of docs/planning.md and of the package's docstring."""

from __future__ import annotations

import doctest
from dataclasses import replace

import pytest

import router
from router import Cluster, CodecCost, Device, Link, Problem, Stage, place, solve


def example() -> Problem:
    names = ["server", "a", "b"]
    return Problem(
        cluster=Cluster(
            [Device("server", computes=False), Device("a", memory=600), Device("b", memory=600)],
            [Link(u, v, 1e6, 0.001) for u in names for v in names if u != v],
        ),
        source="server",
        sink="server",
        block_seconds={"a": [0.010, 0.010], "b": [0.020, 0.010]},
        block_memory=[500, 500],
        boundary_bytes=[1000, 2000, 100],
    )


def test_docstring() -> None:
    assert doctest.testmod(router).failed == 0


def test_two_plans() -> None:
    best = solve(example(), "throughput")
    assert (best.latency, best.period) == (pytest.approx(0.0261), pytest.approx(0.010))
    other = place(example(), [Stage("b", 0, 1), Stage("a", 1, 2)])
    assert (other.latency, other.period) == (pytest.approx(0.0361), pytest.approx(0.020))


def test_codec_on_the_first_two_transfers() -> None:
    seconds = {name: [0.0002] * 3 for name in ("server", "a", "b")}
    problem = replace(example(), codecs=[CodecCost("raw"), CodecCost("four", 4.0, seconds, seconds)])
    best = solve(problem, "latency")
    assert [t.codec for t in best.route.transfers] == ["four", "four", "raw"]
    assert best.latency == pytest.approx(0.02465)
    assert best.period == pytest.approx(0.0104)
    assert solve(problem, "throughput").period == pytest.approx(0.010)
