"""A short soak of real processes, and the rule by which something grows."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from benchmarks.soak import model
from benchmarks.soak.growth import ALLOWED, DAY_S, MIB, judge, slope, spans

ROOT = Path(__file__).parents[2]


def seen(
    count: int, per_second: float, *, level: float = 100.0, noise: float = 0.0
) -> list[tuple[float, float]]:
    draw = random.Random(3)
    return [(5.0 * n, level + per_second * 5.0 * n + noise * draw.random()) for n in range(count)]


def test_a_slope_is_that_of_most_pairs() -> None:
    points = [(float(n), 2.0 * n) for n in range(30)]
    points[7] = (7.0, 1e9)
    assert slope(points) == pytest.approx(2.0)
    assert slope([(1.0, 5.0)]) == 0.0


def test_spans_are_told_by_their_lower_fifth() -> None:
    assert spans([(float(n), float(n % 2 or 50 - n)) for n in range(10)], 1) == [(4.5, 1.0)]
    assert spans([(0.0, 5.0), (1.0, 3.0), (9.0, 8.0), (10.0, 9.0)], 2) == [(0.5, 3.0), (9.5, 8.0)]
    assert spans([]) == []


@pytest.mark.parametrize("kind", ALLOWED)
def test_what_does_not_grow_is_flat_however_it_moves(kind: str) -> None:
    found = judge(kind, seen(360, 0.0, level=100 * MIB, noise=30 * MIB))
    assert found.flat


def test_a_leak_is_found_and_told_for_a_day() -> None:
    leak = judge("memory", seen(360, 0.004 * MIB, level=150 * MIB, noise=8 * MIB))
    assert not leak.flat
    assert leak.per_day == pytest.approx(0.004 * MIB * DAY_S, rel=0.2)
    assert not judge("descriptors", seen(360, 1 / 300, level=40)).flat
    assert judge("descriptors", seen(360, 1 / 3000, level=40)).flat


def test_what_grows_while_it_warms_up_is_not_judged() -> None:
    warming = [(at, min(value, 150.0)) for at, value in seen(360, 0.4)]
    assert judge("threads", warming).flat


def test_every_row_of_a_request_is_checked(tmp_path: Path) -> None:
    session = onnxruntime.InferenceSession(model.save(tmp_path / "soak.onnx"))
    matrices = model.weights()
    (result,) = session.run(None, {"a0": model.request(5, 4)})
    assert model.is_right(result, 5, 4, matrices)
    assert not model.is_right(result, 6, 4, matrices)
    assert not model.is_right(result[:3], 5, 4, matrices)
    result[3, int(np.argmax(result[3]))] = 0
    assert not model.is_right(result, 5, 4, matrices)


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.alone
def test_nothing_is_lost_or_wrong_in_a_short_soak(tmp_path: Path) -> None:
    told = tmp_path / "soak.json"
    command = [sys.executable, "-m", "benchmarks.soak", "--quick", "--seed", "5", "--json", str(told)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads(told.read_text())
    values = {target["name"]: target["value"] for target in found["targets"]}
    # What grows shows in half an hour; here everything else must hold.
    assert values["results that are wrong"] == 0, ran.stdout
    assert values["requests that never ended"] == 0, ran.stdout
    assert values["errors that nothing explains"] == 0, ran.stdout
    assert values["changes that failed"] == 0, ran.stdout
    assert {row["process"] for row in found["rows"]} == {
        "dispatcher",
        "clients",
        "operator",
        "a",
        "b",
        "c",
        "d",
    }
