"""What blocks cost while the other devices of the same machine work too.

Agents that share a machine (several in a server, or an emulated cluster) share its caches and its memory bandwidth, so a
stage beside others takes longer than alone. Such devices measure spans at the same time, each another one, as they
would in a pipeline; nothing is measured twice on a device that has its machine to itself.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from statistics import median

from defer.agents import AgentPool
from defer.block_profiling import Step, fits, time_partition
from defer.deployer import in_parallel
from defer.documents.blocks import BlocksDocument
from defer.documents.cluster import Device
from defer.errors import AgentFault
from defer.parts import WrittenPart
from defer.shipping import ship
from defer.span_costs import Span
from node_agent import messages as m

BUDGET_S = 2.0
"""Seconds of runs: long enough that the others run meanwhile, whenever they were ready."""

REPEATS = 1000
"""The budget ends the runs."""


def measure_together(
    pool: AgentPool,
    devices: Sequence[Device],
    chain: BlocksDocument,
    spans: Sequence[tuple[int, int, WrittenPart]],
    on_step: Step | None,
) -> tuple[Span, ...]:
    """Measure spans on devices of one machine at the same time.

    Args:
        pool: Connections to the agents.
        devices: At least two, all alike.
        chain: The blocks.
        spans: First block, block after the last, and partition of each, none over another; at most as many as
            there are devices. Where there are fewer some devices measure the same.
        on_step: Told of progress.

    Returns:
        What they took; without spans that some device could not run.

    Raises:
        AgentUnreachable: An agent stopped answering.
    """
    by_name = {device.name: device for device in devices}
    names = list(by_name)
    given = {name: spans[number % len(spans)] for number, name in enumerate(names)}

    def bring(name: str) -> bool:
        written = given[name][2]
        if not fits(pool, name, written):
            return False
        if on_step is not None:
            on_step(name, "measuring beside the others", 0.0)
        ship(pool, name, written.files)
        return True

    def run(name: str) -> float | None:
        _, stop, written = given[name]
        session = secrets.token_hex(8)
        try:
            answer = time_partition(
                pool,
                by_name[name],
                chain,
                written,
                stop,
                session,
                codecs=False,
                repeats=REPEATS,
                budget_s=BUDGET_S,
            )
        except AgentFault:  # too large for what is free there, perhaps
            return None
        finally:
            pool.tell(name, m.Done(0))  # drop what the session kept
        return median(answer.seconds)

    able = [name for name, brought in in_parallel(bring, names).items() if brought]
    found: dict[tuple[int, int], list[float]] = {}
    for name, seconds in in_parallel(run, able).items():
        if seconds is not None:
            found.setdefault(given[name][:2], []).append(seconds)
    return tuple(Span(start, stop, median(seconds)) for (start, stop), seconds in sorted(found.items()))
