"""The benchmark's load on a gateway without agents."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks import gateway
from benchmarks.gateway_load import Measured, drive, request_of
from defer.errors import NotReady
from tests.defer.gateway_fixtures import FakeBackend, failing, served

pytestmark = pytest.mark.integration

PATH = "/v2/models/same/infer"


def loaded(backend: FakeBackend, rows: int, clients: int) -> Measured:
    with served(backend) as (server, _):
        assert server.http is not None
        request, array = request_of(PATH, str(server.http), (rows, 4), "x")
        address = (server.http.host, server.http.port)
        return drive(address, request, array.nbytes + 4096, clients, 0.2, array.reshape(-1))


@pytest.mark.parametrize(("rows", "clients"), [(1, 1), (40_000, 3)])
def test_answers_are_checked_and_counted(rows: int, clients: int) -> None:
    backend = FakeBackend()
    told = loaded(backend, rows, clients).told()
    assert 0 < told["rate"] * 0.2 < len(backend.seen)
    assert 0 < told["p50"] <= told["p99"] < 10


def test_a_wrong_answer_ends_the_run() -> None:
    def wrong(submit):  # type: ignore[no-untyped-def]
        (header,) = submit.tensors
        return (type(header)("y", "float32", header.shape, "raw", header.nbytes),), [b"\1" * header.nbytes]

    with pytest.raises(SystemExit, match="not what the model gives"):
        loaded(FakeBackend(work=wrong), 2, 1)


def test_a_refusal_ends_the_run() -> None:
    with pytest.raises(SystemExit, match="503"):
        loaded(FakeBackend(work=failing(NotReady("gone"))), 2, 1)


def test_ours_is_compared_with_the_best_peer_turn_by_turn() -> None:
    def turns(*rates: float) -> list[dict[str, float]]:
        return [{"rate": rate, "p50": 0.001, "p99": 0.002, "cpu": 0.0} for rate in rates]

    found = {
        ("600 KiB", 8, "defer", "http"): turns(30, 40, 50),
        ("600 KiB", 8, "MLServer", "http"): turns(10, 40, 10),
        ("600 KiB", 8, "Ray Serve", "http"): turns(15, 1, 20),
        ("600 KiB", 8, "MLServer, no worker", "http"): turns(99, 99, 99),
    }
    (target,) = gateway.targets(found)
    assert target.value == pytest.approx(np.median([2.0, 1.0, 2.5]))
    assert target.ok
    assert math.isfinite(target.value)
