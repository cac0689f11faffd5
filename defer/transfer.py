"""Files to a peer that takes them by content: several pieces under way at once, resumed where it stopped."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, TypeVar

from node_agent.messages import FileRef

CHUNK_BYTES: Final = 256 * 1024
"""Small enough that a question to the peer does not wait long behind it on a slow link."""

WINDOW: Final = 16
"""Pieces under way at once: 4 MiB covers 100 ms of round trip at 40 MB/s."""

GENTLE_BYTES: Final = 64 * 1024
"""A piece of a file that is sent beside requests, one at a time: all that they may find before them on the link."""

TIMEOUT_S: Final = 120.0
"""A window on a link of 1 Mbit/s takes 34 s, verifying a large file as long again; beyond this the link is down."""

Ticket = TypeVar("Ticket")


def send_missing(
    files: Iterable[tuple[FileRef, Path, int]],
    send: Callable[[FileRef, int, bytes], Ticket],
    settle: Callable[[Ticket], None],
    on_sent: Callable[[int], None],
    *,
    gently: bool = False,
) -> int:
    """Send what a peer lacks of some files.

    The window goes on across files, so that many small ones cost no round trip each.

    Args:
        files: Each file, where it lies here, and how many bytes of it the peer holds.
        send: Puts a piece of a file at an offset on its way.
        settle: Waits until the peer has taken a piece; raises what the peer refused it for.
        on_sent: Told the size of each piece that was taken.
        gently: One small piece at a time, so that what else is sent there hardly waits.

    Returns:
        Bytes that were sent.
    """
    window, piece_bytes = (1, GENTLE_BYTES) if gently else (WINDOW, CHUNK_BYTES)
    total = 0
    under_way: deque[tuple[Ticket, int]] = deque()

    def settle_oldest() -> None:
        ticket, size = under_way.popleft()
        settle(ticket)
        on_sent(size)

    for file, path, held in files:
        if held >= file.nbytes:
            continue
        with path.open("rb") as source:
            offset = source.seek(held)
            while piece := source.read(piece_bytes):
                under_way.append((send(file, offset, piece), len(piece)))
                offset += len(piece)
                total += len(piece)
                if len(under_way) >= window:
                    settle_oldest()
    while under_way:
        settle_oldest()
    return total
