"""What the blocks cost on each device and the links between them, measured on the agents themselves.

The blocks are measured in the model's order, each as a partition of its own, so that a device that could never hold the
whole model is measured too: it loads one block, runs it on the activations of the one before, and drops it. Then longer
and longer spans of blocks as far as they fit, which tells what cuts cost (`defer.span_costs`). Devices
with equal fingerprints (one machine, one engine, the same threads) are measured once, and then a little more at the same
time, because they will work at the same time (`defer.together`). Block times are cached on disk
by model, positions, bound shapes, fingerprint and engine; links are measured each time, because they change.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from defer.agents import AgentPool
from defer.block_profiling import BLOCK_COSTS, BlockCosts, Step, measure_blocks, offer_of
from defer.codec_profiling import client_costs, worst_ratios
from defer.deployer import in_parallel, place_of
from defer.documents.blocks import BlocksDocument
from defer.documents.cluster import Cluster, Device
from defer.documents.profile import CodecProfile, CostProfile, DeviceProfile, LinkProfile
from defer.hops import Place
from defer.link_measuring import encryption_costs, measure_one, without_encryption
from defer.parts import written_in
from defer.pieces import Write, write_pieces
from defer.precision import Ranges
from defer.span_costs import levels
from defer.together import measure_together

if TYPE_CHECKING:
    from partitioner import BlockChain


def profile(
    pool: AgentPool,
    cluster: Cluster,
    model: Path,
    chain: BlockChain,
    *,
    dispatcher: Place,
    work: Path,
    cache: Path,
    fresh: bool = False,
    on_step: Step | None = None,
    ranges: Ranges | None = None,
) -> CostProfile:
    """Measure a model's blocks on a cluster's devices, and the links between them; cuts the model in this process.

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
        UnsupportedPrecision: The model cannot be written in a device's precision.
        AgentFault, AgentUnreachable: See `measure`.
    """
    return measure(
        pool,
        cluster,
        BlocksDocument.from_chain(chain),
        lambda precisions: write_pieces(model, chain, work, precisions, ranges),
        client_costs(chain),
        dispatcher=dispatcher,
        work=work,
        cache=cache,
        fresh=fresh,
        on_step=on_step,
    )


def computing_on(pool: AgentPool, cluster: Cluster) -> list[Device]:
    """The devices that are measured: they compute, and their agents are there."""
    return [d for d in cluster.agents if d.computes and offer_of(pool, d.name) is not None]


def measure(
    pool: AgentPool,
    cluster: Cluster,
    chain: BlocksDocument,
    write: Write,
    client: dict[str, CodecProfile],
    *,
    dispatcher: Place,
    work: Path,
    cache: Path,
    fresh: bool = False,
    on_step: Step | None = None,
) -> CostProfile:
    """Measure blocks on a cluster's devices, and the links between them; what of it computes for long is asked for.

    Args:
        pool: Connections to the agents, all connected.
        cluster: The devices and which of them may talk.
        chain: The blocks.
        write: See `Write`.
        client: What codecs cost clients.
        dispatcher: Where the dispatcher's data socket answers probes.
        work: Directory where `write` puts files.
        cache: Directory of earlier measurements.
        fresh: Measure again what the cache holds.
        on_step: Told of progress.

    Raises:
        AgentFault: An agent could not load or run a block.
        AgentUnreachable: An agent stopped answering.
    """
    ends = list(levels(len(chain.blocks)))
    computing = computing_on(pool, cluster)

    def alike(device: Device) -> tuple[str, str, str]:
        options = json.dumps(device.engine_options, sort_keys=True)
        return _fingerprint(pool, device.name), f"{device.engine} {options}", device.precision

    # Once: an agent that is lost for a moment meanwhile offers nothing.
    kinds = {device.name: alike(device) for device in computing}
    representatives: dict[tuple[str, str, str], str] = {}
    for name, kind in kinds.items():
        representatives.setdefault(kind, name)

    def company_of(name: str) -> list[Device]:
        return [each for each in computing if kinds[each.name] == kinds[name]]

    paths = {
        name: cache / f"{_cache_key(chain, *kinds[name], len(company_of(name)))}.json"
        for name in representatives.values()
    }
    _close_to_others(cache)
    known = {name: None if fresh else _cached(path) for name, path in paths.items()}
    lacking = dict.fromkeys(kinds[name][-1] for name, costs in known.items() if costs is None)
    pieces = write(tuple(lacking)) if lacking else {}

    def costs_on(name: str) -> BlockCosts:
        if (remembered := known[name]) is not None:
            if on_step is not None:
                on_step(name, "measured before", 1.0)
            return remembered
        device, made = cluster.device(name), pieces[kinds[name][-1]]
        company = company_of(name)
        spans = [
            (start, stop, written)
            for (start, stop), written in zip(
                (span for level in ends for span in level), written_in(work, made.spans), strict=True
            )
        ]
        found = measure_blocks(pool, device, chain, written_in(work, made.blocks), spans, on_step)
        if len(company) > 1 and ends:
            # As many as there are devices: about as long as their stages will be.
            each = set(next(level for level in reversed(ends) if len(level) <= len(company)))
            theirs = [span for span in spans if span[:2] in each]
            found = found.beside(measure_together(pool, company, chain, theirs, on_step))
        _remember(paths[name], found)
        return found

    measured = in_parallel(costs_on, list(representatives.values()))
    devices = {
        device.name: _device_profile(pool, device.name, measured[representatives[kinds[device.name]]])
        for device in computing
    }
    encryption = encryption_costs(pool, cluster)
    return CostProfile(
        model=chain.model,
        digest=chain.digest,
        positions=chain.positions,
        bindings=dict(chain.bindings),
        devices=devices,
        links=without_encryption(_measure_links(pool, cluster, dispatcher, on_step), encryption),
        codecs=worst_ratios(costs.ratios for costs in measured.values()),
        client=client,
        encryption=encryption,
    )


def as_offered(profile: CostProfile, pool: AgentPool) -> CostProfile:
    """A profile of another hour, with the memory that agents offer now: they refuse a plan that takes more."""
    devices = dict(profile.devices)
    for name, device in profile.devices.items():
        offer = offer_of(pool, name)
        if offer is not None:
            devices[name] = msgspec.structs.replace(device, memory_bytes=offer.memory_bytes)
    return msgspec.structs.replace(profile, devices=devices)


def _device_profile(pool: AgentPool, name: str, costs: BlockCosts) -> DeviceProfile:
    offer = offer_of(pool, name)
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
        apart=costs.apart,
        crossing_bytes=costs.crossing,
    )


# ------------------------------------------------------------------------------------------------------------- links


def _measure_links(
    pool: AgentPool, cluster: Cluster, dispatcher: Place, on_step: Step | None
) -> list[LinkProfile]:
    """Both directions between every two endpoints that may talk, one at a time so that they do not share a wire."""
    source = cluster.dispatcher.device
    places = {
        d.name: place_of(pool, cluster, d.name) for d in cluster.agents if offer_of(pool, d.name) is not None
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
        found = measure_one(pool, link.source, link.target, source, places, dispatcher)
        if found is not None:
            links.append(found)
    return links


# ------------------------------------------------------------------------------------------------------------- cache


def _cache_key(chain: BlocksDocument, fingerprint: str, engine: str, precision: str, company: int) -> str:
    identity = [
        BLOCK_COSTS,
        chain.digest,
        list(chain.positions),
        sorted(chain.bindings.items()),
        fingerprint,
        engine,
        precision,
        company,
    ]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


def _cached(path: Path) -> BlockCosts | None:
    try:
        known = msgspec.json.decode(path.read_bytes(), type=BlockCosts)
    except (OSError, msgspec.MsgspecError):
        return None  # absent or from another version: measured again
    return known if known.version == BLOCK_COSTS else None


def _close_to_others(cache: Path) -> None:
    """Measurements are for their own user, as in a dispatcher's state; an earlier version left the folder open."""
    with suppress(OSError):  # not made yet, another's, or on a file system without modes
        if not cache.is_symlink() and cache.stat().st_mode & 0o077:
            cache.chmod(0o700)


def _remember(path: Path, costs: BlockCosts) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.touch(mode=0o600)
    partial.write_bytes(msgspec.json.encode(costs))
    partial.replace(path)


def _fingerprint(pool: AgentPool, name: str) -> str:
    offer = offer_of(pool, name)
    return "" if offer is None else offer.fingerprint
