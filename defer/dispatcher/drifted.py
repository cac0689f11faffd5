"""From measurements to ratios, and from believed factors to a cluster and a profile that planning takes. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from defer import units
from defer.dispatcher.drift import Subject, floored
from defer.documents.cluster import Cluster, DirectedLink, Link
from defer.documents.plan import Plan
from defer.documents.profile import CostProfile, DeviceProfile
from node_agent.messages import AgentStatus, HopStatus

RUN_FLOOR_S: Final = 0.5e-3
"""Runs differ by so much from one to the next, whatever they do."""

DELAY_FLOOR_S: Final = 2e-3
"""Delays differ by so much with the load of the machines at both ends."""

FASTEST: Final = 125e6
"""Bytes/s (gigabit Ethernet) above which a small probe tells nothing of a link but that it is fast."""

LIKE: Final = 0.1
"""Requests may be larger or smaller than the one that was planned with by this part."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What a stage had counted at one moment.

    Attributes:
        items: Requests.
        runs: Runs of the partition.
        run_s: Seconds of them all.
        bytes_in: Bytes that came.
        bytes_out: Bytes that were handed on.
        processor_s: Processor time of the runs, where the device has a quota of it.
        cores: The quota at that moment; 0 where there is none.
        loads: Partitions that the agent had loaded: beside a load, runs say nothing.
    """

    items: int
    runs: int
    run_s: float
    bytes_in: int
    bytes_out: int
    processor_s: float = 0.0
    cores: float = 0.0
    loads: int = 0

    @classmethod
    def of(cls, hop: HopStatus, status: AgentStatus) -> Counted:
        """From what an agent says of a hop, and of itself."""
        return cls(
            hop.items,
            hop.runs or hop.items,
            hop.run_s,
            hop.bytes_in,
            hop.bytes_out,
            hop.processor_s,
            status.cores,
            status.loads,
        )


def run_between(before: Counted | None, now: Counted) -> float | None:
    """Mean seconds of a run between two looks; None where they say nothing of what one request takes.

    Under a quota a run that is short, or comes after a pause, lasts less than what it takes of the quota: the next one
    waits for it. So it counts for what planning has measured, its processor time over the quota, or more if it lasted.

    Args:
        before: The earlier look; None where there was none.
        now: The later one.
    """
    past = _past(before, now)
    items, runs = now.items - past.items, now.runs - past.runs
    # What several requests share a run takes is another time per request than what was measured of one.
    if items <= 0 or runs != items or past.loads != now.loads:
        return None
    paid = (now.processor_s - past.processor_s) / now.cores if now.cores else 0.0
    return max(now.run_s - past.run_s, paid) / items


def bytes_between(before: Counted | None, now: Counted) -> float:
    """Mean bytes of what came between two looks; 0 where nothing did."""
    past = _past(before, now)
    return (now.bytes_in - past.bytes_in) / max(1, now.items - past.items)


def _past(before: Counted | None, now: Counted) -> Counted:
    """The earlier look, unless its hop was loaded again since."""
    return (
        before
        if before is not None and before.items <= now.items
        else Counted(0, 0, 0.0, 0, 0, loads=now.loads)
    )


def planned_run(device: DeviceProfile, start: int, stop: int) -> float:
    """Seconds that blocks `start` to `stop` were measured to take as one partition on a device."""
    cuts = device.cut_seconds
    return sum(device.block_seconds[start:stop]) + ((cuts[start] + cuts[stop]) / 2 if cuts else 0.0)


def blocks_of(ops: tuple[int, int], profile: CostProfile) -> tuple[int, int] | None:
    """A stage's blocks in the profile's numbers; None where it is cut between them."""
    numbers = {position: number for number, position in enumerate(profile.positions)}
    start, stop = numbers.get(ops[0]), numbers.get(ops[1])
    return None if start is None or stop is None else (start, stop)


def run_ratio(seconds: float, planned: float) -> float:
    """How much slower a run was than planned; 1 where they are too close to tell."""
    return 1.0 if abs(seconds - planned) < RUN_FLOOR_S else seconds / max(planned, 1e-9)


# ------------------------------------------------------------------------------------------------------------- links


@dataclass(frozen=True, slots=True)
class PlannedLink:
    """One direction of a link as planning takes it: bytes/s and seconds, encryption at both ends not counted.

    Attributes:
        source: Where it begins.
        target: Where it ends.
        bandwidth: Bytes per second.
        delay: Seconds.
        declared: Whether the cluster file says the bandwidth: then it is never believed to be faster.
        coded_s: Seconds per byte that both ends take to encrypt and decrypt.
    """

    source: str
    target: str
    bandwidth: float
    delay: float
    declared: bool
    coded_s: float = 0.0


def planned_links(cluster: Cluster, profile: CostProfile) -> dict[tuple[str, str], PlannedLink]:
    """Every direction whose speed is known."""
    measured = {(link.source, link.target): link for link in profile.links}
    found = {}
    for link in cluster.directed_links():
        ends = (link.source, link.target)
        known = measured.get(ends) or measured.get((link.target, link.source))
        bandwidth = link.bandwidth or (known.bytes_per_s if known else None)
        delay = link.delay if link.delay is not None else known.delay_s if known else None
        if bandwidth is not None and delay is not None:
            coded = sum(profile.encryption.get(end, 0.0) for end in ends)
            found[ends] = PlannedLink(*ends, bandwidth, delay, link.bandwidth is not None, coded)
    return found


def link_ratios(
    planned: PlannedLink, bandwidth: float, delay: float, traffic: float = 0.0
) -> Iterator[tuple[Subject, float]]:
    """How much slower a probe found a link than planned.

    Args:
        planned: The link.
        bandwidth: Bytes per second of the probe.
        delay: Seconds one way.
        traffic: Bytes per second that were on it meanwhile: what they take is not missing.
    """
    expected = min(1 / (1 / planned.bandwidth + planned.coded_s), FASTEST)
    found = min(bandwidth, FASTEST)
    ratio = expected / (found if found >= expected else min(expected, found + traffic))
    # What the operator says is a bound that may be meant: a share of a link, or one that others need as well.
    yield (
        Subject("bandwidth", planned.source, planned.target),
        max(1.0, ratio) if planned.declared else ratio,
    )
    yield Subject("delay", planned.source, planned.target), floored(delay, planned.delay, DELAY_FLOOR_S)


def path_pairs(plan: Plan) -> list[tuple[str, str]]:
    """The directions of links that a plan uses, in the order of its transfers."""
    pairs = [
        pair
        for _, leg in plan.legs
        for transfer in leg.transfers
        for pair in zip(transfer.path, transfer.path[1:], strict=False)
    ]
    return list(dict.fromkeys(pair for pair in pairs if pair[0] != pair[1]))


# --------------------------------------------------------------------------------------------------- for planning


def drifted(
    cluster: Cluster, profile: CostProfile, factors: Mapping[Subject, float]
) -> tuple[Cluster, CostProfile]:
    """What planning takes where devices and links are believed to be slower or faster than they were.

    Args:
        cluster: As it was planned with.
        profile: As it was measured.
        factors: Of time, by subject.
    """
    devices = {
        name: _slower(device, factors.get(Subject("device", name), 1.0))
        for name, device in profile.devices.items()
    }
    links = [*cluster.links, *_links(cluster, profile, factors)]  # the last entry of a direction counts
    return (
        msgspec.structs.replace(cluster, links=tuple(links)),
        msgspec.structs.replace(profile, devices=devices),
    )


def _slower(device: DeviceProfile, factor: float) -> DeviceProfile:
    if factor == 1.0:
        return device
    return msgspec.structs.replace(
        device,
        block_seconds=tuple(seconds * factor for seconds in device.block_seconds),
        cut_seconds=tuple(seconds * factor for seconds in device.cut_seconds),
    )


def _links(cluster: Cluster, profile: CostProfile, factors: Mapping[Subject, float]) -> Iterator[Link]:
    entries = {pair: link for link in cluster.links for pair in link.pairs}
    declared: dict[tuple[str, str], DirectedLink] = {
        (link.source, link.target): link for link in cluster.directed_links()
    }
    for ends, planned in planned_links(cluster, profile).items():
        slower = factors.get(Subject("bandwidth", *ends), 1.0)
        later = factors.get(Subject("delay", *ends), 1.0)
        if slower == later == 1.0 or ends not in declared:
            continue
        bandwidth = planned.bandwidth if slower == 1.0 else min(planned.bandwidth, FASTEST) / slower
        delay = planned.delay if later == 1.0 else later * (planned.delay + DELAY_FLOOR_S) - DELAY_FLOOR_S
        old = entries.get(ends)
        yield msgspec.structs.replace(
            old or Link(),
            between=None,
            source=ends[0],
            target=ends[1],
            half_duplex=False,
            medium=old.shared if old is not None else None,
            bandwidth=units.format_bandwidth(bandwidth),
            delay=units.format_duration(max(0.0, delay)),
        )
