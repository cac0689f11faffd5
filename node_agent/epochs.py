"""The deployments that an agent holds: loading, loaded, unloading. Pure.

        Load                    PartitionsLoaded               Unload                 Retired
    ──────────────▶ loading ────────────────────▶ loaded ────────────────▶ unloading ─────────▶ (gone)
                       │ Unload
                       └──────▶ cancelled ── PartitionsLoaded or LoadFailed ──▶ (gone)

A load whose answer got lost is asked again by the dispatcher; asking twice loads once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from node_agent.codecs import CODECS
from node_agent.content import check_ref
from node_agent.engines.fallback import may_fall_back
from node_agent.errors import RequestError
from node_agent.events import Ticket
from node_agent.layouts import channel_blocks_of, fits
from node_agent.messages import AUTO_ENGINE, EngineInfo, FileRef, HopSpec, Load, PeerRef

_ENDPOINT = re.compile(
    r"tcp://([A-Za-z0-9_]([A-Za-z0-9._-]{0,252})|\[[0-9a-fA-F:.]{2,45}(%[A-Za-z0-9._-]{1,16})?\]):(?P<port>[0-9]{1,5})"
)
"""What ZeroMQ takes as an address to connect to; a port is checked apart."""

Phase = Literal["loading", "loaded", "unloading", "cancelled"]


@dataclass(slots=True)
class Epoch:
    """One deployment.

    Attributes:
        load: What was asked.
        phase: See the module's drawing.
        loading: Who waits for `Loaded`.
        unloading: Who waits for `Done`.
        seconds: How long the load took.
        resident_bytes: Memory that the load took.
        engine: The engine that runs it.
        notes: Why other engines were not taken.
    """

    load: Load
    phase: Phase = "loading"
    loading: list[Ticket] = field(default_factory=list)
    unloading: list[Ticket] = field(default_factory=list)
    seconds: float = 0.0
    resident_bytes: int = 0
    engine: str = ""
    notes: tuple[str, ...] = ()


MOST_CREDIT = 1024
"""Items that one hop may ask to have under way."""


MOST_BATCH = 256
"""Requests that may run as one."""

MOST_DELAY_S = 10.0
"""How long a request may be made to wait for others."""


def check_load(load: Load, engines: Sequence[EngineInfo]) -> None:
    """Checks what a `Load` asks for as far as that needs no disk and no engine.

    Raises:
        RequestError: It contradicts itself, or names what is not here.
        InvalidFileError: A file is not named by its content.
        LoadFailedError: Whether another engine may take over is neither yes nor no.
    """
    if load.epoch < 1 or not load.hops:
        raise RequestError("bad-load", f"Load of epoch {load.epoch} names no hop.")
    numbers = [hop.hop for hop in load.hops]
    if len(set(numbers)) != len(numbers) or min(numbers) < 0:
        raise RequestError("bad-load", f"Load of epoch {load.epoch} names hops {numbers}: each once, from 0.")
    for hop in load.hops:
        _check_hop(hop)
    if any(hop.graph is not None for hop in load.hops):
        _check_engine(load.engine, engines, strict=not may_fall_back(load.options, load.engine))


def _check_engine(name: str, engines: Sequence[EngineInfo], *, strict: bool) -> None:
    usable = [engine for engine in engines if not engine.missing]
    if name == AUTO_ENGINE and usable:
        return
    for engine in engines:
        if engine.name == name:
            # One that is known and cannot run leaves its partitions to another, and the answer says why.
            if not engine.missing or (usable and not strict):
                return
            raise RequestError("engine-missing", f"Engine {name} cannot run here.", hint=engine.missing)
    if name == AUTO_ENGINE:
        raise RequestError(
            "engine-missing", "No engine can run here.", hint=" ".join(engine.missing for engine in engines)
        )
    have = ", ".join(engine.name for engine in usable) or "none"
    raise RequestError("engine-missing", f"Engine {name!r} is unknown here; there are: {have}.")


def _check_hop(hop: HopSpec) -> None:
    for peer in (hop.previous, hop.next):
        check_peer(peer)
    if hop.codec not in CODECS:
        raise RequestError(
            "unknown-codec", f"Codec {hop.codec!r} is unknown here.", hint=f"There are: {', '.join(CODECS)}."
        )
    if not 0 <= hop.credit <= MOST_CREDIT:
        raise RequestError(
            "bad-load", f"Hop {hop.hop} asks for a credit of {hop.credit} items, not 0 to {MOST_CREDIT}."
        )
    if list(hop.batch) != sorted({*hop.batch}) or any(not 2 <= size <= MOST_BATCH for size in hop.batch):
        raise RequestError(
            "bad-load",
            f"Hop {hop.hop} asks for batches of {', '.join(map(str, hop.batch))}.",
            hint=f"Sizes increase, from 2 to {MOST_BATCH}.",
        )
    if not 0 <= hop.batch_delay_s <= MOST_DELAY_S:
        raise RequestError(
            "bad-load", f"Hop {hop.hop} asks for a delay of {hop.batch_delay_s} s, not 0 to {MOST_DELAY_S} s."
        )
    if hop.graph is None:
        return
    for ref in (hop.graph, *hop.weights):
        check_ref(ref)
    if not hop.outputs:
        raise RequestError("bad-load", f"Hop {hop.hop} has a partition without outputs.")
    for spec in (*hop.inputs, *hop.outputs):
        if spec.channel_block and not fits(spec, spec.channel_block):
            raise RequestError(
                "bad-load",
                f"Hop {hop.hop} has {spec.name!r}, which cannot lie in blocks of {spec.channel_block} channels.",
            )
    if len(set(hop.send)) != len(hop.send):
        raise RequestError("bad-load", f"Hop {hop.hop} is to send a tensor twice: {', '.join(hop.send)}.")


def check_peer(peer: PeerRef) -> None:
    """Checks a peer's name and endpoint.

    Raises:
        RequestError: One of them is malformed.
    """
    if not peer.name:
        raise RequestError("bad-peer", "A peer has no name.")
    found = _ENDPOINT.fullmatch(peer.endpoint)
    if peer.endpoint and (found is None or not 0 < int(found["port"]) < 65536):
        raise RequestError(
            "bad-peer",
            f"Peer {peer.name} has endpoint {peer.endpoint!r}.",
            hint="An endpoint is tcp://HOST:PORT with a port from 1 to 65535, or empty where the peer dials.",
        )


def files_of(hops: Iterable[HopSpec]) -> tuple[FileRef, ...]:
    """Every file that these hops need, once each, graphs before their weights."""
    found: dict[str, FileRef] = {}
    for hop in hops:
        if hop.graph is not None:
            for ref in (hop.graph, *hop.weights):
                found.setdefault(ref.sha256 + ref.suffix, ref)
    return tuple(found.values())


def blocks_of(hop: HopSpec) -> tuple[tuple[str, int], ...]:
    """Channels per block of those of a partition's tensors that are in blocks: one loaded so is another one."""
    return tuple(channel_blocks_of((*hop.inputs, *hop.outputs)).items())


def partition_bytes(loads: Iterable[Load]) -> int:
    """Memory that the partitions of these loads need at least: graph and weights of each, once.

    A partition that several epochs hold is loaded once (see `node_agent.loader`), so it counts once.
    """
    sizes: dict[object, int] = {}
    for load in loads:
        for hop in load.hops:
            if hop.graph is not None:
                sizes[load.engine, hop.graph.sha256, blocks_of(hop)] = hop.graph.nbytes + sum(
                    ref.nbytes for ref in hop.weights
                )
    return sum(sizes.values())
