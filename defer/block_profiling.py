"""What the blocks of a model cost on one device: each as a partition of its own, then in spans."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from statistics import median

import msgspec

from defer.agents import AgentPool
from defer.asking import ask_again
from defer.codec_profiling import codec_costs, crossing_bytes
from defer.documents.blocks import BlocksDocument
from defer.documents.cluster import Device
from defer.documents.profile import CodecProfile
from defer.errors import AgentFault
from defer.parts import WrittenPart
from defer.shipping import ship
from defer.span_costs import Adding, Span, adding_up, slowed
from node_agent import messages as m

BLOCK_COSTS = 10
"""Version of what is remembered of a device; older ones are measured again."""

MEASURE_TIMEOUT_S = 300.0
"""One block: shipping is done before; this is load, warm-up and the timed runs."""

REPEATS, BUDGET_S = 10, 1.0
"""Timed runs of a partition, and seconds after which it is not run again."""

FULL = 0.7
"""Part of a device's memory that the weights of a span may take: running it takes more."""

STAGE_OVERHEAD_S = 0.3e-3
"""What an item costs an agent beside its run, where the agent does not measure it."""

Step = Callable[[str, str, float], None]
"""Called with (device, what is being done, fraction 0–1), from several threads."""


class BlockCosts(msgspec.Struct, frozen=True):
    """What was measured of a chain's blocks on one kind of device; the cached document."""

    version: int
    engine: str
    block_seconds: tuple[float, ...]
    block_resident: tuple[int, ...]
    codecs: dict[str, CodecProfile]
    ratios: dict[str, tuple[float, ...]]
    item_s: float
    byte_s: float
    unsupported: tuple[str, ...] = ()
    cut_seconds: tuple[float, ...] = ()
    apart: bool = False
    crossing: tuple[int, ...] = ()

    def beside(self, together: Sequence[Span]) -> BlockCosts:
        """What everything costs while other devices of the machine work, by spans measured that way.

        Codecs, and what moves an item, were measured alone only: they take as much longer as the spans do on the whole.
        """
        alone = Adding(self.block_seconds, self.cut_seconds or (0.0,) * (len(self.block_seconds) + 1))
        beside = slowed(alone, together)
        before = sum(alone.seconds(span.start, span.stop) for span in together)
        longer = (
            sum(beside.seconds(span.start, span.stop) for span in together) / before if before > 0 else 1.0
        )
        return msgspec.structs.replace(
            self,
            block_seconds=beside.blocks,
            codecs={
                name: CodecProfile(
                    encode_s=tuple(seconds * longer for seconds in codec.encode_s),
                    decode_s=tuple(seconds * longer for seconds in codec.decode_s),
                )
                for name, codec in self.codecs.items()
            },
            item_s=self.item_s * longer,
            byte_s=self.byte_s * longer,
        )


def measure_blocks(
    pool: AgentPool,
    device: Device,
    chain: BlocksDocument,
    parts: Sequence[WrittenPart],
    spans: Sequence[tuple[int, int, WrittenPart]],
    on_step: Step | None,
) -> BlockCosts:
    """Measure every block, and then the spans.

    Args:
        pool: Connections to the agents.
        device: Which one.
        chain: The blocks.
        parts: A partition per block.
        spans: First block, block after the last, and partition of each span; coarse ones first.
        on_step: Told of progress.

    Raises:
        AgentFault: The agent could not load or run a block.
        AgentUnreachable: It stopped answering.
    """
    name = device.name
    engines: dict[str, None] = {}
    seconds: list[float] = []
    resident: list[int] = []
    refused: list[str] = []
    apart: list[bool] = []
    produced: dict[str, m.TensorStats] = {}
    item_s, byte_s = STAGE_OVERHEAD_S, 0.0
    # A session of its own for each run: what an aborted one kept may be of other shapes.
    session = secrets.token_hex(8)
    try:
        for index, written in enumerate(parts):
            if on_step is not None:
                on_step(name, f"measuring block {index + 1} of {len(parts)}", index / len(parts))
            answer = time_partition(pool, device, chain, written, index + 1, session)
            # The median: one run that the machine interrupted says nothing about the block.
            seconds.append(median(answer.seconds))
            resident.append(answer.resident_bytes)
            refused.append(answer.unsupported)
            if answer.unsupported:
                apart.append(answer.apart)
            engines[answer.engine or _engine_name(pool, name, device.engine)] = None
            if answer.item_s > 0:
                item_s, byte_s = answer.item_s, answer.byte_s
            produced.update({stats.name: stats for stats in answer.outputs})
        known: list[Span] = []
        for number, (start, stop, written) in enumerate(spans):
            # An engine that cannot run one of the blocks leaves the whole span to another.
            if any(refused[start:stop]) or not fits(pool, name, written):
                continue
            if on_step is not None:
                on_step(name, f"measuring span {number + 1} of {len(spans)}", number / len(spans))
            try:
                answer = time_partition(pool, device, chain, written, stop, f"{session} spans", codecs=False)
            except AgentFault:  # too large for what is free there, perhaps
                continue
            known.append(Span(start, stop, median(answer.seconds)))
    finally:
        pool.tell(name, m.Done(0))  # drop what the session kept
    codecs, ratios = codec_costs(chain, produced)
    adding = adding_up(seconds, [boundary.nbytes for boundary in chain.boundaries], known)
    return BlockCosts(
        BLOCK_COSTS,
        ", ".join(engines),
        adding.blocks,
        tuple(resident),
        codecs,
        ratios,
        item_s,
        byte_s,
        compiled_refusals(tuple(engines), refused),
        adding.cuts if any(adding.cuts) else (),
        bool(apart) and all(apart),
        crossing_bytes(chain, produced),
    )


def time_partition(
    pool: AgentPool,
    device: Device,
    chain: BlocksDocument,
    written: WrittenPart,
    stop: int,
    session: str,
    *,
    codecs: bool = True,
    repeats: int = REPEATS,
    budget_s: float = BUDGET_S,
) -> m.Measured:
    """Time a partition that ends before block `stop` on a device.

    Raises:
        AgentFault: The agent could not load or run it.
        AgentUnreachable: It stopped answering.
    """
    ship(pool, device.name, written.files)
    request = m.Measure(
        0,
        session,
        written.part.graph,
        written.part.weights,
        written.part.warm_up,
        tuple(chain.boundaries[stop].tensors) if stop < len(chain.blocks) else (),
        engine=device.engine,
        options=device.engine_options,
        repeats=repeats,
        budget_s=budget_s,
        codecs=codecs,
    )
    answer = ask_again(pool, device.name, request, timeout=MEASURE_TIMEOUT_S)
    if not isinstance(answer, m.Measured):
        raise AgentFault(f"agent {device.name!r} answered {type(answer).__name__} to Measure")
    return answer


def fits(pool: AgentPool, name: str, written: WrittenPart) -> bool:
    """Whether a device can be expected to hold a partition beside nothing else."""
    offer = offer_of(pool, name)
    memory = offer.memory_bytes if offer is not None else 0
    return not memory or sum(ref.nbytes for ref in written.files) <= FULL * memory


def compiled_refusals(engines: Sequence[str], refused: Sequence[str]) -> tuple[str, ...]:
    """What a compiling engine refuses, block by block; nothing where that makes no difference.

    Args:
        engines: Those that ran the blocks.
        refused: Why TensorRT cannot run each block, empty where it can.

    Returns:
        `refused`, if TensorRT runs other blocks: only then does a refused one take anything from its neighbours.
    """
    compiles = any("tensorrt" in engine.split("+") for engine in engines)
    return tuple(refused) if compiles and any(refused) else ()


def _engine_name(pool: AgentPool, name: str, engine: str) -> str:
    """The engine that a device's agent takes for `engine`: its default for `auto`."""
    offer = offer_of(pool, name)
    present = [known.name for known in offer.engines if not known.missing] if offer is not None else []
    return present[0] if engine == m.AUTO_ENGINE and present else engine


def offer_of(pool: AgentPool, name: str) -> m.Offer | None:
    """What a connected agent offers; None for one that is lost, whose offer means nothing now."""
    known = pool.liveness(name)
    return known.offer if known is not None and known.state == "alive" else None
