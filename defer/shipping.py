"""Files to an agent: only the bytes that it lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path

from defer.agents import AgentPool
from defer.errors import AgentFault
from defer.transfer import TIMEOUT_S, send_missing
from node_agent import messages as m


def ship(
    pool: AgentPool,
    name: str,
    files: Mapping[m.FileRef, Path],
    *,
    on_sent: Callable[[int], None] | None = None,
    gently: bool = False,
) -> int:
    """Bring files to an agent that does not hold them yet.

    Args:
        pool: Connections to the agents.
        name: Device name of the agent.
        files: Where each file lies here.
        on_sent: Called with the bytes that the agent took since the last call.
        gently: So that requests hardly wait behind them, see `transfer`.

    Returns:
        Bytes that were sent; 0 when the agent held everything.

    Raises:
        AgentFault: The agent refused a piece (disk full, corrupt file).
        AgentUnreachable: It stopped answering.
    """
    have = pool.ask(name, m.Want(0, tuple(files)), timeout=TIMEOUT_S)
    if not isinstance(have, m.Have):
        raise AgentFault(f"agent {name!r} answered {type(have).__name__} to Want")

    def send(file: m.FileRef, offset: int, piece: bytes) -> Future[m.ControlMessage]:
        return pool.submit(name, m.Chunk(0, file, offset), frame=piece, timeout=TIMEOUT_S)

    def settle(future: Future[m.ControlMessage]) -> None:
        pool.result(future, name, TIMEOUT_S)

    missing = ((file, path, held) for (file, path), held in zip(files.items(), have.offsets, strict=True))
    return send_missing(missing, send, settle, on_sent or (lambda _size: None), gently=gently)
