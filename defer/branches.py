"""Plans of branchy models along an order of their own. Pure, but for the model that the caller lets it look at.

A chain has one order of the ops, and a plan for it cuts there. Where a model branches, another order may let stages
be balanced better, or cut where less is alive. The router finds such orders on the graph of ops; whether one is better
is decided like everything else: by planning on the model's chain in that order.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

import router
from defer.blocks import PLANNING_BLOCKS, regroup
from defer.documents.plan import Plan
from defer.documents.profile import CostProfile
from defer.errors import NoRoute
from defer.op_graphs import Shares, op_graph

if TYPE_CHECKING:
    from defer.costs import Costs
    from partitioner import Block, BlockChain, Flow

IDEALS: Final = 12_000
"""Sets of ops that the search looks at: a few seconds of one core."""

STEPS: Final = 3_000_000
"""Steps of the search: sets of ops, times kinds of devices, times the ways to have used some of each."""

GAIN: Final = 0.98
"""Another order must take so much less; shared-out seconds are less certain than measured ones."""

LINK_SHARES: Final = (1.0, 0.3, 0.05)
"""How much of a link's seconds counts as a device's: all of them, or few because links work beside devices."""


@dataclass(frozen=True, slots=True)
class Branches:
    """A model that may be looked at once more.

    Attributes:
        flow: Its ops.
        reorder: Its chain, one block per op, in another order.
    """

    flow: Callable[[], Flow]
    reorder: Callable[[Sequence[int]], BlockChain]


def branches_of(model: Path, shapes: Mapping[str, Sequence[int]]) -> Branches:
    """A model's file, read again only when planning asks.

    Args:
        model: The ONNX file.
        shapes: Input shapes that bind free dimensions, as the chain was analysed with.
    """
    import partitioner

    return Branches(
        lambda: partitioner.flow(model, shapes or None),
        lambda order: partitioner.analyze(model, shapes or None, order=order),
    )


Again = Callable[["BlockChain", CostProfile | None], Plan]
"""Plans once more, as the first plan was made, for another chain and its profile."""


def with_own_order(
    plan: Plan, chain: BlockChain, costs: Costs, profile: CostProfile | None, branches: Branches, again: Again
) -> Plan:
    """The plan, or a better one along another order of the ops.

    What was measured per block is shared out over its ops, and summed up again over the blocks of the new chain. Codecs
    were measured at the model's own boundaries, so that a plan with its own order sends raw tensors.

    Args:
        plan: The best one along the model's own order; for throughput.
        chain: Which it was made for.
        costs: What the chain costs.
        profile: What was measured.
        branches: The model.
        again: Plans for another chain.
    """
    if plan.period_s * GAIN <= _floor(costs):
        return plan  # the devices' work alone takes as long in any order
    flow = branches.flow()
    if len(flow.reads) != chain.boundaries[-1].position:
        return plan  # the chain is of another version of the model; nothing can be said about its ops
    shares = Shares(chain, flow)
    best, limit = plan, plan.period_s * GAIN
    for order, cuts in _orders(shares, flow, costs):
        fine = branches.reorder(order)
        positions = _positions(fine, cuts, max(len(chain.blocks), PLANNING_BLOCKS))
        grouped = regroup(fine, positions)
        moved = None if profile is None else _reordered(profile, shares, order, grouped)
        try:
            other = again(grouped, moved)
        except NoRoute:
            continue  # it does not fit where the memory of a stage is told exactly, or needs a codec
        if other.period_s >= limit:
            continue
        if best is plan:
            # An order may win by cutting inside a block, which the model's own order could do as well.
            bar = _refined(plan, chain, profile, shares, branches, again)
            limit = min(limit, bar * GAIN)
        if other.period_s < limit:
            best, limit = msgspec.structs.replace(other, order=tuple(order)), other.period_s
    if best is plan:
        return plan
    saved = 1 - best.period_s / plan.period_s
    told = (
        f"the ops run in an order of this plan's own, {saved:.0%} less between two results than in the model's; "
        "their seconds are shared out from those of the model's blocks"
    )
    return msgspec.structs.replace(best, notes=(*best.notes, told))


def own_order(
    order: Sequence[int],
    positions: Sequence[int],
    chain: BlockChain,
    profile: CostProfile | None,
    branches: Branches,
) -> tuple[BlockChain, CostProfile | None]:
    """The chain, and the profile, in which a plan with an order of its own was made.

    Args:
        order: The plan's.
        positions: Its boundaries, in that order.
        chain: The model's blocks, in the model's own order.
        profile: What was measured of them.
        branches: The model.
    """
    grouped = regroup(branches.reorder(order), positions)
    if profile is None:
        return grouped, None
    return grouped, _reordered(profile, Shares(chain, branches.flow()), order, grouped)


def _floor(costs: Costs) -> float:
    """Seconds between two results if the work could be shared out among the devices without a rest."""
    rows = np.array(list(costs.problem.block_seconds.values()), np.float64)
    fastest = rows.min(axis=0)
    some = (fastest > 0) & np.isfinite(fastest)
    if not some.any():
        return 0.0
    # At best, a device does this much of the fastest devices' work per second.
    rates = 1 / (rows[:, some] / fastest[some]).min(axis=1)
    return float(fastest[some].sum() / rates.sum())


def _orders(shares: Shares, flow: Flow, costs: Costs) -> Iterator[tuple[list[int], list[int]]]:
    """Orders that promise something, each with the positions where its stages begin."""
    seen = {tuple(range(len(flow.reads)))}
    for link_share in LINK_SHARES:
        graph, kinds = op_graph(shares, flow, costs, link_share)
        ways = len(kinds) * math.prod(kind.count + 1 for kind in kinds)
        # The search follows a dozen orders before it may give up.
        if sum(kind.count for kind in kinds) < 2 or 12 * len(flow.reads) * ways > STEPS:
            return
        try:
            found = router.split_graph(graph, kinds, ideals=min(IDEALS, STEPS // ways))
        except router.RouterError:
            continue
        # Within a stage the model's own order stands: it keeps little alive.
        stages = [sorted(op - 1 for op in stage.ops if op) for stage in found.stages]
        order = [op for stage in stages for op in stage]
        if tuple(order) not in seen:
            seen.add(tuple(order))
            sizes = [len(stage) for stage in stages]
            yield order, [sum(sizes[:number]) for number in range(len(sizes))]


def _refined(
    plan: Plan,
    chain: BlockChain,
    profile: CostProfile | None,
    shares: Shares,
    branches: Branches,
    again: Again,
) -> float:
    """The period along the model's own order when the blocks at both sides of each cut may be cut anywhere."""
    own = range(chain.boundaries[-1].position)
    fine = branches.reorder(own)
    wanted = {boundary.position for boundary in chain.boundaries}
    for stage in plan.stages[1:]:
        for block in chain.blocks[stage.start - 1 : stage.start + 1]:
            wanted.update(range(block.start, block.stop))
    grouped = regroup(fine, [b.position for b in fine.boundaries if b.position in wanted])
    return again(grouped, None if profile is None else _reordered(profile, shares, own, grouped)).period_s


def _positions(chain: BlockChain, cuts: Sequence[int], blocks: int) -> list[int]:
    """Boundaries to plan with: those a planner would want, and those that the order was made for."""
    import partitioner

    coarse = chain if len(chain.blocks) <= blocks else partitioner.coarsen(chain, blocks)
    wanted = {boundary.position for boundary in coarse.boundaries} | set(cuts)
    return [boundary.position for boundary in chain.boundaries if boundary.position in wanted]


def _level(cuts: Sequence[float], boundaries: int) -> tuple[float, ...]:
    """The mean of what cuts cost, for every inner boundary of another chain."""
    if not cuts:
        return ()
    mean = math.fsum(cuts) / max(1, len(cuts) - 2)
    return (0.0, *[mean] * (boundaries - 2), 0.0)


def _reordered(profile: CostProfile, shares: Shares, order: Sequence[int], chain: BlockChain) -> CostProfile:
    """What was measured, for the blocks of a chain in another order."""

    def summed(per_op: Sequence[float]) -> list[float]:
        return [math.fsum(per_op[op] for op in order[block.start : block.stop]) for block in chain.blocks]

    def refusal(reasons: Sequence[str], block: Block) -> str:
        """Of which op of a refused block the refusal speaks is not known: any of them carries it."""
        ops = order[block.start : block.stop]
        told = (reasons[bisect_right(profile.positions, op) - 1] for op in ops)
        return next(filter(None, told), "")

    devices = {
        name: msgspec.structs.replace(
            device,
            block_seconds=tuple(summed(list(shares.seconds(device.block_seconds)))),
            block_resident=tuple(round(size) for size in summed(list(shares.memory(device.block_resident))))
            if device.block_resident
            else (),
            # What a cut costs at the other order's boundaries is not known; on average it costs what it costs here.
            cut_seconds=_level(device.cut_seconds, len(chain.boundaries)),
            codecs={},
            crossing_bytes=(),
            unsupported=tuple(refusal(device.unsupported, block) for block in chain.blocks)
            if device.unsupported
            else (),
        )
        for name, device in profile.devices.items()
    }
    positions = tuple(boundary.position for boundary in chain.boundaries)
    return msgspec.structs.replace(profile, positions=positions, devices=devices, codecs={}, client={})
