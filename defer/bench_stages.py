"""What a pipeline's stages did between two looks at the dispatcher: their time, their bytes, their energy. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import msgspec

from defer.api import DeploymentInfo, DeviceInfo, ServerStatus, StageInfo
from defer.errors import NotReady

LEAST_S: Final = 1e-9
"""The difference of two sums of seconds that is shorter than this is what rounding left."""


@dataclass(frozen=True, slots=True)
class Power:
    """What a device draws, in watts, where no sensor says: idle, and in addition while its stage runs."""

    idle: float = 2.0
    busy: float = 5.0


class StageLoad(msgspec.Struct, frozen=True):
    """What one stage did per request of the run; seconds are means.

    Attributes:
        utilisation: Share of the time that it ran, coded and decoded.
        energy_j: Per request, of its device; of a device with several stages, by the time that each was busy.
        energy_by: `sensor` or `model`.
        batch: Requests in a run, on average.
    """

    device: str
    utilisation: float
    wait_s: float
    decode_s: float
    run_s: float
    encode_s: float
    bytes_in: float
    bytes_out: float
    energy_j: float
    energy_by: str
    batch: float = 1.0


def needs_watching(sensors: Mapping[str, float]) -> bool:
    """Whether a device's energy must be summed up from its power: it tells that, and counts no joules."""
    return not _counters(sensors) and bool(_powers(sensors))


def stage_loads(
    model: str,
    before: ServerStatus,
    after: ServerStatus,
    seconds: float,
    power: Power,
    between: Sequence[tuple[float, ServerStatus]] = (),
) -> tuple[StageLoad, ...]:
    """What the stages of a model did between two looks at the dispatcher, `seconds` apart.

    Args:
        model: Its name.
        before: The first look.
        after: The last one.
        seconds: Between them.
        power: What a device without a sensor is taken to draw.
        between: Other looks, and when, s after the first.

    Raises:
        NotReady: The model is not served in both.
    """
    then, now = _serving(before, model), _serving(after, model)
    if then.epoch != now.epoch:
        raise NotReady(f"model {model!r} was deployed anew meanwhile")
    looks = [(0.0, before), *((at, look) for at, look in between if 0 < at < seconds), (seconds, after)]
    pairs = list(zip(then.stages, now.stages, strict=True))
    busy: dict[str, float] = {}
    for earlier, later in pairs:
        busy[later.device] = busy.get(later.device, 0.0) + _busy(earlier, later)
    energies = {
        device: _measured_energy([(at, _device(look, device)) for at, look in looks]) for device in busy
    }
    found = []
    for earlier, later in pairs:
        whole = busy[later.device]
        alone = sum(stage.device == later.device for stage in now.stages)
        share = _busy(earlier, later) / whole if whole > 0 else 1 / alone
        found.append(_stage(earlier, later, energies[later.device], share, whole, seconds, power))
    return tuple(found)


def _serving(status: ServerStatus, model: str) -> DeploymentInfo:
    for deployment in status.deployments:
        if deployment.model == model and deployment.state == "ready":
            return deployment
    raise NotReady(f"model {model!r} is not served")


def _device(status: ServerStatus, name: str) -> DeviceInfo | None:
    return next((device for device in status.devices if device.name == name), None)


def _mean(then: StageInfo, now: StageInfo) -> Callable[[str], float]:
    items = now.items - then.items

    def mean(name: str) -> float:
        total = float(getattr(now, name) * now.items - getattr(then, name) * then.items)
        found = total / items if items else 0.0
        return found if found >= LEAST_S else 0.0

    return mean


def _busy(then: StageInfo, now: StageInfo) -> float:
    mean = _mean(then, now)
    return (mean("run_s") + mean("decode_s") + mean("encode_s")) * (now.items - then.items)


def _stage(
    then: StageInfo,
    now: StageInfo,
    measured: float | None,
    share: float,
    device_busy: float,
    seconds: float,
    power: Power,
) -> StageLoad:
    items = now.items - then.items
    mean = _mean(then, now)
    busy = _busy(then, now)
    whole = power.idle * seconds + power.busy * min(device_busy, seconds) if measured is None else measured
    runs = now.runs - then.runs
    return StageLoad(
        device=now.device,
        utilisation=busy / seconds if seconds > 0 else 0.0,
        wait_s=mean("wait_s"),
        decode_s=mean("decode_s"),
        run_s=mean("run_s"),
        encode_s=mean("encode_s"),
        bytes_in=(now.bytes_in - then.bytes_in) / items if items else 0.0,
        bytes_out=(now.bytes_out - then.bytes_out) / items if items else 0.0,
        energy_j=whole * share / items if items else 0.0,
        energy_by="model" if measured is None else "sensor",
        batch=items / runs if runs > 0 else 1.0,
    )


TOTALS = ("rail.VDD_IN.power_w", "rail.POM_5V_IN.power_w")
"""Rails of a Jetson through which all of the module's power comes; its other rails are parts of that (NVIDIA, Jetson
Linux Developer Guide, "Power Monitoring")."""


def _counters(sensors: Mapping[str, float]) -> list[str]:
    return [name for name in sensors if name.endswith("energy_j")]


def _powers(sensors: Mapping[str, float]) -> list[str]:
    whole = [name for name in TOTALS if name in sensors]
    return whole or [name for name in sensors if name.endswith(".power_w")]


def _measured_energy(looks: Sequence[tuple[float, DeviceInfo | None]]) -> float | None:
    """Joules of a device by its counters, else by its power over time; None where it has neither.

    Args:
        looks: Its sensors in the order of time, s, two or more.
    """
    read = [(at, device.sensors) for at, device in looks if device is not None]
    if len(read) < 2:
        return None
    first, last = read[0][1], read[-1][1]
    counted = [last[name] - first[name] for name in _counters(last) if name in first]
    if counted and min(counted) >= 0:  # a counter may have started again from zero
        return sum(counted)
    names = [name for name in _powers(last) if name in first]
    if not names:
        return None
    drawn = [
        (at, sum(sensors[name] for name in names)) for at, sensors in read if sensors.keys() >= set(names)
    ]
    return sum((one + other) / 2 * (later - earlier) for (earlier, one), (later, other) in pairwise(drawn))
