"""A plan onto its agents: cut, ship what is missing, load everywhere at once, and say what the dispatcher must know."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from defer.agents import AgentPool
from defer.documents.address import Address, parse_address
from defer.documents.cluster import Cluster, Device
from defer.documents.plan import Plan
from defer.errors import AgentFault, Cancelled, UnknownDevice
from defer.hops import Layout, Part, Place, channel_blocks, handed_over, lay_out, parts_of
from defer.parts import WrittenPart
from defer.shipping import ship
from defer.turns import Turns
from node_agent import messages as m
from node_agent.engines import options_of

LOAD_TIMEOUT_S = 600.0
"""Compiling an engine takes minutes; loading for ONNX Runtime takes seconds."""

Step = Callable[[str, str, float], None]
"""Called with (agent, what is being done, fraction 0–1), from several threads."""

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Deployment:
    """A plan that its agents have loaded.

    Attributes:
        model: Name it is served under.
        epoch: Its number; items carry it.
        plan: What it was made from.
        layout: Its hops and the dispatcher's neighbours.
        inputs: The model's inputs.
        outputs: The model's outputs.
        warm_up: The inputs with every dimension bound: the canary's shapes.
        sent_bytes: Bytes shipped to all agents.
        load_seconds: Per agent, seconds it took to load.
    """

    model: str
    epoch: int
    plan: Plan
    layout: Layout
    inputs: tuple[m.TensorSpec, ...]
    outputs: tuple[m.TensorSpec, ...]
    warm_up: tuple[m.TensorSpec, ...]
    sent_bytes: int
    load_seconds: Mapping[str, float]


def place_of(pool: AgentPool, cluster: Cluster, device: str) -> Place:
    """Where a connected agent is reached on the data plane.

    Raises:
        UnknownDevice: The cluster has no such device, or no agent of that name is connected.
    """
    described = cluster.device(device)
    known = pool.liveness(device)
    if known is None or known.offer is None or known.state != "alive":
        raise UnknownDevice(
            f"the plan uses device {device!r}, which has no connected agent",
            hint=f"devices with agents: {', '.join(d.name for d in cluster.agents)}",
        )
    if described.dials:
        return Place(device, "", "", dials=True)
    host = parse_address(described.address).host
    data, fetch = Address(host, known.offer.data_port), Address(host, known.offer.fetch_port)
    return Place(device, data.endpoint(), fetch.endpoint())


def deploy(
    pool: AgentPool,
    cluster: Cluster,
    plan: Plan,
    parts: Sequence[WrittenPart],
    signature: tuple[Sequence[m.TensorSpec], Sequence[m.TensorSpec], Sequence[m.TensorSpec]],
    dispatcher: Place,
    *,
    epoch: int,
    name: str,
    on_step: Step | None = None,
    stagger_s: float = 0.0,
    noted: Callable[[], None] = lambda: None,
    wanted: Callable[[], None] = lambda: None,
    beside: Deployment | None = None,
) -> Deployment:
    """Ship and load a plan's partitions; when this returns every agent is warm.

    Args:
        pool: Connections to the agents, all connected.
        cluster: Where the devices are.
        plan: Which blocks run where; of its shares nothing is looked at, see `Plan.legs`.
        parts: The stages' partitions on disk, in order.
        signature: The model's inputs, outputs, and inputs with every dimension bound.
        dispatcher: Where the dispatcher's data sockets are reached.
        epoch: Number of this deployment, never used before by this dispatcher.
        name: Name the model is served under.
        on_step: Told of progress.
        stagger_s: An agent gets its files, gently, and loads when the one before it has, or that long after it began, in
            seconds: so what serves is disturbed little, at one place at a time. 0 has all do so at once.
        noted: Waits until it is safe that agents hold this deployment, before they hear of it; from several threads.
        wanted: Called between two steps, from several threads; what it raises ends the deployment.
        beside: One of the same cuts that is loaded already: tensors are handed over as there, so that agents hold their
            partitions once.

    Raises:
        AgentFault: An agent could not store or load its part. Whatever is raised, the caller tells them to unload.
        AgentUnreachable: An agent stopped answering.
        UnknownDevice: The plan names a device without an agent.
    """
    layout = layout_of(pool, cluster, plan, [part.part for part in parts], dispatcher, beside)
    in_blocks = channel_blocks(parts_of(layout.hops))
    if in_blocks:
        channels = max(in_blocks.values())
        logger.info("%s: %d tensors cross in blocks of %d channels", name, len(in_blocks), channels)
    engines = {device.name: (device.engine, device.engine_options) for device in cluster.devices}
    files: dict[str, dict[m.FileRef, Path]] = {device: {} for device in layout.hops}
    for stage, part in zip(plan.stages, parts, strict=True):
        files[stage.device].update(part.files)

    given_up = threading.Event()
    turns = Turns(stagger_s)

    def go_on() -> None:
        if given_up.is_set():
            raise Cancelled("the deployment was given up")
        wanted()

    def bring(device: str) -> tuple[int, m.Loaded]:
        with turns.turn() if stagger_s else nullcontext():
            go_on()
            sent = _ship(pool, device, files[device], on_step, go_on, gently=stagger_s > 0)
            go_on()
            noted()
            load = m.Load(0, epoch, name, layout.hops[device], *engines[device])
            return sent, _load(pool, device, load, on_step)

    try:
        brought = in_parallel(bring, list(layout.hops), most=1 if math.isinf(stagger_s) else None)
    finally:
        given_up.set()  # a thread that was not waited for loads nothing any more
    inputs, outputs, warm_up = signature
    return Deployment(
        model=name,
        epoch=epoch,
        plan=plan,
        layout=layout,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        warm_up=tuple(warm_up),
        sent_bytes=sum(sent for sent, _ in brought.values()),
        load_seconds={device: loaded.seconds for device, (_, loaded) in brought.items()},
    )


def layout_of(
    pool: AgentPool,
    cluster: Cluster,
    plan: Plan,
    parts: Sequence[Part],
    dispatcher: Place,
    beside: Deployment | None = None,
) -> Layout:
    """The hops of a plan on agents that are connected; arguments as in `deploy`.

    Raises:
        UnknownDevice: The plan names a device without an agent.
    """
    devices = sorted({device for transfer in plan.transfers for device in transfer.path} & _agents(plan))
    places = {device: place_of(pool, cluster, device) for device in devices}
    if beside is None:
        return lay_out(plan, parts, places, dispatcher, common_channel_block(pool, cluster))
    shared = handed_over(parts, channel_blocks(parts_of(beside.layout.hops)))
    return lay_out(plan, shared, places, dispatcher)


def common_channel_block(pool: AgentPool, cluster: Cluster) -> int:
    """Channels per block in which every device's engine computes convolutions, as far as devices are known; 0: none.

    Of all devices, whatever a plan takes: then what runs now and what is prepared for a loss share partitions.
    """
    found = set()
    for device in cluster.agents:
        known = pool.liveness(device.name)
        offer = known.offer if known is not None else None
        if offer is not None and device.computes:
            found.add(0 if _in_plain(device, offer) else offer.channel_block)
    return found.pop() if len(found) == 1 else 0


def _in_plain(device: Device, offer: m.Offer) -> bool:
    """Whether the cluster file has a device compute otherwise than it offers to."""
    own = next((each.name for each in offer.engines if not each.missing), "")
    options = options_of(own, device.engine_options)
    plain = options.get("layout") == "plain" or options.get("optimization", "all") != "all"
    return plain or device.engine not in (m.AUTO_ENGINE, own)


def in_parallel(action: Callable[[str], T], names: Sequence[str], *, most: int | None = None) -> dict[str, T]:
    """`action` for every name at once, or `most` of them; the first error is raised when the others have ended.

    Where the waiting itself is interrupted nothing is waited for: what runs ends with the connections that it uses.
    """
    if not names:
        return {}
    executor = ThreadPoolExecutor(max_workers=most or len(names), thread_name_prefix="defer-deploy")
    try:
        futures = {name: executor.submit(action, name) for name in names}
        wait(futures.values(), return_when=FIRST_EXCEPTION)
        executor.shutdown(wait=True)
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    return {name: future.result() for name, future in futures.items()}


def _agents(plan: Plan) -> set[str]:
    """Devices that must have an agent: those that run a stage, and relays in the middle of a path."""
    relays = {device for transfer in plan.transfers for device in transfer.path[1:-1]}
    return relays | {stage.device for stage in plan.stages}


def _ship(
    pool: AgentPool,
    device: str,
    files: Mapping[m.FileRef, Path],
    on_step: Step | None,
    go_on: Callable[[], None],
    *,
    gently: bool,
) -> int:
    total = sum(file.nbytes for file in files)
    sent = 0

    def count(size: int) -> None:
        nonlocal sent
        sent += size
        go_on()
        if on_step is not None:
            on_step(device, "shipping", sent / total)

    return ship(pool, device, files, on_sent=count, gently=gently)


def _load(pool: AgentPool, device: str, load: m.Load, on_step: Step | None) -> m.Loaded:
    def report(progress: m.Progress) -> None:
        if on_step is not None:
            on_step(device, progress.what, progress.fraction)

    answer = pool.ask(device, load, timeout=LOAD_TIMEOUT_S, on_progress=report)
    if not isinstance(answer, m.Loaded):
        raise AgentFault(f"agent {device!r} answered {type(answer).__name__} to Load")
    if on_step is not None:
        on_step(device, "ready", 1.0)
    return answer
