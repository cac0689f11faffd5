"""What the blocks cost on each device and the links between them, measured on the agents themselves.

The blocks are measured in the model's order, each as a partition of its own, so that a device that could never hold the
whole model is measured too: it loads one block, runs it on the activations of the one before, and drops it. Then longer
and longer spans of blocks as far as they fit, which tells what cuts cost (`defer.span_costs`). Devices
with equal fingerprints (one machine, one engine, the same threads) are measured once. Block times are cached on disk
by model, positions, bound shapes, fingerprint and engine; links are measured each time, because they change.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

import msgspec

import partitioner
from defer.agents import AgentPool
from defer.codec_profiling import client_costs, codec_costs, worst_ratios
from defer.deployer import in_parallel, place_of
from defer.documents.cluster import Cluster, Device
from defer.documents.profile import CodecProfile, CostProfile, DeviceProfile, LinkProfile
from defer.errors import AgentFault
from defer.hops import Place
from defer.link_probe import measure_from_here
from defer.parts import WrittenPart, write_parts
from defer.precision import Ranges
from defer.shipping import ship
from defer.span_costs import Span, adding_up, levels
from node_agent import messages as m

BLOCK_COSTS = 7
"""Version of what is remembered of a device; older ones are measured again."""

MEASURE_TIMEOUT_S = 300.0
"""One block: shipping is done before; this is load, warm-up and the timed runs."""

LINK_BUDGET_S = 0.25
"""Seconds of probing per direction of a link."""

MEASURE_LINK_TIMEOUT_S = 60.0
"""A probe over a link of 1 Mbit/s takes seconds."""

FULL = 0.7
"""Part of a device's memory that the weights of a span may take: running it takes more."""

STAGE_OVERHEAD_S = 0.3e-3
"""What an item costs an agent beside its run, where the agent does not measure it."""

Step = Callable[[str, str, float], None]
"""Called with (device, what is being done, fraction 0–1), from several threads."""


class BlockCosts(msgspec.Struct, frozen=True):
    """What was measured of a chain's blocks on one kind of device; the cached document."""

    version: int
    engine: str
    block_seconds: tuple[float, ...]
    block_resident: tuple[int, ...]
    codecs: dict[str, CodecProfile]
    ratios: dict[str, tuple[float, ...]]
    item_s: float
    byte_s: float
    unsupported: tuple[str, ...] = ()
    cut_seconds: tuple[float, ...] = ()


def profile(
    pool: AgentPool,
    cluster: Cluster,
    model: Path,
    chain: partitioner.BlockChain,
    *,
    dispatcher: Place,
    work: Path,
    cache: Path,
    fresh: bool = False,
    on_step: Step | None = None,
    ranges: Ranges | None = None,
) -> CostProfile:
    """Measure a model's blocks on a cluster's devices, and the links between them.

    Args:
        pool: Connections to the agents, all connected.
        cluster: The devices and which of them may talk.
        model: The ONNX file.
        chain: Its blocks, coarse enough to be measured one by one.
        dispatcher: Where the dispatcher's data socket answers probes.
        work: Directory for the blocks' partition files.
        cache: Directory of earlier measurements.
        fresh: Measure again what the cache holds.
        on_step: Told of progress.
        ranges: What devices that quantise need to know, see `defer.precision`.

    Raises:
        AgentFault: An agent could not load or run a block.
        AgentUnreachable: An agent stopped answering.
        UnsupportedPrecision: The model cannot be written in a device's precision.
    """
    positions = tuple(boundary.position for boundary in chain.boundaries)
    computing = [d for d in cluster.agents if d.computes and _offer(pool, d.name) is not None]
    parts = {
        precision: write_parts(
            model, chain, positions[1:-1], work, (precision,) * (len(positions) - 1), ranges
        )
        for precision in dict.fromkeys(device.precision for device in computing)
    }

    ends = list(levels(len(positions) - 1))
    spans = {
        precision: [
            (start, stop, written)
            for level in ends
            for (start, stop), written in zip(
                level,
                write_parts(
                    model,
                    chain,
                    [positions[stop] for _, stop in level[:-1]],
                    work,
                    (precision,) * len(level),
                    ranges,
                ),
                strict=True,
            )
        ]
        for precision in parts
    }

    def alike(device: Device) -> tuple[str, str, str]:
        options = json.dumps(device.engine_options, sort_keys=True)
        return _fingerprint(pool, device.name), f"{device.engine} {options}", device.precision

    representatives: dict[tuple[str, str, str], str] = {}
    for device in computing:
        representatives.setdefault(alike(device), device.name)

    def costs_on(name: str) -> BlockCosts:
        device = cluster.device(name)
        path = cache / f"{_cache_key(chain, positions, *alike(device))}.json"
        known = None if fresh else _cached(path)
        if known is None:
            known = _measure_blocks(
                pool, device, chain, parts[device.precision], spans[device.precision], on_step
            )
            _remember(path, known)
        elif on_step is not None:
            on_step(name, "measured before", 1.0)
        return known

    measured = in_parallel(costs_on, list(representatives.values()))
    devices = {
        device.name: _device_profile(pool, device.name, measured[representatives[alike(device)]])
        for device in computing
    }
    return CostProfile(
        model=chain.model,
        digest=chain.digest,
        positions=positions,
        bindings=dict(chain.bindings),
        devices=devices,
        links=tuple(_measure_links(pool, cluster, dispatcher, on_step)),
        codecs=worst_ratios(costs.ratios for costs in measured.values()),
        client=client_costs(chain),
    )


# ------------------------------------------------------------------------------------------------------------ blocks


def _measure_blocks(
    pool: AgentPool,
    device: Device,
    chain: partitioner.BlockChain,
    parts: Sequence[WrittenPart],
    spans: Sequence[tuple[int, int, WrittenPart]],
    on_step: Step | None,
) -> BlockCosts:
    name = device.name
    engines: dict[str, None] = {}
    seconds: list[float] = []
    resident: list[int] = []
    refused: list[str] = []
    produced: dict[str, m.TensorStats] = {}
    item_s, byte_s = STAGE_OVERHEAD_S, 0.0
    # A session of its own for each run: what an aborted one kept may be of other shapes.
    session = secrets.token_hex(8)
    try:
        for index, written in enumerate(parts):
            if on_step is not None:
                on_step(name, f"measuring block {index + 1} of {len(parts)}", index / len(parts))
            answer = _measure(pool, device, chain, written, index + 1, session)
            # The median: one run that the machine interrupted says nothing about the block.
            seconds.append(median(answer.seconds))
            resident.append(answer.resident_bytes)
            refused.append(answer.unsupported)
            engines[answer.engine or _engine_name(pool, name, device.engine)] = None
            if answer.item_s > 0:
                item_s, byte_s = answer.item_s, answer.byte_s
            produced.update({stats.name: stats for stats in answer.outputs})
        known: list[Span] = []
        for number, (start, stop, written) in enumerate(spans):
            # An engine that cannot run one of the blocks leaves the whole span to another.
            if any(refused[start:stop]) or not _fits(pool, name, written):
                continue
            if on_step is not None:
                on_step(name, f"measuring span {number + 1} of {len(spans)}", number / len(spans))
            try:
                answer = _measure(pool, device, chain, written, stop, f"{session} spans", codecs=False)
            except AgentFault:  # too large for what is free there, perhaps
                continue
            known.append(Span(start, stop, median(answer.seconds)))
    finally:
        pool.tell(name, m.Done(0))  # drop what the session kept
    codecs, ratios = codec_costs(chain, produced)
    adding = adding_up(seconds, [boundary.nbytes for boundary in chain.boundaries], known)
    return BlockCosts(
        BLOCK_COSTS,
        ", ".join(engines),
        adding.blocks,
        tuple(resident),
        codecs,
        ratios,
        item_s,
        byte_s,
        compiled_refusals(tuple(engines), refused),
        adding.cuts if any(adding.cuts) else (),
    )


def _measure(
    pool: AgentPool,
    device: Device,
    chain: partitioner.BlockChain,
    written: WrittenPart,
    stop: int,
    session: str,
    *,
    codecs: bool = True,
) -> m.Measured:
    """Time a partition that ends before block `stop` on a device."""
    ship(pool, device.name, written.files)
    request = m.Measure(
        0,
        session,
        written.part.graph,
        written.part.weights,
        written.part.warm_up,
        tuple(chain.boundaries[stop].tensors) if stop < len(chain.blocks) else (),
        engine=device.engine,
        options=device.engine_options,
        codecs=codecs,
    )
    answer = pool.ask(device.name, request, timeout=MEASURE_TIMEOUT_S)
    if not isinstance(answer, m.Measured):
        raise AgentFault(f"agent {device.name!r} answered {type(answer).__name__} to Measure")
    return answer


def _fits(pool: AgentPool, name: str, written: WrittenPart) -> bool:
    """Whether a device can be expected to hold a partition beside nothing else."""
    offer = _offer(pool, name)
    memory = offer.memory_bytes if offer is not None else 0
    return not memory or sum(ref.nbytes for ref in written.files) <= FULL * memory


def compiled_refusals(engines: Sequence[str], refused: Sequence[str]) -> tuple[str, ...]:
    """What a compiling engine refuses, block by block; nothing where that makes no difference.

    Args:
        engines: Those that ran the blocks.
        refused: Why TensorRT cannot run each block, empty where it can.

    Returns:
        `refused`, if TensorRT runs other blocks: only then does a refused one take anything from its neighbours.
    """
    return tuple(refused) if "tensorrt" in engines and any(refused) else ()


def _device_profile(pool: AgentPool, name: str, costs: BlockCosts) -> DeviceProfile:
    offer = _offer(pool, name)
    return DeviceProfile(
        fingerprint=_fingerprint(pool, name),
        engine=costs.engine,
        method="measured",
        block_seconds=costs.block_seconds,
        cut_seconds=costs.cut_seconds,
        block_resident=costs.block_resident,
        stage_overhead_s=costs.item_s,
        byte_s=costs.byte_s,
        memory_bytes=0 if offer is None else offer.memory_bytes,
        codecs=costs.codecs,
        unsupported=costs.unsupported,
    )


# ------------------------------------------------------------------------------------------------------------- links


def _measure_links(
    pool: AgentPool, cluster: Cluster, dispatcher: Place, on_step: Step | None
) -> list[LinkProfile]:
    """Both directions between every two endpoints that may talk, one at a time so that they do not share a wire."""
    source = cluster.dispatcher.device
    places = {
        d.name: place_of(pool, cluster, d.name) for d in cluster.agents if _offer(pool, d.name) is not None
    }
    wanted = [
        link
        for link in cluster.directed_links()
        if link.bandwidth is None and {link.source, link.target} <= places.keys() | {source}
    ]
    links: list[LinkProfile] = []
    for number, link in enumerate(wanted):
        if on_step is not None:
            on_step(f"{link.source} → {link.target}", "measuring link", number / len(wanted))
        rate = _measure_one(pool, link.source, link.target, source, places, dispatcher)
        if rate is not None:
            bandwidth, delay = rate
            links.append(LinkProfile.of(link.source, link.target, bandwidth, delay))
    return links


def _measure_one(
    pool: AgentPool, left: str, right: str, source: str, places: Mapping[str, Place], dispatcher: Place
) -> tuple[float, float] | None:
    """Bandwidth and delay of one direction; None where nobody can dial or the sender cannot dial the receiver.

    Probes go the way that items go. Where the receiver is the one that dials, the other direction's figure would be a
    guess, and the planner falls back to the cluster file's.
    """
    peer = dispatcher if right == source and right not in places else places[right]
    if peer.dials:
        return None
    target = m.PeerRef(peer.name, peer.data)
    if left == source and left not in places:
        answer: m.ControlMessage = measure_from_here(target, budget_s=LINK_BUDGET_S, security=pool.security)
    else:
        question = m.MeasureLink(0, target, budget_s=LINK_BUDGET_S)
        answer = pool.ask(left, question, timeout=MEASURE_LINK_TIMEOUT_S)
    if not isinstance(answer, m.LinkMeasured):
        raise AgentFault(f"agent {left!r} answered {type(answer).__name__} to MeasureLink")
    return answer.bandwidth, answer.delay


# ------------------------------------------------------------------------------------------------------------- cache


def _cache_key(
    chain: partitioner.BlockChain, positions: Sequence[int], fingerprint: str, engine: str, precision: str
) -> str:
    identity = [
        BLOCK_COSTS,
        chain.digest,
        list(positions),
        sorted(chain.bindings.items()),
        fingerprint,
        engine,
        precision,
    ]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


def _cached(path: Path) -> BlockCosts | None:
    try:
        known = msgspec.json.decode(path.read_bytes(), type=BlockCosts)
    except (OSError, msgspec.MsgspecError):
        return None  # absent or from another version: measured again
    return known if known.version == BLOCK_COSTS else None


def _remember(path: Path, costs: BlockCosts) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_bytes(msgspec.json.encode(costs))
    partial.replace(path)


def _offer(pool: AgentPool, name: str) -> m.Offer | None:
    """What a connected agent offers; None for one that is lost, whose offer means nothing now."""
    known = pool.liveness(name)
    return known.offer if known is not None and known.state == "alive" else None


def _engine_name(pool: AgentPool, name: str, engine: str) -> str:
    """The engine that a device's agent takes for `engine`: its default for `auto`."""
    offer = _offer(pool, name)
    present = [known.name for known in offer.engines if not known.missing] if offer is not None else []
    return present[0] if engine == m.AUTO_ENGINE and present else engine


def _fingerprint(pool: AgentPool, name: str) -> str:
    offer = _offer(pool, name)
    return "" if offer is None else offer.fingerprint
