"""From a model's blocks and what they cost to the router's graph of ops. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

import router

if TYPE_CHECKING:
    from defer.costs import Costs
    from partitioner import BlockChain, Flow

FLOPS_PER_BYTE: Final = 4.0
"""What moving a byte through memory costs in operations, where a block's seconds are shared out over its ops."""

Floats = npt.NDArray[np.float64]


class Shares:
    """How much of its block each op is: of its seconds, and of what it keeps loaded."""

    def __init__(self, chain: BlockChain, flow: Flow) -> None:
        """For a chain in the model's own order.

        Args:
            chain: Blocks that cover all ops.
            flow: The ops.
        """
        self._edges = [boundary.position for boundary in chain.boundaries[:-1]]
        self._sizes = [block.stop - block.start for block in chain.blocks]
        moved = [
            sum(flow.tensor_bytes[name] for name in (*reads, *makes)) + weights
            for reads, makes, weights in zip(flow.reads, flow.makes, flow.weight_bytes, strict=True)
        ]
        self._work = self._parts(np.array(flow.flops, np.float64) + FLOPS_PER_BYTE * np.array(moved))
        self._weight = self._parts(np.array(flow.weight_bytes, np.float64))

    def _parts(self, measure: Floats) -> Floats:
        total = np.repeat(np.add.reduceat(measure, self._edges), self._sizes)
        even = 1 / np.repeat(np.array(self._sizes, np.float64), self._sizes)
        return np.where(total > 0, measure / np.where(total > 0, total, 1.0), even)

    def seconds(self, per_block: Sequence[float]) -> Floats:
        """Seconds per op from seconds per block: by operations and bytes moved."""
        spread = np.repeat(np.asarray(per_block, np.float64), self._sizes)
        return np.where(np.isfinite(spread), np.where(np.isfinite(spread), spread, 0.0) * self._work, np.inf)

    def memory(self, per_block: Sequence[float]) -> Floats:
        """Bytes per op from bytes per block: by the bytes of the weights."""
        return np.repeat(np.asarray(per_block, np.float64), self._sizes) * self._weight


def op_graph(
    shares: Shares, flow: Flow, costs: Costs, link_share: float
) -> tuple[router.OpGraph, tuple[router.DeviceKind, ...]]:
    """The router's graph; its op 0 makes the model's inputs, op i + 1 is op i of the model.

    A device pays for a tensor what its fastest link takes, and what copying takes, once where it is made and once
    where it is read, whatever lies between. The period of a route takes links to be busy beside the devices, so that
    a part of the link's seconds may be the better guess.

    Args:
        shares: Of the chain that the costs are for.
        flow: The ops.
        costs: What the chain's blocks cost.
        link_share: Part of a link's seconds that counts.
    """
    problem = costs.problem
    maker = dict.fromkeys(flow.tensor_bytes, 0)
    maker.update((name, op) for op, names in enumerate(flow.makes, 1) for name in names)
    readers: dict[str, list[int]] = {}
    for op, names in enumerate(flow.reads, 1):
        for name in names:
            readers.setdefault(name, []).append(op)
    graph = router.OpGraph(
        size=[0.0, *shares.memory(problem.block_memory)],
        tensors=[
            router.Tensor(maker[name], tuple(ops), float(flow.tensor_bytes[name]))
            for name, ops in readers.items()
        ],
        together=[[op + 1 for op in group] for group in flow.together],
        before=[(other + 1, op) for op, before in enumerate(flow.after, 1) for other in before],
    )
    return graph, _kinds(shares, costs, link_share)


def _kinds(shares: Shares, costs: Costs, link_share: float) -> tuple[router.DeviceKind, ...]:
    """The devices that compute, equal ones together."""
    problem = costs.problem
    rates: dict[str, float] = {}
    for link in problem.cluster.links:
        for end in (link.source, link.target):
            rates[end] = min(rates.get(end, np.inf), link_share / link.bandwidth)
    taken = problem.stage_memory + max(problem.block_activation, default=0)
    alike: dict[tuple[tuple[float, ...], int | None, float], list[str]] = {}
    for device in problem.cluster.devices:
        if device.computes and device.name in problem.block_seconds and device.name in rates:
            row = tuple(problem.block_seconds[device.name])
            alike.setdefault((row, device.memory, rates[device.name]), []).append(device.name)
    return tuple(
        router.DeviceKind(
            name=names[0],
            count=len(names),
            seconds=[0.0, *shares.seconds(seconds)],
            memory=None if memory is None else max(0.0, memory - taken),
            transfer=rate,
        )
        for (seconds, memory, rate), names in alike.items()
    )
