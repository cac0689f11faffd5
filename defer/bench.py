"""What a served model does under load: rate, latencies, and where its stages spend their time and energy.

The dispatcher's counters are read before and after, so what ran meanwhile for others counts as well.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, repeat

import msgspec
import numpy as np

from defer.api import DeploymentInfo, DeviceInfo, ServerStatus, StageInfo
from defer.client import Client
from defer.client_core import Inputs
from defer.errors import NotReady


@dataclass(frozen=True, slots=True)
class Power:
    """What a device draws, in watts, where no sensor says: idle, and in addition while its stage runs."""

    idle: float = 2.0
    busy: float = 5.0


class StageLoad(msgspec.Struct, frozen=True):
    """What one stage did per request of the run; seconds are means.

    Attributes:
        utilisation: Share of the time that it ran, coded and decoded.
        energy_j: Per request, of its whole device.
        energy_by: `sensor` or `model`.
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


class Load(msgspec.Struct, frozen=True):
    """What came out of a run. Latencies are of requests sent one at a time; the rate is with `window` under way."""

    model: str
    requests: int
    window: int
    rate_per_s: float
    p50_s: float
    p90_s: float
    p99_s: float
    coding_share: float
    stages: tuple[StageLoad, ...]


def run_load(
    client: Client, model: str, inputs: Inputs, *, requests: int, window: int, singles: int, power: Power
) -> Load:
    """Send requests one at a time, then `window` at once, and read the counters around the second part.

    Args:
        client: Of the dispatcher.
        model: Which model.
        inputs: Of every request.
        requests: How many, `window` at once.
        window: How many at once.
        singles: How many one at a time.
        power: What a device without a sensor is taken to draw.

    Raises:
        NotReady: The model is served no more.
    """
    latencies = []
    for _ in range(singles):
        begun = time.perf_counter()
        client.infer(inputs, model=model)
        latencies.append(time.perf_counter() - begun)
    before = client.status()
    begun = time.perf_counter()
    for _ in client.map(islice(repeat(inputs), requests), model=model, window=window, ordered=False):
        pass
    seconds = time.perf_counter() - begun
    stages = stage_loads(model, before, client.status(), seconds, power)
    busy = sum(stage.run_s + stage.decode_s + stage.encode_s for stage in stages)
    coding = sum(stage.decode_s + stage.encode_s for stage in stages)
    p50, p90, p99 = (float(np.quantile(latencies, q)) for q in (0.5, 0.9, 0.99))
    share = coding / busy if busy > 0 else 0.0
    return Load(model, requests, window, requests / seconds, p50, p90, p99, share, stages)


def stage_loads(
    model: str, before: ServerStatus, after: ServerStatus, seconds: float, power: Power
) -> tuple[StageLoad, ...]:
    """What the stages of a model did between two looks at the dispatcher, `seconds` apart.

    Raises:
        NotReady: The model is not served in both.
    """
    then, now = _serving(before, model), _serving(after, model)
    if then.epoch != now.epoch:
        raise NotReady(f"model {model!r} was deployed anew meanwhile")
    devices = [{device.name: device for device in status.devices} for status in (before, after)]
    return tuple(
        _stage(earlier, later, [known.get(later.device) for known in devices], seconds, power)
        for earlier, later in zip(then.stages, now.stages, strict=True)
    )


def _serving(status: ServerStatus, model: str) -> DeploymentInfo:
    for deployment in status.deployments:
        if deployment.model == model and deployment.state == "ready":
            return deployment
    raise NotReady(f"model {model!r} is not served")


def _stage(
    then: StageInfo, now: StageInfo, devices: Sequence[DeviceInfo | None], seconds: float, power: Power
) -> StageLoad:
    items = now.items - then.items

    def mean(name: str) -> float:
        total = float(getattr(now, name) * now.items - getattr(then, name) * then.items)
        return max(0.0, total) / items if items else 0.0

    run, decode, encode = mean("run_s"), mean("decode_s"), mean("encode_s")
    busy = (run + decode + encode) * items
    measured = _measured_energy(devices, seconds)
    energy = power.idle * seconds + power.busy * min(busy, seconds) if measured is None else measured
    return StageLoad(
        device=now.device,
        utilisation=busy / seconds if seconds > 0 else 0.0,
        wait_s=mean("wait_s"),
        decode_s=decode,
        run_s=run,
        encode_s=encode,
        bytes_in=(now.bytes_in - then.bytes_in) / items if items else 0.0,
        bytes_out=(now.bytes_out - then.bytes_out) / items if items else 0.0,
        energy_j=energy / items if items else 0.0,
        energy_by="model" if measured is None else "sensor",
    )


def _measured_energy(devices: Sequence[DeviceInfo | None], seconds: float) -> float | None:
    """Joules of a device by its counters, else by its power before and after; None where it has neither."""
    first, last = (device.sensors if device is not None else {} for device in devices)
    counters = [last[name] - first[name] for name in last if name.endswith("energy_j") and name in first]
    if counters and min(counters) >= 0:  # a counter may have started again from zero
        return sum(counters)
    powers = [(first[name] + last[name]) / 2 for name in last if name.endswith(".power_w") and name in first]
    return sum(powers) * seconds if powers else None
