"""What a run did, from the dispatcher's counters before and after it."""

from __future__ import annotations

import pytest

from defer.api import DeploymentInfo, DeviceInfo, ServerStatus, StageInfo
from defer.bench import Power, stage_loads
from defer.errors import NotReady


def _status(items: int, run_s: float, *, epoch: int = 1, **sensors: float) -> ServerStatus:
    stage = StageInfo(
        "box", 0, 4, items, run_s=run_s, encode_s=run_s / 2, bytes_in=100 * items, bytes_out=7 * items
    )
    deployment = DeploymentInfo("m", epoch, "ready", stages=(stage,))
    device = DeviceInfo("box", "alive", sensors=sensors)
    return ServerStatus(0, "d", "1", 1.0, models=(), deployments=(deployment,), devices=(device,))


def test_means_are_of_the_run_alone() -> None:
    (load,) = stage_loads("m", _status(10, 1.0), _status(30, 2.0), 200.0, Power(2.0, 5.0))
    assert load.run_s == pytest.approx((60 - 10) / 20)
    assert load.utilisation == pytest.approx(1.5 * 50 / 200)
    assert (load.bytes_in, load.bytes_out) == (100, 7)
    assert load.energy_by == "model"
    assert load.energy_j == pytest.approx((2.0 * 200 + 5.0 * 75) / 20)


def test_a_sensor_is_believed_before_the_model() -> None:
    counted = stage_loads(
        "m",
        _status(0, 0.0, **{"rapl.core.energy_j": 5.0}),
        _status(10, 0.1, **{"rapl.core.energy_j": 45.0}),
        10.0,
        Power(),
    )
    assert (counted[0].energy_by, counted[0].energy_j) == ("sensor", pytest.approx(4.0))
    watched = stage_loads(
        "m",
        _status(0, 0.0, **{"rail.IN.power_w": 4.0}),
        _status(10, 0.1, **{"rail.IN.power_w": 6.0}),
        10.0,
        Power(),
    )
    assert (watched[0].energy_by, watched[0].energy_j) == ("sensor", pytest.approx(5.0))
    wrapped = stage_loads(
        "m",
        _status(0, 0.0, **{"rapl.core.energy_j": 5.0}),
        _status(10, 0.1, **{"rapl.core.energy_j": 1.0}),
        10.0,
        Power(),
    )
    assert wrapped[0].energy_by == "model"


def test_a_run_without_requests_divides_by_nothing() -> None:
    (load,) = stage_loads("m", _status(10, 1.0), _status(10, 1.0), 1.0, Power())
    assert (load.run_s, load.utilisation, load.energy_j) == (0.0, 0.0, 0.0)


def test_a_model_that_is_gone_or_new_is_said() -> None:
    with pytest.raises(NotReady, match="not served"):
        stage_loads("other", _status(1, 1.0), _status(2, 1.0), 1.0, Power())
    with pytest.raises(NotReady, match="anew"):
        stage_loads("m", _status(1, 1.0), _status(2, 1.0, epoch=2), 1.0, Power())
