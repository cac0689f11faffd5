"""Files to a peer that takes them by content: several pieces under way at once, resumed where it stopped."""

from __future__ import annotations

import math
import time
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
"""A piece of a file that is sent beside requests over a link that is too slow for a whole one."""

QUEUE_S: Final = 0.01
"""Pieces that are sent beside requests may wait about so long behind each other, and requests behind them."""

WHOLE_S: Final = 0.02
"""Where a small piece takes no longer than this, whole ones are sent: each costs both ends processor time."""

TIMEOUT_S: Final = 120.0
"""A window on a link of 1 Mbit/s takes 34 s, verifying a large file as long again; beyond this the link is down."""

Ticket = TypeVar("Ticket")


class Gentle:
    """How large pieces are, and how many may be under way beside requests: what the way takes, and hardly more.

    Told by how long each took, as in TCP Vegas (Brakmo and others, SIGCOMM 1994): the shortest time is that of the way
    alone, and what is longer was spent in queues.
    """

    def __init__(self) -> None:
        self.window = 1
        self._least = math.inf
        self._fast = 0

    @property
    def piece_bytes(self) -> int:
        """Of the next piece."""
        return CHUNK_BYTES if self._least <= WHOLE_S else GENTLE_BYTES

    def took(self, seconds: float) -> None:
        """A piece was under way for so long."""
        self._least = min(self._least, seconds)
        if seconds > self._least + QUEUE_S:
            self.window, self._fast = max(self.window - 1, 1), 0
            return
        self._fast += 1
        if self._fast > self.window:  # all that were under way with the window as it is
            self.window, self._fast = min(self.window + 1, WINDOW), 0


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
        gently: Small pieces, and no more than the way takes, so that what else is sent there hardly waits.

    Returns:
        Bytes that were sent.
    """
    gentle = Gentle() if gently else None
    total = 0
    under_way: deque[tuple[Ticket, int, float]] = deque()

    def settle_oldest() -> None:
        ticket, size, since = under_way.popleft()
        settle(ticket)
        if gentle is not None:
            gentle.took(time.monotonic() - since)
        on_sent(size)

    for file, path, held in files:
        if held >= file.nbytes:
            continue
        with path.open("rb") as source:
            offset = source.seek(held)
            while piece := source.read(CHUNK_BYTES if gentle is None else gentle.piece_bytes):
                under_way.append((send(file, offset, piece), len(piece), time.monotonic()))
                offset += len(piece)
                total += len(piece)
                while len(under_way) >= (WINDOW if gentle is None else gentle.window):
                    settle_oldest()
    while under_way:
        settle_oldest()
    return total
