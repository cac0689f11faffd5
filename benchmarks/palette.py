"""PNG pictures of pages with a palette of 256 colours, a third as large: what a page shows has few colours.

The browser that took a picture also reads it, so that no library for images is needed.
"""

from __future__ import annotations

import base64
import struct
import zlib
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from playwright.sync_api import Browser

COLOURS: Final = 256
FREQUENT: Final = 160
"""Of these, the most frequent; the rest are the ones that are least like any other, however rare."""

READ: Final = """async (data) => {
  const image = new Image();
  image.src = `data:image/png;base64,${data}`;
  await image.decode();
  const canvas = new OffscreenCanvas(image.width, image.height);
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, image.width, image.height).data;
  const parts = [];
  for (let at = 0; at < pixels.length; at += 32768) parts.push(String.fromCharCode(...pixels.subarray(at, at + 32768)));
  return [image.width, image.height, btoa(parts.join(""))];
}"""


def smaller(png: bytes, running: Browser) -> bytes:
    """The picture with fewer colours; pixels of another one take the nearest of these.

    Args:
        png: The picture.
        running: A browser to read it with.
    """
    page = running.new_page()
    try:
        width, height, pixels = page.evaluate(READ, base64.b64encode(png).decode())
    finally:
        page.close()
    shown = np.frombuffer(base64.b64decode(pixels), np.uint8).reshape(height, width, 4)[:, :, :3]
    return encoded(*reduced(shown))


def reduced(shown: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """A palette (colours, 3) and each pixel's number in it (height, width).

    Args:
        shown: Red, green and blue of each pixel (height, width, 3).
    """
    flat = shown.reshape(-1, 3).astype(np.uint32)
    packed = flat[:, 0] << 16 | flat[:, 1] << 8 | flat[:, 2]
    found, where, counts = np.unique(packed, return_inverse=True, return_counts=True)
    colours = np.stack([found >> 16, found >> 8 & 255, found & 255], axis=1).astype(np.int32)
    chosen = list(np.argsort(-counts, kind="stable")[:FREQUENT])
    away = np.min([np.abs(colours - colours[at]).sum(axis=1) for at in chosen], axis=0)
    while len(chosen) < COLOURS and away.max() > 0:
        chosen.append(away.argmax())
        away = np.minimum(away, np.abs(colours - colours[chosen[-1]]).sum(axis=1))
    kept = colours[chosen]
    nearest = np.array([np.abs(kept - colour).sum(axis=1).argmin() for colour in colours], np.uint8)
    return kept.astype(np.uint8), nearest[where].reshape(shown.shape[:2])


def encoded(palette: npt.NDArray[np.uint8], numbers: npt.NDArray[np.uint8]) -> bytes:
    """A PNG file of a palette and each pixel's number in it.

    Source: https://www.w3.org/TR/png-3/
    """
    height, width = numbers.shape
    rows = np.concatenate(
        [np.zeros((height, 1), np.uint8), numbers], axis=1
    )  # each row after its filter: none

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            chunk(b"PLTE", palette.tobytes()),
            chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)),
            chunk(b"IEND", b""),
        )
    )
