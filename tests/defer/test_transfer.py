"""Files in pieces: all of them, in order, and beside requests no faster than the way takes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from defer import transfer
from defer.transfer import CHUNK_BYTES, GENTLE_BYTES, WHOLE_S, WINDOW, send_missing
from node_agent.messages import FileRef


class Way:
    """A link of a virtual clock: each piece waits for those before it, then takes its bytes' time and the delay.

    Args:
        bytes_per_s: Of the link.
        delay_s: There and back.
    """

    def __init__(self, bytes_per_s: float, delay_s: float) -> None:
        self.now = self.free = 0.0
        self.rate, self.delay = bytes_per_s, delay_s
        self.taken: list[tuple[int, bytes]] = []
        self.queued: list[float] = []

    def send(self, _: FileRef, offset: int, piece: bytes) -> float:
        self.taken.append((offset, piece))
        self.queued.append(max(0.0, self.free - self.now))
        self.free = max(self.free, self.now) + len(piece) / self.rate
        return self.free + self.delay

    def settle(self, back: float) -> None:
        self.now = max(self.now, back)


@pytest.fixture
def file(tmp_path: Path) -> tuple[FileRef, Path]:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 40_000)
    return FileRef("a" * 64, path.stat().st_size, ".bin"), path


@pytest.mark.parametrize("gently", [False, True])
@pytest.mark.parametrize("held", [0, 1, 5_000_000])
def test_what_is_missing_arrives_whole_and_in_order(
    file: tuple[FileRef, Path], held: int, gently: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref, path = file
    way, told = Way(1e8, 1e-3), []
    monkeypatch.setattr(transfer.time, "monotonic", lambda: way.now)
    sent = send_missing([(ref, path, held)], way.send, way.settle, told.append, gently=gently)
    assert b"".join(piece for _, piece in way.taken) == path.read_bytes()[held:]
    assert [offset for offset, _ in way.taken] == sorted(offset for offset, _ in way.taken)
    assert sent == sum(told) == ref.nbytes - held


@pytest.mark.parametrize(
    ("rate", "delay"), [(2.5e6, 1e-3), (12.5e6, 1e-3), (12.5e6, 0.05), (1.25e8, 0.05), (1.25e8, 1e-3)]
)
def test_beside_requests_nothing_queues_for_long_and_the_way_is_used(
    file: tuple[FileRef, Path], rate: float, delay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref, path = file
    way = Way(rate, delay)
    monkeypatch.setattr(transfer.time, "monotonic", lambda: way.now)
    send_missing([(ref, path, 0)], way.send, way.settle, lambda _: None, gently=True)
    piece = (CHUNK_BYTES if GENTLE_BYTES / rate + delay <= WHOLE_S else GENTLE_BYTES) / rate
    assert max(way.queued) <= transfer.QUEUE_S + 2 * piece
    # As fast as the link, or as so many pieces under way can be.
    fastest = max(ref.nbytes / rate, ref.nbytes / (WINDOW * GENTLE_BYTES) * (delay + piece))
    assert way.now <= 2 * fastest + WINDOW * (delay + piece)
