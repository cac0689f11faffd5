"""A model's files to a dispatcher: only the bytes that it lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from defer.admin import Admin
from defer.api import ModelFile
from defer.transfer import TIMEOUT_S, send_missing
from node_agent.messages import Chunk, FileRef, Have, Taken, Want


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
    wanted = [file.file for file in files]
    have = admin.ask(Want(0, tuple(wanted)), Have, timeout=TIMEOUT_S)
    total = sum(file.nbytes - held for file, held in zip(wanted, have.offsets, strict=True))
    sent = 0

    def send(file: FileRef, offset: int, piece: bytes) -> int:
        return admin.send(Chunk(0, file, offset), piece)

    def settle(number: int) -> None:
        admin.answer(number, Taken, timeout=TIMEOUT_S)

    def taken(size: int) -> None:
        nonlocal sent
        sent += size
        if on_sent is not None:
            on_sent(sent, total)

    return send_missing(zip(wanted, files.values(), have.offsets, strict=True), send, settle, taken)
