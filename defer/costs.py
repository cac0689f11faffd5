"""From a block chain, a cluster file and a profile to the router's problem: numbers and names, nothing measured here.

Where nothing was measured, a block takes its FLOPs over the device's declared speed, and a link has its declared
bandwidth and delay; where not even that is known, a default that the plan's notes state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

import router
from defer import units
from defer.codec_costs import Errors, offered_codecs
from defer.cutting_around import Refusals, cut_around
from defer.documents.cluster import Cluster, Device
from defer.documents.profile import CostProfile, LinkProfile
from defer.errors import InvalidDocument, NoRoute
from defer.moving_costs import with_moving
from defer.wishes import NO_RULES, Rules, make_pins

if TYPE_CHECKING:
    from partitioner import BlockChain

DEFAULT_SPEED: Final = 20e9
"""FLOP/s of a device of which nothing is known: about one core of an edge box under ONNX Runtime."""

DEFAULT_BANDWIDTH: Final = 125e6
"""Bytes/s of a link of which nothing is known: gigabit Ethernet."""

DEFAULT_DELAY: Final = 200e-6
"""Seconds one way of a link of which nothing is known: two hosts on one switch."""

STATIC_OVERHEAD: Final = 300e-6
"""Seconds per stage beside its blocks where nothing was measured: receive, dispatch, send."""

RUNTIME_MEMORY: Final = 32 << 20
"""Bytes that a stage takes beside weights, activations and queues: the engine's session, its arenas and threads."""

QUEUED: Final = router.Buffers(receive=2, send=2)
"""Copies of a boundary that wait at each end of a stage when the pipeline is full; planning keeps room for them."""

SINK: Final = " (results)"
"""Added to the name of a dispatcher's device without an agent where it is the sink.

Such a device forwards nothing. As two devices, one with links out only and one with links in only, no path can
lead through it.
"""

Method = Literal["measured", "static", "mixed"]


@dataclass(frozen=True, slots=True)
class Costs:
    """A problem, and what was assumed to make it.

    Attributes:
        problem: For the router.
        method: Whether the seconds of the devices were measured.
        notes: One sentence per assumption.
    """

    problem: router.Problem
    method: Method
    notes: tuple[str, ...]

    def told(self, text: str) -> str:
        """A name or sentence of the router's with the cluster's own device names."""
        return text.replace(SINK, "")


def make_costs(
    chain: BlockChain,
    cluster: Cluster,
    profile: CostProfile | None,
    *,
    max_stages: int | None = None,
    codec: str | None = None,
    errors: Errors | None = None,
    rules: Rules = NO_RULES,
    refusals: Refusals = "avoid",
) -> Costs:
    """The router's problem for one model on one cluster.

    Args:
        chain: The model's blocks.
        cluster: Devices and links as the operator describes them.
        profile: What was measured, or None for static costs.
        max_stages: At most so many stages.
        codec: The one codec between stages; None takes the cluster file's word, `auto` whatever is cheapest.
        errors: What lossy codecs do at each boundary; without it none is used.
        rules: Which blocks and devices the operator ties or forbids.
        refusals: What is done about blocks of which a device's compiling engine lacks an op.

    Raises:
        InvalidDocument: The profile is of another model, or of other blocks.
        UnknownDevice, UsageError: A rule names what is not there.
        NoRoute: No device of the cluster has known costs, or the codec was not measured.
    """
    if profile is not None:
        _check_profile(chain, profile)
    notes: list[str] = []
    seconds = _block_seconds(chain, cluster, profile, notes)
    pins = make_pins(rules, cluster, len(chain.blocks))
    pins, cut = cut_around(profile, seconds, pins, refusals)
    notes += cut
    measured = [name for name in seconds if _measured(profile, name)]
    method: Method = "measured" if len(measured) == len(seconds) else "mixed" if measured else "static"
    sizes = _crossing(chain, cluster, profile, seconds)
    problem = router.Problem(
        cluster=_router_cluster(cluster, profile, notes),
        source=cluster.dispatcher.device,
        sink=_sink(cluster),
        block_seconds=seconds,
        boundary_bytes=sizes,
        block_memory=_block_memory(chain, profile),
        block_activation=[block.activation_bytes for block in chain.blocks],
        stage_memory=RUNTIME_MEMORY,
        buffers=QUEUED,
        stage_overhead={name: _overhead(profile, name) for name in seconds},
        codecs=with_moving(
            offered_codecs(
                len(sizes), cluster, profile, codec or cluster.network.codec, _sink(cluster), errors
            ),
            profile,
            sizes,
            sorted({*cluster.names, _sink(cluster)}),
        ),
        max_stages=max_stages,
        pins=pins,
    )
    return Costs(problem, method, tuple(notes))


def _crossing(
    chain: BlockChain, cluster: Cluster, profile: CostProfile | None, devices: Iterable[str]
) -> list[int]:
    """Bytes at each boundary: narrow where every stage would be, the model's own where some would not."""
    sizes = [boundary.nbytes for boundary in chain.boundaries]
    names = list(devices)
    if profile is None or len({cluster.device(name).precision for name in names}) != 1:
        return sizes
    known = [profile.devices[name].crossing_bytes for name in names if name in profile.devices]
    if len(known) < len(names) or not all(known):
        return sizes
    return [max(each) for each in zip(*known, strict=True)]


def _check_profile(chain: BlockChain, profile: CostProfile) -> None:
    again = f"`{profile.MADE_BY}` measures again"
    if profile.digest != chain.digest:
        raise InvalidDocument(
            f"the profile is of another model: {profile.model!r} with digest {profile.digest[:12]}, "
            f"not {chain.model!r} with {chain.digest[:12]}",
            hint=again,
        )
    if profile.positions != tuple(boundary.position for boundary in chain.boundaries):
        raise InvalidDocument(
            f"the profile has {len(profile.positions) - 1} blocks, the chain has {len(chain.blocks)} others",
            hint=again,
        )
    if dict(profile.bindings) != dict(chain.bindings):
        raise InvalidDocument(
            f"the profile was measured with {_sizes(profile.bindings)}, the chain is for {_sizes(chain.bindings)}",
            hint=again,
        )


def _sizes(bindings: Mapping[str, int]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in bindings.items()) or "no free dimension"


def _measured(profile: CostProfile | None, name: str) -> bool:
    return profile is not None and name in profile.devices and profile.devices[name].method == "measured"


def _overhead(profile: CostProfile | None, name: str) -> float:
    if profile is None or name not in profile.devices:
        return STATIC_OVERHEAD
    return profile.devices[name].stage_overhead_s


def _block_seconds(
    chain: BlockChain, cluster: Cluster, profile: CostProfile | None, notes: list[str]
) -> dict[str, Sequence[float]]:
    """Seconds per block of every device that may compute and whose costs are known."""
    found: dict[str, Sequence[float]] = {}
    for device in cluster.devices:
        if not device.computes or not device.has_agent:
            continue
        if profile is not None and device.name in profile.devices:
            found[device.name] = profile.devices[device.name].block_seconds
        elif profile is None or device.speed is not None:
            found[device.name] = _static_seconds(chain, device, notes)
        else:
            # A guess beside measured figures would win or lose by the guess alone.
            notes.append(f"{device.name} is left out: it was not measured, and its file declares no speed")
    if not found:
        raise NoRoute(
            "no device of the cluster can compute",
            hint="start the agents and run `defer profile`, or declare a speed for each device",
        )
    return found


def _static_seconds(chain: BlockChain, device: Device, notes: list[str]) -> list[float]:
    speed = device.flop_per_s
    if speed is None:
        speed = DEFAULT_SPEED
        notes.append(
            f"{device.name} is assumed to do {units.show_speed(speed)}: no speed declared or measured"
        )
    return [block.flops / speed for block in chain.blocks]


def _sink(cluster: Cluster) -> str:
    home = cluster.dispatcher.device
    return home if cluster.device(home).has_agent else home + SINK


def _router_cluster(cluster: Cluster, profile: CostProfile | None, notes: list[str]) -> router.Cluster:
    encryption = profile.encryption if profile else {}
    devices = [
        router.Device(
            device.name,
            memory=_memory(device, profile),
            computes=device.computes and device.has_agent,
            power=device.added_watts,
            price=device.price_per_s,
            crypt_seconds_per_byte=device.crypt_s_per_byte or encryption.get(device.name, 0.0),
        )
        for device in cluster.devices
    ]
    measured = {(link.source, link.target): link for link in profile.links} if profile else {}
    links, assumed = [], 0
    home, sink = cluster.dispatcher.device, _sink(cluster)
    if sink != home:
        devices.append(replace(devices[cluster.names.index(home)], name=sink))
    for link in cluster.directed_links():
        # Where the receiver dials, only the way back can be probed; one wire mostly has one speed.
        known: LinkProfile | None = measured.get((link.source, link.target)) or measured.get(
            (link.target, link.source)
        )
        bandwidth = link.bandwidth or (known.bytes_per_s if known else None)
        delay = link.delay if link.delay is not None else known.delay_s if known else None
        assumed += bandwidth is None
        links.append(
            router.Link(
                link.source,
                sink if link.target == home else link.target,
                DEFAULT_BANDWIDTH if bandwidth is None else bandwidth,
                DEFAULT_DELAY if delay is None else delay,
                link.medium,
                # A profile with keys was measured on a cluster whose every link has them.
                link.encrypted or bool(encryption),
                link.joules,
                link.price,
            )
        )
    notes += _free_work(cluster)
    ends = {name for link in links if link.encrypted for name in (link.source, link.target)}
    if free := sorted(
        {d.name.replace(SINK, "") for d in devices if d.name in ends and not d.crypt_seconds_per_byte}
    ):
        notes.append(
            f"encryption is assumed to take no time on {', '.join(free)}: neither declared nor measured"
        )
    if assumed:
        what = f"{units.show_bandwidth(DEFAULT_BANDWIDTH)} and {units.show_duration(DEFAULT_DELAY)}"
        notes.append(
            f"{assumed} of {len(links)} links are assumed to have {what}: neither declared nor measured"
        )
    return router.Cluster(devices, links)


def _free_work(cluster: Cluster) -> list[str]:
    """A note where some devices have a price or a power and others seem to work for nothing."""
    notes = []
    working = [device for device in cluster.devices if device.computes and device.has_agent]
    for key, what in (("price", "cost nothing"), ("power", "take no energy")):
        free = [device.name for device in working if not getattr(device, key)]
        if 0 < len(free) < len(working):
            notes.append(f"work on {', '.join(free)} is taken to {what}: no `{key}` declared")
    return notes


def _memory(device: Device, profile: CostProfile | None) -> int | None:
    """The stricter of what the operator allows and what the agent offers; None when neither says."""
    offered = profile.devices[device.name].memory_bytes if profile and device.name in profile.devices else 0
    limits = [limit for limit in (device.memory_bytes, offered) if limit]
    return min(limits) if limits else None


def _block_memory(chain: BlockChain, profile: CostProfile | None) -> list[int]:
    """Bytes that each block keeps loaded.

    An engine keeps the weights and, for most, a second copy in the layout that it computes with. What a session was
    measured to take is trusted between those two: below lies what was shared with an earlier block, above lies what
    the allocator kept of the session before. The largest over the devices counts, because the problem has one number.
    """
    tables = [d.block_resident for d in profile.devices.values() if d.block_resident] if profile else []
    found = []
    for number, block in enumerate(chain.blocks):
        resident = max((table[number] for table in tables), default=2 * block.weight_bytes)
        found.append(min(max(resident, block.weight_bytes), 2 * block.weight_bytes))
    return found
