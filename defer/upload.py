"""A model's files to a dispatcher: only the bytes that it lacks, several pieces under way at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from defer.admin import Admin
from defer.api import ModelFile
from node_agent.messages import Chunk, Have, Taken, Want

CHUNK_BYTES = 256 * 1024
WINDOW = 16
TIMEOUT_S = 120.0
"""A window takes 34 s on a link of 1 Mbit/s; verifying a large file takes as long again."""


def upload(
    admin: Admin, files: Mapping[ModelFile, Path], on_sent: Callable[[int, int], None] | None = None
) -> int:
    """Bring a model's files to the dispatcher.

    Args:
        admin: An open connection.
        files: Where each file lies here.
        on_sent: Told bytes that were taken so far and bytes to send in all.

    Returns:
        Bytes that were sent; 0 when the dispatcher held everything.

    Raises:
        DeferError: A file was refused (disk full, changed while it was read), or the dispatcher stopped answering.
    """
    wanted = list(files)
    have = admin.ask(Want(0, tuple(file.file for file in wanted)), Have, timeout=TIMEOUT_S)
    total = sum(file.file.nbytes - held for file, held in zip(wanted, have.offsets, strict=True))
    sent = 0
    under_way: deque[tuple[int, int]] = deque()

    def settle() -> None:
        nonlocal sent
        number, size = under_way.popleft()
        admin.answer(number, Taken, timeout=TIMEOUT_S)
        sent += size
        if on_sent is not None:
            on_sent(sent, total)

    for file, held in zip(wanted, have.offsets, strict=True):
        with files[file].open("rb") as source:
            offset = source.seek(held)
            while piece := source.read(CHUNK_BYTES):
                under_way.append((admin.send(Chunk(0, file.file, offset), piece), len(piece)))
                offset += len(piece)
                if len(under_way) >= WINDOW:
                    settle()
        while under_way:  # the piece that completes a file is the one that can find it corrupt
            settle()
    return sent
