"""Files to an agent: only the bytes that it lacks, several pieces under way at once, resumed where it stopped."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path

from defer.agents import AgentPool
from defer.errors import AgentFault
from node_agent import messages as m

CHUNK_BYTES = 256 * 1024
"""Small enough that a question to the agent does not wait long behind it on a slow link."""

WINDOW = 16
"""Pieces under way at once: 4 MiB covers 100 ms of round trip at 40 MB/s."""

CHUNK_TIMEOUT_S = 120.0
"""A window on a link of 1 Mbit/s takes 34 s; beyond this the link is as good as down."""

Sent = Callable[[int], None]


def ship(pool: AgentPool, name: str, files: Mapping[m.FileRef, Path], *, on_sent: Sent | None = None) -> int:
    """Bring files to an agent that does not hold them yet.

    Args:
        pool: Connections to the agents.
        name: Device name of the agent.
        files: Where each file lies here.
        on_sent: Called with the bytes that the agent acknowledged since the last call.

    Returns:
        Bytes that were sent; 0 when the agent held everything.

    Raises:
        AgentFault: The agent refused a piece (disk full, corrupt file).
        AgentUnreachable: It stopped answering.
    """
    references = tuple(files)
    have = pool.ask(name, m.Want(0, references), timeout=CHUNK_TIMEOUT_S)
    if not isinstance(have, m.Have):
        raise AgentFault(f"agent {name!r} answered {type(have).__name__} to Want")
    total = 0
    under_way: deque[tuple[Future[m.ControlMessage], int]] = deque()

    def settle_oldest() -> None:
        future, size = under_way.popleft()
        pool.result(future, name, CHUNK_TIMEOUT_S)
        if on_sent is not None:
            on_sent(size)

    for reference, held in zip(references, have.offsets, strict=True):
        if held >= reference.nbytes:
            continue
        with files[reference].open("rb") as source:
            source.seek(held)
            offset = held
            while piece := source.read(CHUNK_BYTES):
                chunk = m.Chunk(0, reference, offset)
                under_way.append((pool.submit(name, chunk, frame=piece, timeout=CHUNK_TIMEOUT_S), len(piece)))
                offset += len(piece)
                total += len(piece)
                if len(under_way) >= WINDOW:
                    settle_oldest()
        # The piece that completes a file is the one that can find it corrupt: know it before the next file.
    while under_way:
        settle_oldest()
    return total
