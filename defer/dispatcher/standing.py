"""Which plans stand by, loaded: for the loss of which devices, and whether memory allows. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from node_agent.epochs import partition_bytes
from node_agent.messages import Load
from node_agent.quantities import show_size

if TYPE_CHECKING:
    from defer.documents.plan import Plan

Mode = Literal["auto", "loaded", "files", "none"]
"""What is prepared for the loss of a device: partitions in memory where there is plenty of it, or as far as there is
any; files on the agents' disks; nothing but a plan and its files beside the dispatcher."""

RESERVE: Final = 0.25
"""Part of a device's memory that `auto` leaves free of partitions: engines take more than the files do."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plan for the loss of some devices.

    Attributes:
        lost: Those.
        shape: Equal for two plans that load and run the same (`shape_of`).
        loads: What each device would have to hold for it.
    """

    lost: frozenset[str]
    shape: object
    loads: Mapping[str, Load]


@dataclass(frozen=True, slots=True)
class Choice:
    """What is to change.

    Attributes:
        drop: Epochs of those that stand by and are not wanted any more.
        load: What is to stand by in addition, the ones first that take least memory.
    """

    drop: tuple[int, ...]
    load: tuple[Candidate, ...]


def choose(
    wanted: Sequence[Candidate], standing: Mapping[int, object], held: Mapping[str, Sequence[Load]]
) -> Choice:
    """Compare what should stand by with what does.

    Args:
        wanted: One for each loss that is prepared for.
        standing: Shapes of what stands by, by epoch.
        held: What each device holds, what stands by included.
    """
    shapes = {each.shape for each in wanted}
    kept: dict[object, int] = {}
    drop = []
    for epoch, shape in standing.items():
        if shape in shapes and shape not in kept:
            kept[shape] = epoch
        else:
            drop.append(epoch)
    missing: dict[object, Candidate] = {}
    for each in wanted:
        if each.shape not in kept:
            missing.setdefault(each.shape, each)
    cheap = sorted(missing.values(), key=lambda each: (_more(each, held), sorted(each.lost)))
    return Choice(tuple(drop), tuple(cheap))


def obstacle(
    mode: Mode, candidate: Candidate, held: Mapping[str, Sequence[Load]], memory: Mapping[str, int]
) -> str:
    """Why memory does not allow a plan to stand by; empty where it does.

    Counted as an agent counts a load: graph and weights of each partition, once however many deployments hold it.

    Args:
        mode: How much may be taken.
        candidate: What is to stand by.
        held: What each device holds now.
        memory: Bytes that the partitions of each device may take in all; 0 where it does not say.
    """
    for device, load in sorted(candidate.loads.items()):
        taken = partition_bytes(held.get(device, ()))
        needed = partition_bytes([*held.get(device, ()), load])
        total = memory.get(device, 0)
        if needed == taken or (mode == "loaded" and not total):
            continue
        if not total:
            return f"{device} does not say how much memory it has"
        room = total if mode == "loaded" else int(total * (1 - RESERVE))
        if needed > room:
            spare = "" if mode == "loaded" else f", of which {RESERVE:.0%} stay free"
            return (
                f"{device} would hold {show_size(needed)}, {show_size(needed - taken)} of it for this; "
                f"it has {show_size(total)}{spare}"
            )
    return ""


def shape_of(plan: Plan) -> object:
    """What is loaded and run for a plan, without what is predicted of it."""
    return (
        plan.order,
        plan.batching,
        tuple(
            (
                fraction if len(plan.legs) > 1 else 1.0,
                tuple((stage.device, *stage.ops) for stage in leg.stages),
                tuple((each.path, each.codec) for each in leg.transfers),
            )
            for fraction, leg in plan.legs
        ),
    )


def _more(candidate: Candidate, held: Mapping[str, Sequence[Load]]) -> int:
    """Bytes of memory that a candidate takes beyond what its devices hold."""
    return sum(
        partition_bytes([*held.get(device, ()), load]) - partition_bytes(held.get(device, ()))
        for device, load in candidate.loads.items()
    )
