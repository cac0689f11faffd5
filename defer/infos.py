"""What the dispatcher tells of models, deployments, stages and devices: values that its api and its pages share."""

from __future__ import annotations

from typing import Literal

import msgspec

from node_agent.messages import TensorSpec


class ModelInfo(msgspec.Struct, frozen=True):
    """A model that clients may ask for.

    Attributes:
        name: Its name.
        state: `announced`, `ready`, `lost`.
        reason: Why it is not ready.
        epoch: Number of its deployment; 0 where there is none yet.
        inputs: Its inputs; a free dimension is a string.
        outputs: Its outputs.
        codec: How the plan wants inputs to come.
        version_of: Name of the model that it is a version of; empty where it is none, or stands for all.
        stable: Deployment that requests for the name alone take; empty where the model has no versions.
        canary: Deployment that part of them takes; empty for none.
        share: That part, 0 to 1.
        failing: Why it is not relied on although it is ready: it has not answered the last canary. Empty where it has.
    """

    name: str
    state: str
    reason: str = ""
    epoch: int = 0
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    codec: str = "raw"
    version_of: str = ""
    stable: str = ""
    canary: str = ""
    share: float = 0.0
    failing: str = ""


class StageInfo(msgspec.Struct, frozen=True):
    """A stage of a deployment and, where its agent answered, what it counts.

    Attributes:
        device: Where it runs.
        start: First block.
        stop: Block after the last.
        items: Requests it has finished.
        queued: Requests that wait there.
        run_s: Mean seconds of a run.
        bytes_out: Bytes handed on in all.
        engine: What runs it.
        engine_notes: Why other engines were not taken, one sentence each.
        precision: How it computes.
        bytes_in: Bytes received in all.
        wait_s: Mean seconds from arrival to the run.
        decode_s: Mean seconds of decoding what is not raw.
        encode_s: Mean seconds of encoding.
        runs: Runs of the partition, fewer than items where requests ran as batches; 0 from a build that does not tell.
    """

    device: str
    start: int
    stop: int
    items: int = 0
    queued: int = 0
    run_s: float = 0.0
    bytes_out: int = 0
    engine: str = ""
    engine_notes: tuple[str, ...] = ()
    precision: str = "fp32"
    bytes_in: int = 0
    wait_s: float = 0.0
    decode_s: float = 0.0
    encode_s: float = 0.0
    runs: int = 0


class DeploymentInfo(msgspec.Struct, frozen=True):
    """A deployment and its traffic; rates in requests per second, latencies in seconds.

    Attributes:
        state: `loaded` (being proven), `standby` (takes no requests until what serves is lost), `ready`, `lost`, or
            `retired` (finishes what it has).
        accepted: Also by those in whose place it came after a loss, or for a better plan; likewise what was answered,
            and what failed.
    """

    model: str
    epoch: int
    state: str
    reason: str = ""
    waiting: int = 0
    in_flight: int = 0
    accepted: int = 0
    answered: int = 0
    failed: int = 0
    rate: float = 0.0
    p50_s: float = 0.0
    p99_s: float = 0.0
    predicted_latency_s: float = 0.0
    predicted_period_s: float = 0.0
    stages: tuple[StageInfo, ...] = ()
    max_error: float = 0.0
    """The plan's error budget; 0 where no codec changes a value."""
    compared: int = 0
    """Requests that were compared with the lossless pipeline."""
    worst_error: float = 0.0
    """Largest deviation among them, in the budget's metric."""
    mean_error: float = 0.0
    fraction: float = 1.0
    """Part of the model's requests that the plan deals to it; less than 1 where stages have replicas."""
    cancelled: int = 0
    """Of those that failed, the ones that their clients gave up."""


class DeviceInfo(msgspec.Struct, frozen=True):
    """A device's agent as its heartbeats show it."""

    name: str
    state: str
    endpoint: str = ""
    heard_s: float = 0.0
    """Seconds since it was last heard."""
    progress: int = 0
    item_age_s: float = 0.0
    queued: int = 0
    resident_bytes: int = 0
    memory_bytes: int = 0
    engine: str = ""
    epochs: tuple[int, ...] = ()
    reason: str = ""
    clock_offset_s: float | None = None
    """How far its clock is ahead of the dispatcher's, to within the time that an answer takes; None if unknown."""
    sensors: dict[str, float] = {}
    """Its sensors' readings by name; what it has no sensor for is not in it."""
    missing: dict[str, str] = {}
    """Engines that cannot run there, and why."""
    loads: int = 0
    """Partitions that its agent has loaded since it started."""
    channel_block: int = 0
    """Channels per block in which its engine offers to take tensors of convolutions; 0: plain."""


class ModelTotals(msgspec.Struct, frozen=True):
    """What the requests of one model came to since the dispatcher's process started; canaries are among them.

    Attributes:
        model: Its name.
        succeeded: Requests that ended with a result.
        failed: Accepted requests that ended with an error, by code.
        inferences: Elements of a free first dimension of the former, or their number where it is not free.
        seconds: From acceptance to the result, of those that succeeded, in all.
        waited: Requests that were sent to the first stage.
        waited_s: Seconds that they had waited for that, in all.
        bounds: Upper bounds of the latencies' buckets, in seconds.
        latencies: How many succeeded within each bound and not the one before; the last, beyond all.
    """

    model: str
    succeeded: int = 0
    failed: dict[str, int] = {}
    inferences: int = 0
    seconds: float = 0.0
    waited: int = 0
    waited_s: float = 0.0
    bounds: tuple[float, ...] = ()
    latencies: tuple[int, ...] = ()


class StandbyInfo(msgspec.Struct, frozen=True):
    """What happens to a model when one of its devices is lost.

    Attributes:
        model: Which.
        lost: The device.
        by: `replica`: other routes serve anyway. `loaded`: a deployment that stands by takes over. `files`: a plan is
            made, and its files are brought to the agents, which load them then. `planning`: nothing is prepared yet.
            `none`: a plan is made, and nothing is to be brought to the agents before. `impossible`: no plan can hold the
            model without it.
        devices: The stages' devices then, in order.
        epoch: The deployment that stands by; 0 where none does.
        reason: Why nothing stands by, or why there is no plan.
    """

    model: str
    lost: str
    by: Literal["replica", "loaded", "files", "planning", "none", "impossible"]
    devices: tuple[str, ...] = ()
    epoch: int = 0
    reason: str = ""
