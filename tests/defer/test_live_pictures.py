"""The pictures of the live page: small enough to be kept, shown by the documents, and of the colours that were shot."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import numpy as np

from benchmarks.palette import COLOURS, encoded, reduced
from benchmarks.screenshots import LARGEST

ROOT = Path(__file__).resolve().parents[2]


def decoded(png: bytes) -> np.ndarray:
    """Red, green and blue of each pixel of a PNG with a palette and no filters."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, at = {}, 8
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        kind, content = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", png, at + 8 + length)[0] == zlib.crc32(kind + content)
        chunks[kind] = content
        at += 12 + length
    width, height, depth, colour = struct.unpack_from(">IIBB", chunks[b"IHDR"])
    assert (depth, colour) == (8, 3)
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not rows[:, 0].any()
    return np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3)[rows[:, 1:]]


def test_a_picture_of_few_colours_is_kept_exactly() -> None:
    shown = np.random.default_rng(0).integers(0, 6, (20, 31, 3), np.uint8) * 51
    assert np.array_equal(decoded(encoded(*reduced(shown))), shown)


def test_a_rare_colour_is_not_lost_among_many_shades() -> None:
    shown = np.random.default_rng(0).integers(0, 12, (200, 200, 3), np.uint8)
    shown[7, 7] = (255, 60, 0)
    palette, numbers = reduced(shown)
    assert len(palette) == COLOURS
    assert tuple(palette[numbers[7, 7]]) == (255, 60, 0)
    assert np.abs(decoded(encoded(palette, numbers)).astype(int) - shown).max() <= 6


def test_the_pictures_are_small_and_each_is_shown_somewhere() -> None:
    kept = sorted((ROOT / "docs" / "images").glob("live-*.png"))
    assert len(kept) >= 5
    text = "".join(path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
    for path in kept:
        assert path.stat().st_size <= LARGEST
        assert re.search(rf"!\[[^\]]+\]\([^)]*images/{path.name}\)", text), f"{path.name} is shown nowhere"
