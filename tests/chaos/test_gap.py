from __future__ import annotations

import pytest

from benchmarks.chaos.history import Asked
from benchmarks.gap.stand import failed, gap, p99, results


def asked(*pairs: tuple[float, float]) -> dict[int, Asked]:
    """Requests, each with when it was sent and when its result came."""
    return {number: Asked(sent, [(came, "result", "")]) for number, (sent, came) in enumerate(pairs)}


def test_results_come_in_order_with_their_seconds() -> None:
    told = asked((1.0, 3.0), (2.0, 2.5))
    told[7] = Asked(0.0, [(9.0, "not-ready", "")])
    assert results(told) == [(2.5, 0.5), (3.0, 2.0)]


def test_the_longest_gap_is_one_that_touches_the_time_asked_for() -> None:
    told = asked((0.0, 1.0), (0.0, 5.0), (0.0, 5.5), (0.0, 7.0), (0.0, 20.0))
    assert gap(told, 5.2, 6.0) == 1.5
    assert gap(told, 2.0, 3.0) == 4.0
    assert gap({}, 2.0, 3.0) == 1.0
    assert gap(told, 0.0, 6.0, whole=True) == 4.0
    assert gap(told, 2.0, 6.0, whole=True) == 0.5


def test_latencies_count_by_when_requests_were_sent() -> None:
    told = asked(*((float(number), number + 0.01 * number) for number in range(100)))
    assert p99(told, 0.0, 49.0) == pytest.approx(0.49)
    assert p99(told, 0.0, 99.0) == pytest.approx(0.99)


def test_what_ended_otherwise_than_with_one_result_has_failed() -> None:
    told = asked((0.0, 1.0), (0.0, 1.0))
    told[1].again = 1
    told[2] = Asked(0.0, [(1.0, "result", ""), (2.0, "result", "")])
    told[3] = Asked(0.0, [(1.0, "overloaded", "")])
    told[4] = Asked(0.0)
    assert failed(told) == 4
