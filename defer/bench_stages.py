"""What a pipeline's stages did between two looks at the dispatcher: their time, their bytes, their energy. Pure."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import pairwise
from typing import Any, Final, NamedTuple

import msgspec

from defer.api import DeploymentInfo, DeviceInfo, ServerStatus
from defer.errors import NotReady

LEAST_S: Final = 1e-9
"""The difference of two sums of seconds that is shorter than this is what rounding left."""


@dataclass(frozen=True, slots=True)
class Power:
    """What a device draws, in watts, where no sensor says: idle, and in addition while its stage runs."""

    idle: float = 2.0
    busy: float = 5.0


class StageLoad(msgspec.Struct, frozen=True):
    """What one stage did per request that came to it; seconds are means.

    Attributes:
        utilisation: Share of the time that it ran, coded and decoded.
        energy_j: Per request, of its device; of a device with several stages, by the time that each was busy.
        energy_by: `sensor` or `model`.
        batch: Requests in a run, on average.
        start: First block.
        stop: Block after the last.
        share: Part of the run's requests that came to it; less than 1 where devices share a stage.
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
    start: int = 0
    stop: int = 0
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class _Counted:
    """What a stage had counted when it was looked at, in all, or between two looks."""

    items: int
    runs: int
    wait_s: float
    decode_s: float
    run_s: float
    encode_s: float
    bytes_in: int
    bytes_out: int

    def __add__(self, other: _Counted) -> _Counted:
        return self._with(other, operator.add)

    def __sub__(self, other: _Counted) -> _Counted:
        return self._with(other, operator.sub)

    def _with(self, other: _Counted, op: Callable[[Any, Any], Any]) -> _Counted:
        return _Counted(*map(op, astuple(self), astuple(other)))

    @property
    def busy_s(self) -> float:
        return sum(self.mean(each) for each in (self.decode_s, self.run_s, self.encode_s)) * self.items

    def mean(self, total: float) -> float:
        """Of a quantity, per item; the difference of two sums of seconds may be what rounding left of nothing."""
        found = total / self.items if self.items else 0.0
        return found if found >= LEAST_S else 0.0


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
        NotReady: The model is not served in both, or by other routes alone.
    """
    then, now = _serving(before, model), _serving(after, model)
    # A route that was lost, or came back, cannot be counted; what the others did is told.
    both = {info.epoch for info in then} & {info.epoch for info in now}
    then, now = ([info for info in routes if info.epoch in both] for routes in (then, now))
    if not both:
        raise NotReady(
            f"model {model!r} was deployed anew, or has moved to other devices, meanwhile",
            hint="measure again",
        )
    looks = [(0.0, before), *((at, look) for at, look in between if 0 < at < seconds), (seconds, after)]
    earlier, later = _counted(then), _counted(now)
    work = {stage: later[stage] - earlier[stage] for stage in sorted(later)}
    first = min((stage.start for stage in work), default=0)
    requests = sum(done.items for stage, done in work.items() if stage.start == first)
    on = {device: [stage for stage in work if stage.device == device] for _, _, device in work}
    busy = {device: sum(work[stage].busy_s for stage in stages) for device, stages in on.items()}
    joules = {
        device: _energy([(at, _device(look, device)) for at, look in looks], busy[device], seconds, power)
        for device in on
    }
    found = []
    for stage, done in work.items():
        whole, by = joules[stage.device]
        part = done.busy_s / busy[stage.device] if busy[stage.device] > 0 else 1 / len(on[stage.device])
        found.append(
            StageLoad(
                device=stage.device,
                start=stage.start,
                stop=stage.stop,
                share=done.items / requests if len(now) > 1 and requests else 1.0,
                utilisation=done.busy_s / seconds if seconds > 0 else 0.0,
                wait_s=done.mean(done.wait_s),
                decode_s=done.mean(done.decode_s),
                run_s=done.mean(done.run_s),
                encode_s=done.mean(done.encode_s),
                bytes_in=done.mean(done.bytes_in),
                bytes_out=done.mean(done.bytes_out),
                energy_j=done.mean(whole * part),
                energy_by=by,
                batch=done.items / done.runs if done.runs > 0 else 1.0,
            )
        )
    return tuple(found)


class _Stage(NamedTuple):
    """Blocks on a device, in the order of the blocks; several routes may pass one."""

    start: int
    stop: int
    device: str


def uncounted(model: str, before: ServerStatus, after: ServerStatus) -> int:
    """How many of a model's routes were lost or came back between two looks: `stage_loads` leaves them out."""
    return len(
        {info.epoch for info in _serving(before, model)} ^ {info.epoch for info in _serving(after, model)}
    )


def _serving(status: ServerStatus, model: str) -> list[DeploymentInfo]:
    """The model's routes that serve: one, or several where devices share stages."""
    routes = [each for each in status.deployments if each.model == model and each.state == "ready"]
    if not routes:
        raise NotReady(f"model {model!r} is not served")
    return routes


def _counted(routes: Sequence[DeploymentInfo]) -> dict[_Stage, _Counted]:
    """What each stage has counted for all routes that pass it."""
    found: dict[_Stage, _Counted] = {}
    for info in (stage for route in routes for stage in route.stages):
        stage = _Stage(info.start, info.stop, info.device)
        counted = _Counted(
            items=info.items,
            runs=info.runs,
            wait_s=info.wait_s * info.items,
            decode_s=info.decode_s * info.items,
            run_s=info.run_s * info.items,
            encode_s=info.encode_s * info.items,
            bytes_in=info.bytes_in,
            bytes_out=info.bytes_out,
        )
        found[stage] = found[stage] + counted if stage in found else counted
    return found


def _device(status: ServerStatus, name: str) -> DeviceInfo | None:
    return next((device for device in status.devices if device.name == name), None)


def _energy(
    looks: Sequence[tuple[float, DeviceInfo | None]], busy_s: float, seconds: float, power: Power
) -> tuple[float, str]:
    """Joules of a device in the run, and what says so."""
    measured = _measured_energy(looks)
    if measured is not None:
        return measured, "sensor"
    return power.idle * seconds + power.busy * min(busy_s, seconds), "model"


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
