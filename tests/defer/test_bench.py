"""What a run did, from the dispatcher's counters before and after it."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from defer.api import DeploymentInfo, DeviceInfo, ModelInfo, ServerStatus, StageInfo
from defer.bench import Quantities, client_coding_s, quantities_of
from defer.bench_stages import Power, StageLoad, stage_loads
from defer.errors import NotReady
from node_agent.messages import TensorSpec


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


def test_what_rounding_leaves_is_nothing() -> None:
    before, after = _status(3, 0.1), _status(3_000_003, 0.3 / 3_000_003 + 1e-15)
    (load,) = stage_loads("m", before, after, 1.0, Power())
    assert (load.run_s, load.encode_s) == (0.0, 0.0)


def test_a_model_that_is_gone_or_new_is_said() -> None:
    with pytest.raises(NotReady, match="not served"):
        stage_loads("other", _status(1, 1.0), _status(2, 1.0), 1.0, Power())
    with pytest.raises(NotReady, match="anew"):
        stage_loads("m", _status(1, 1.0), _status(2, 1.0, epoch=2), 1.0, Power())


def test_a_device_with_two_stages_counts_its_energy_once() -> None:
    def status(items: int) -> ServerStatus:
        stages = tuple(StageInfo("box", n, n + 1, items, run_s=run) for n, run in enumerate((0.3, 0.1)))
        device = DeviceInfo("box", "alive", sensors={"rapl.package.energy_j": 4.0 * items})
        return ServerStatus(
            0, "d", "1", 1.0, deployments=(DeploymentInfo("m", 1, "ready", stages=stages),), devices=(device,)
        )

    first, second = stage_loads("m", status(0), status(10), 10.0, Power())
    assert (first.energy_j, second.energy_j) == (pytest.approx(3.0), pytest.approx(1.0))


def test_power_is_summed_up_over_time_and_a_rail_that_holds_all_is_taken_alone() -> None:
    def at(seconds: float, watts: float, items: int) -> tuple[float, ServerStatus]:
        rails = {"rail.VDD_IN.power_w": watts, "rail.VDD_SOC.power_w": 100.0}
        return seconds, _status(items, 0.1, **rails)

    looks = [at(0, 2.0, 0), at(4, 10.0, 5), at(8, 10.0, 9), at(10, 2.0, 10)]
    (_, before), *between, (_, after) = looks
    (load,) = stage_loads("m", before, after, 10.0, Power(), between)
    assert load.energy_by == "sensor"
    assert load.energy_j == pytest.approx((4 * 6 + 4 * 10 + 2 * 6) / 10)


def test_the_four_quantities_of_a_pipeline() -> None:
    stages = [
        StageLoad("a", 0.5, 0, 0.001, 0.1, 0.002, 100, 40, 3.0, "sensor", stop=2),
        StageLoad("b", 0.5, 0, 0.003, 0.1, 0.0, 40, 8, 2.0, "model", start=2, stop=4),
    ]
    four = quantities_of(12.5, stages, 0.007)
    assert four == Quantities(12.5, 5.0, "both", 148, 0.007)
    assert quantities_of(0.0, [], 0.0).energy_by == "model"


def test_every_route_counts_where_devices_share_stages() -> None:
    def status(thirds: int) -> ServerStatus:
        """After so many thirds of the requests: two of three pass b, one passes c, and all pass a."""

        def route(epoch: int, device: str, items: int) -> DeploymentInfo:
            first = StageInfo(
                "a", 0, 3, items, run_s=0.1, bytes_in=100 * items, bytes_out=40 * items, runs=items
            )
            last = StageInfo(
                device, 3, 4, items, run_s=0.2, bytes_in=40 * items, bytes_out=8 * items, runs=items
            )
            return DeploymentInfo("m", epoch, "ready", stages=(first, last))

        routes = (route(1, "b", 2 * thirds), route(2, "c", thirds))
        devices = tuple(DeviceInfo(name, "alive") for name in "abc")
        return ServerStatus(0, "d", "1", 1.0, deployments=routes, devices=devices)

    loads = stage_loads("m", status(5), status(15), 10.0, Power(2.0, 5.0))
    assert [(load.device, load.start, load.stop) for load in loads] == [("a", 0, 3), ("b", 3, 4), ("c", 3, 4)]
    assert [load.share for load in loads] == pytest.approx([1, 2 / 3, 1 / 3])
    assert [load.utilisation for load in loads] == pytest.approx([0.3, 0.4, 0.2])
    four = quantities_of(3.0, loads, 0.0)
    assert four.payload_bytes == pytest.approx(100 + 40 + 8)
    assert four.energy_j * 30 == pytest.approx(3 * 2.0 * 10 + 5.0 * (3 + 4 + 2))

    def without_c(whole: ServerStatus) -> ServerStatus:
        routes = (whole.deployments[0], msgspec.structs.replace(whole.deployments[1], state="lost"))
        return msgspec.structs.replace(whole, deployments=routes)

    for looks in ((status(5), without_c(status(15))), (without_c(status(5)), status(15))):
        loads = stage_loads("m", *looks, 10.0, Power())
        assert [(load.device, load.share) for load in loads] == [("a", 1), ("b", 1)]


def test_runs_that_held_several_requests_are_told() -> None:
    def status(items: int, runs: int) -> ServerStatus:
        stage = StageInfo("box", 0, 1, items, run_s=0.1, runs=runs)
        return ServerStatus(0, "d", "1", 1.0, deployments=(DeploymentInfo("m", 1, "ready", stages=(stage,)),))

    (load,) = stage_loads("m", status(4, 4), status(24, 9), 1.0, Power())
    assert load.batch == 4
    (untold,) = stage_loads("m", status(4, 0), status(24, 0), 1.0, Power())
    assert untold.batch == 1


def test_the_clients_own_coding_is_timed() -> None:
    info = ModelInfo(
        "m",
        "ready",
        inputs=(TensorSpec("x", "float32", ("n", 64)),),
        outputs=(TensorSpec("y", "float32", ("n", 64)),),
        codec="int8",
    )
    array = np.ones((16, 64), np.float32)
    assert 0 < client_coding_s(info, {"x": array}, {"y": array}) < 1
