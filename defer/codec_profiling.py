"""From what codecs made of single tensors to what they cost on a chain's boundaries."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from defer.documents.profile import CodecProfile
from defer.parts import bound, bound_inputs
from node_agent import messages as m
from node_agent.codecs import EVERYWHERE
from node_agent.dtypes import STORAGE
from node_agent.measure import tensor_stats
from node_agent.samples import sample

if TYPE_CHECKING:
    from defer.documents.blocks import BlocksDocument
    from partitioner import BlockChain

NOT_TRIED_S: Final = 1e6
"""Seconds that keep a plan from a codec that was not tried on a tensor: days."""


def codec_costs(
    chain: BlockChain | BlocksDocument, produced: Mapping[str, m.TensorStats]
) -> tuple[dict[str, CodecProfile], dict[str, tuple[float, ...]]]:
    """Per codec and boundary: seconds to encode and decode all its tensors, and how much smaller they get.

    What a codec does not make smaller goes raw, after the attempt. A codec that a slow device had no time to try on one
    of the tensors is not on offer there.
    """
    names = {codec for stats in produced.values() for codec in stats.codecs} - {"raw"}
    codecs: dict[str, CodecProfile] = {}
    ratios: dict[str, tuple[float, ...]] = {}
    for codec in sorted(names):
        encode: list[float] = []
        decode: list[float] = []
        ratio: list[float] = []
        for boundary in chain.boundaries:
            known = [produced[name] for name in boundary.tensors if name in produced]
            rows = [stats.codecs.get(codec, (stats.nbytes, NOT_TRIED_S, 0.0)) for stats in known]
            large = sum(stats.nbytes for stats in known)
            small = sum(min(row[0], stats.nbytes) for row, stats in zip(rows, known, strict=True))
            other = sum(chain.tensor_bytes[name] for name in boundary.tensors if name not in produced)
            encode.append(sum(row[1] for row in rows))
            decode.append(sum(row[2] for row in rows))
            ratio.append((large + other) / (small + other) if small + other > 0 else 1.0)
        codecs[codec] = CodecProfile(encode_s=tuple(encode), decode_s=tuple(decode))
        ratios[codec] = tuple(ratio)
    return codecs, ratios


def crossing_bytes(
    chain: BlockChain | BlocksDocument, produced: Mapping[str, m.TensorStats]
) -> tuple[int, ...]:
    """Bytes at each boundary as a device's partitions make them: narrow ones exchange narrow tensors."""
    return tuple(
        sum(
            produced[name].nbytes if name in produced else chain.tensor_bytes[name]
            for name in boundary.tensors
        )
        for boundary in chain.boundaries
    )


def client_costs(chain: BlockChain) -> dict[str, CodecProfile]:
    """What encoding requests and decoding results costs on this machine, with the codecs that every client has.

    Clients run where they like; that they compute as fast as this machine is the best guess there is. Processor time
    counts: a planner that leaves the processor to requests waits for it in between.
    """
    ends = {spec.name: spec for spec in (*bound_inputs(chain), *bound(chain, chain.outputs))}
    stats = {
        name: tensor_stats(name, sample(spec), spec.dtype, clock=time.thread_time)
        for name, spec in ends.items()
        if spec.dtype in STORAGE
    }
    codecs, _ = codec_costs(chain, stats)
    return {name: cost for name, cost in codecs.items() if name in EVERYWHERE}


def worst_ratios(measured: Iterable[Mapping[str, tuple[float, ...]]]) -> dict[str, tuple[float, ...]]:
    """The least ratio over the devices: they measured the same tensors up to rounding."""
    worst: dict[str, tuple[float, ...]] = {}
    for costs in measured:
        for codec, ratios in costs.items():
            worst[codec] = tuple(map(min, worst[codec], ratios)) if codec in worst else ratios
    return worst
