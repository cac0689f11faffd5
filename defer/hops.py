"""From a plan to what each agent is told: the hops of a route, numbered from 0, and who dials whom between them.

Pure: names, endpoints and files in, `HopSpec`s out. Every device on a transfer's path becomes a hop: those in the middle
relay, the last one runs the next stage. The hop after the last is the dispatcher.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import msgspec

from defer.documents.plan import Plan
from defer.errors import NoRoute
from node_agent.layouts import channel_blocks_of, fits
from node_agent.messages import FileRef, HopSpec, PeerRef, TensorSpec

DISPATCHER = "@dispatcher"
"""The dispatcher's name on data connections; no device may be called so."""


@dataclass(frozen=True, slots=True)
class Place:
    """How a process is reached on the data plane.

    Attributes:
        name: Its device name.
        data: `tcp://host:port` where peers that dial hand items over.
        fetch: `tcp://host:port` where peers that dial fetch items.
        dials: It cannot be dialled (NAT), so it dials both its neighbours.
    """

    name: str
    data: str
    fetch: str
    dials: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """One stage's partition as files and tensors; `warm_up` has every dimension bound.

    `convolved` has those of its inputs that reach convolutions in it, and of its outputs that come from one, through
    nothing but what leaves a layout as it is.
    """

    graph: FileRef
    weights: tuple[FileRef, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    warm_up: tuple[TensorSpec, ...]
    convolved: tuple[str, ...] = ()


Signature = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], tuple[TensorSpec, ...]]
"""A model's inputs, its outputs, and its inputs with every dimension bound."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Every agent's hops, and the dispatcher's two neighbours.

    Attributes:
        hops: Per device, its hops in order.
        count: Number of hops; results come back as hop `count`.
        first: Peer that hop 0 runs on, as the dispatcher sees it.
        last: Peer that results come from, as the dispatcher sees it.
    """

    hops: Mapping[str, tuple[HopSpec, ...]]
    count: int
    first: PeerRef
    last: PeerRef


def lay_out(
    plan: Plan, parts: Sequence[Part], places: Mapping[str, Place], dispatcher: Place, channel_block: int = 0
) -> Layout:
    """Number the hops of a plan and decide who dials whom.

    Args:
        plan: The plan; its transfers' paths start and end at the dispatcher's device.
        parts: One per stage.
        places: Every device on the route, by name.
        dispatcher: Where the dispatcher is reached; its name is `DISPATCHER`.
        channel_block: Channels per block in which every device's engine computes convolutions; 0 leaves tensors as
            `parts` say.

    Raises:
        NoRoute: Two neighbours both can only dial.
    """
    sequence: list[
        tuple[Place, int | None, int]
    ] = []  # place, stage that runs there (None relays), incoming transfer
    for number, transfer in enumerate(plan.transfers):
        relays = transfer.path[1:-1]
        sequence += [(places[device], None, number) for device in relays]
        if number < len(plan.stages):
            sequence.append((places[plan.stages[number].device], number, number))
    chain = [dispatcher, *(place for place, _, _ in sequence), dispatcher]
    for left, right in pairwise(chain):
        if left.dials and right.dials:
            raise NoRoute(
                f"{left.name!r} and {right.name!r} cannot exchange data: both can only dial",
                hint="put a device that can be dialled between them, or remove `dials` from one",
            )
    parts = in_channel_blocks(plan, parts, channel_block) if channel_block else parts
    hops: dict[str, list[HopSpec]] = {}
    for index, (place, stage, _) in enumerate(sequence):
        previous, following = chain[index], chain[index + 2]
        common = HopSpec(hop=index, previous=_upstream(place, previous), next=_downstream(following))
        hops.setdefault(place.name, []).append(
            common if stage is None else _compute(common, plan, stage, parts[stage])
        )
    return Layout(
        hops={device: tuple(specs) for device, specs in hops.items()},
        count=len(sequence),
        first=_downstream(chain[1]),
        last=_upstream(dispatcher, chain[-2]),
    )


def in_channel_blocks(plan: Plan, parts: Sequence[Part], channel_block: int) -> tuple[Part, ...]:
    """The same partitions, their tensors between convolutions handed over in blocks of channels.

    Those are tensors that every partition which makes or reads them does so by convolutions, that no transfer encodes
    (codecs know plain tensors), and that the dispatcher neither gives nor gets.
    """
    coded = {name for transfer in plan.transfers if transfer.codec != "raw" for name in transfer.tensors}
    left = coded.union(plan.transfers[-1].tensors)
    made = {spec.name for part in parts for spec in part.outputs if fits(spec, channel_block)}
    for part in parts:
        left.update({spec.name for spec in (*part.inputs, *part.outputs)}.difference(part.convolved))
    return handed_over(parts, dict.fromkeys(made - left, channel_block))


def handed_over(parts: Sequence[Part], in_blocks: Mapping[str, int]) -> tuple[Part, ...]:
    """The same partitions, these tensors in blocks of so many channels and all others plain."""

    def marked(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        return tuple(
            msgspec.structs.replace(spec, channel_block=in_blocks.get(spec.name, 0)) for spec in specs
        )

    return tuple(replace(part, inputs=marked(part.inputs), outputs=marked(part.outputs)) for part in parts)


def channel_blocks(parts: Sequence[Part]) -> dict[str, int]:
    """Which tensors are handed over in blocks, and of how many channels."""
    return channel_blocks_of(spec for part in parts for spec in (*part.inputs, *part.outputs))


def parts_of(hops: Mapping[str, Sequence[HopSpec]]) -> tuple[Part, ...]:
    """The stages' partitions, in order, from what agents were told of a route."""
    computing = sorted(
        (spec for specs in hops.values() for spec in specs if spec.graph is not None),
        key=lambda spec: spec.hop,
    )
    return tuple(
        Part(spec.graph, spec.weights, spec.inputs, spec.outputs, spec.warm_up)
        for spec in computing
        if spec.graph is not None
    )


def _compute(common: HopSpec, plan: Plan, stage: int, part: Part) -> HopSpec:
    leaving = plan.transfers[stage + 1]
    return HopSpec(
        hop=common.hop,
        previous=common.previous,
        next=common.next,
        graph=part.graph,
        weights=part.weights,
        inputs=part.inputs,
        outputs=part.outputs,
        send=tuple(leaving.tensors),
        codec=leaving.codec,
        warm_up=part.warm_up,
        credit=_credit(plan, stage),
        batch=plan.batching.sizes if plan.batching is not None else (),
        # Where the first stage made batches, the others find them.
        batch_delay_s=plan.batching.delay_s if plan.batching is not None and stage == 0 else 0.0,
    )


MOST_CREDIT = 32
SMALL_BYTES = 4 << 20
"""Items under way to a stage are few where they are large: more of this many bytes wait in memory for nothing."""


def _credit(plan: Plan, stage: int) -> int:
    """Items under way to a stage: enough that it never waits while an item comes and its credit goes back."""
    arriving = plan.transfers[stage]
    seconds = plan.stages[stage].seconds
    round_trips = math.ceil(2 * arriving.seconds / seconds) if seconds > 0 else MOST_CREDIT
    small = SMALL_BYTES // max(1, arriving.nbytes)
    # One is run, one waits, one arrives.
    enough = min(MOST_CREDIT, max(3 + round_trips, small))
    # A batch runs while the next one gathers.
    return max(enough, 2 * plan.batching.sizes[-1]) if plan.batching is not None else enough


def _downstream(receiver: Place) -> PeerRef:
    """How a sender reaches the one it hands items to: it dials its data port, unless that one must dial."""
    return PeerRef(receiver.name, "" if receiver.dials else receiver.data)


def _upstream(receiver: Place, sender: Place) -> PeerRef:
    """How `receiver` reaches the one that hands items to it: only when it must dial, at the fetch port."""
    return PeerRef(sender.name, sender.fetch if receiver.dials else "")
