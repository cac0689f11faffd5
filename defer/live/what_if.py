"""What the product's own planner would do if the cluster were another one. Pure: no socket, no clock."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from defer import units
from defer.documents.cluster import Cluster, Link
from defer.documents.plan import Objective, Plan
from defer.documents.profile import CostProfile
from defer.errors import NoRoute, UnknownDevice, UsageError

if TYPE_CHECKING:
    from partitioner import BlockChain


@dataclass(frozen=True, slots=True)
class Slower:
    """A link at another speed, in both directions.

    Attributes:
        first: One end.
        second: The other.
        factor: Of its bandwidth, above 0; 0.5 halves it.
    """

    first: str
    second: str
    factor: float = 0.5


@dataclass(frozen=True, slots=True)
class Changes:
    """What is to be other than it is.

    Attributes:
        without: Devices that are gone.
        links: Links at another speed.
    """

    without: tuple[str, ...] = ()
    links: tuple[Slower, ...] = ()

    @property
    def plain(self) -> tuple[tuple[str, ...], tuple[tuple[str, str, float], ...]]:
        """The same as `changes_of` takes it."""
        return self.without, tuple((each.first, each.second, each.factor) for each in self.links)


def changes_of(without: tuple[str, ...], links: tuple[tuple[str, str, float], ...]) -> Changes:
    """Changes from what the page sends."""
    return Changes(without, tuple(Slower(*link) for link in links))


def predict(
    running: Plan,
    chain: BlockChain,
    cluster: Cluster,
    profile: CostProfile | None,
    objective: Objective,
    changes: Changes,
    lost: Collection[str] = (),
) -> Plan:
    """The plan that would be made, without lossy codecs and without an order of the ops of its own.

    Args:
        running: The plan that serves; it knows the links' speeds as they are.
        chain: The model's blocks, those of the profile.
        cluster: As it is.
        profile: What was measured.
        objective: What is made least.
        changes: What is to be other.
        lost: Devices that do not answer, and are not planned with.

    Raises:
        NoRoute: Nothing could serve the model then; no device that computes is left, among others.
        UnknownDevice: A change names a device that the cluster does not have.
        UsageError: A change cannot be: the dispatcher's own device, a link that nobody knows, a factor of 0.
    """
    for name in changes.without:
        if cluster.device(name).name == cluster.dispatcher.device:
            raise UsageError(f"{name!r} is where the dispatcher runs", hint="leave out another device")
    gone = {*changes.without, *lost}
    if not any(
        device.computes and device.has_agent and device.name not in gone for device in cluster.devices
    ):
        raise NoRoute("no device that computes is left", hint="leave fewer devices out")
    from defer.planning import make_plan
    from defer.wishes import Rules

    rules = Rules(excluded=tuple({**dict.fromkeys(changes.without), **dict.fromkeys(lost)}))
    return make_plan(
        chain, changed(cluster, running, changes.links), profile, objective=objective, rules=rules
    )


def changed(cluster: Cluster, running: Plan, links: tuple[Slower, ...]) -> Cluster:
    """The cluster with links at another speed; what a link entry says goes before what was measured.

    Args:
        cluster: As it is described.
        running: The plan by which the links' speeds are known.
        links: Which are how many times as fast.

    Raises:
        UsageError: A factor that cannot be, or a link that the plan does not know.
        UnknownDevice: An end of one that the cluster does not have.
    """
    entries = list(cluster.links)
    for slower in links:
        if not 0 < slower.factor <= 1000:
            raise UsageError(
                f"a link cannot be {slower.factor:g} times as fast", hint="give a factor above 0"
            )
        both = ((slower.first, slower.second), (slower.second, slower.first))
        known = {(load.source, load.target): load for load in running.link_loads}
        if not any(pair in known for pair in both):
            for name in (slower.first, slower.second):
                if name not in [device.name for device in cluster.devices]:
                    raise UnknownDevice(f"there is no device {name!r}")
            raise UsageError(f"the plan knows no link between {slower.first!r} and {slower.second!r}")
        for source, target in both:
            load = known.get((source, target))
            if load is None:
                continue
            old = next((entry for entry in entries if (source, target) in entry.pairs), None)
            entries.append(  # the last entry of a direction counts
                msgspec.structs.replace(
                    old or Link(),
                    between=None,
                    source=source,
                    target=target,
                    half_duplex=False,
                    medium=old.shared if old is not None else None,
                    bandwidth=units.format_bandwidth(load.bytes_per_s * slower.factor),
                    delay=units.format_duration(load.delay_s),
                )
            )
    return msgspec.structs.replace(cluster, links=tuple(entries))
