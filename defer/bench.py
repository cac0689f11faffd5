"""What a served model does under load: rate, latencies, and where its stages spend their time and energy.

The dispatcher's counters are read before and after, so what ran meanwhile for others counts as well.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from defer.api import ModelInfo, ServerStatus
from defer.bench_stages import Power, StageLoad, needs_watching, stage_loads, uncounted
from defer.client import Client
from defer.client_arrays import Inputs, as_arrays
from defer.driving import Driven, Submit, drive
from node_agent.codecs import CODECS
from node_agent.errors import AgentError
from node_agent.frames import pack_item, unpack

POLL_S = 0.5
"""How often sensors of power are read during a run."""

CODINGS = 10
"""Times that the client's own encoding is tried."""


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What load is put on.

    Attributes:
        requests: How many, for the rate.
        window: How many at once, at most.
        singles: How many one at a time before that, for the latencies.
        warm_up: How many before all, which are not counted.
        rate: Requests per second; None for as many as the window allows.
    """

    requests: int = 100
    window: int = 16
    singles: int = 20
    warm_up: int = 3
    rate: float | None = None


class Latencies(msgspec.Struct, frozen=True):
    """Latencies of the requests that were answered, s."""

    p50_s: float
    p90_s: float
    p99_s: float
    most_s: float


class Quantities(msgspec.Struct, frozen=True):
    """What DEFER's authors report of a pipeline, per request.

    Attributes:
        throughput_per_s: Requests answered per second.
        energy_j: Of all devices with a stage.
        energy_by: `sensor`, `model`, or `both` where some devices have no sensor.
        payload_bytes: What crosses the network: into every stage, and the result.
        overhead_s: Encoding and decoding, at every stage and at the client.
    """

    throughput_per_s: float
    energy_j: float
    energy_by: str
    payload_bytes: float
    overhead_s: float


class Load(msgspec.Struct, frozen=True):
    """What came out of a run. Latencies are of requests sent one at a time; the rate is with `window` under way.

    Attributes:
        model: Its name.
        requests: Requests for the rate.
        window: How many were under way at most.
        rate_per_s: Requests answered per second.
        p50_s, p90_s, p99_s: Latencies one at a time.
        coding_share: Share of the stages' work that is encoding and decoding.
        stages: Each stage, in the order of the pipeline; none where the server does not tell.
        loaded: Latencies while the rate was measured; counted from when a request was due where a rate was asked for.
        asked_per_s: The rate that was asked for; 0 for as fast as the window allows.
        failed: Requests that ended with an error, by code.
        url: The server, where it is not a dispatcher's own port.
        sent_bytes: Of one request's body, where it is known.
        received_bytes: Of its answer.
        client_coding_s: Encoding the inputs and decoding the outputs at the client, of one request.
        quantities: DEFER's four; None where the server does not tell.
        uncounted: Routes that were lost or came back meanwhile, of which the stages and quantities hold nothing.
    """

    model: str
    requests: int
    window: int
    rate_per_s: float
    p50_s: float
    p90_s: float
    p99_s: float
    coding_share: float
    stages: tuple[StageLoad, ...]
    loaded: Latencies
    asked_per_s: float = 0.0
    failed: dict[str, int] = {}
    url: str = ""
    sent_bytes: int = 0
    received_bytes: int = 0
    client_coding_s: float = 0.0
    quantities: Quantities | None = None
    uncounted: int = 0


def run_load(client: Client, info: ModelInfo, inputs: Inputs, plan: LoadPlan, power: Power) -> Load:
    """Load a dispatcher through its own port, and read its counters around the part with many requests.

    Args:
        client: Of the dispatcher.
        info: The model.
        inputs: Of every request.
        plan: What load.
        power: What a device without a sensor is taken to draw.

    Raises:
        NotReady: The model is served no more.
        DeferError: The first request failed.
    """
    model = info.name

    def submit() -> Future[Any]:
        return client.submit(inputs, model=model)

    outputs = client.infer(inputs, model=model)
    alone = _warmed(submit, plan)
    coding = client_coding_s(info, inputs, outputs)
    before = client.status()
    with _watched(client, before) as seen:
        driven = drive(submit, count=plan.requests, window=plan.window, rate=plan.rate)
    # A name that has versions is no deployment: the stages are those of its stable version.
    deployed, after = info.stable or model, client.status()
    stages = stage_loads(deployed, before, after, driven.seconds, power, seen)
    busy = sum((stage.run_s + stage.decode_s + stage.encode_s) * stage.share for stage in stages)
    codes = sum((stage.decode_s + stage.encode_s) * stage.share for stage in stages)
    return msgspec.structs.replace(
        load_of(model, plan, alone, driven),
        coding_share=codes / busy if busy > 0 else 0.0,
        stages=stages,
        client_coding_s=coding,
        uncounted=uncounted(deployed, before, after),
        quantities=quantities_of(driven.rate, stages, codes + coding),
    )


def run_remote(
    submit: Submit, model: str, plan: LoadPlan, *, url: str, sent_bytes: int, received_bytes: int
) -> Load:
    """Load any server.

    Args:
        submit: Sends one request to it.
        model: The model's name.
        plan: What load.
        url: The server's.
        sent_bytes: Of a request's body.
        received_bytes: Of an answer's.

    Raises:
        DeferError: The first request failed.
    """
    alone = _warmed(submit, plan)
    driven = drive(submit, count=plan.requests, window=plan.window, rate=plan.rate)
    return msgspec.structs.replace(
        load_of(model, plan, alone, driven), url=url, sent_bytes=sent_bytes, received_bytes=received_bytes
    )


def _warmed(submit: Submit, plan: LoadPlan) -> Driven:
    """The requests one at a time, after those that nobody counts."""
    if plan.warm_up:
        drive(submit, count=plan.warm_up, window=1)
    return drive(submit, count=plan.singles, window=1)


def load_of(model: str, plan: LoadPlan, alone: Driven, driven: Driven) -> Load:
    """The part of a report that every server has."""
    return Load(
        model=model,
        requests=plan.requests,
        window=plan.window,
        rate_per_s=driven.rate,
        p50_s=alone.quantile(0.5),
        p90_s=alone.quantile(0.9),
        p99_s=alone.quantile(0.99),
        coding_share=0.0,
        stages=(),
        loaded=Latencies(*(driven.quantile(share) for share in (0.5, 0.9, 0.99, 1.0))),
        asked_per_s=plan.rate or 0.0,
        failed=dict(driven.failed),
    )


def quantities_of(rate: float, stages: Sequence[StageLoad], overhead_s: float) -> Quantities:
    """DEFER's four, of stages in the order of the pipeline."""
    by = {stage.energy_by for stage in stages}
    last = max((stage.stop for stage in stages), default=0)
    payload = sum(
        (stage.bytes_in + (stage.bytes_out if stage.stop == last else 0.0)) * stage.share for stage in stages
    )
    energy = sum(stage.energy_j * stage.share for stage in stages)
    return Quantities(
        rate, energy, by.pop() if len(by) == 1 else "both" if by else "model", payload, overhead_s
    )


def client_coding_s(info: ModelInfo, inputs: Inputs, outputs: Mapping[str, Any]) -> float:
    """Seconds that a client spends on encoding a request's inputs and decoding its outputs; the median of some tries."""
    codec = info.codec if info.codec in CODECS else "raw"
    dtypes = {spec.name: spec.dtype for spec in (*info.inputs, *info.outputs)}
    lasted = []
    try:
        came = pack_item(dict(outputs), "raw", dtypes)
        for _ in range(CODINGS):
            begun = time.perf_counter()
            pack_item(as_arrays(inputs, info), codec, dtypes)
            unpack(*came)
            lasted.append(time.perf_counter() - begun)
    except AgentError:
        return 0.0  # what the wire cannot take was refused before, with a better word
    return float(np.median(lasted))


@contextmanager
def _watched(client: Client, first: ServerStatus) -> Iterator[list[tuple[float, ServerStatus]]]:
    """Looks at the dispatcher during the block, where a device's energy must be summed up from its power."""
    seen: list[tuple[float, ServerStatus]] = []
    if not any(needs_watching(device.sensors) for device in first.devices):
        yield seen
        return
    over = threading.Event()

    def look() -> None:
        begun = time.perf_counter()
        while not over.wait(POLL_S):
            try:
                seen.append((time.perf_counter() - begun, client.status()))
            except Exception:
                return  # what was seen until then counts

    thread = threading.Thread(target=look, name="defer-bench-sensors")
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
