"""What drawings are made of: a page that elements are put on, colours, and bars of seconds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final
from xml.sax.saxutils import escape

from defer.draw_words import shortened

WIDTH: Final = 980
MARGIN: Final = 28
BOX_X: Final = MARGIN
BOX_WIDTH: Final = 540
BAR_X: Final = 600
BAR_WIDTH: Final = 240
"""Pixels of the longest bar; its seconds stand to the right of it."""

CHARACTER: Final = 7.4
"""Pixels that one character of 13 px text takes at most, on average; names are shortened by it."""

INK, GREY, FAINT, PAPER, SHADE = "#1b1f24", "#57606a", "#d0d7de", "#ffffff", "#f6f8fa"
STAGE_BAR, TRANSFER_BAR, ALERT = "#2f6feb", "#8a94a0", "#c2410c"
DEVICES: Final = ("#2f6feb", "#1a7f37", "#8250df", "#9a6700", "#0e7490", "#bf3989", "#475569", "#7c2d12")
"""Colours of the devices in order of appearance; all at least 4.5:1 on white."""


@dataclass(slots=True)
class Page:
    """Elements so far, and how far down they reach."""

    elements: list[str] = field(default_factory=list)
    y: float = 0.0

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: int = 13,
        colour: str = INK,
        bold: bool = False,
        anchor: str = "",
    ) -> None:
        """Adds words; `anchor` is SVG's text-anchor."""
        weight = ' font-weight="600"' if bold else ""
        place = f' text-anchor="{anchor}"' if anchor else ""
        self.elements.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}"{weight}{place}>{escape(words)}</text>'
        )

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str,
        *,
        stroke: str = "none",
        radius: int = 6,
    ) -> None:
        """Adds a rectangle."""
        self.elements.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius}" fill="{fill}" '
            f'stroke="{stroke}"/>'
        )

    def tip(self, words: str, elements: Iterable[str]) -> None:
        """Elements that show `words` under the pointer: whatever was shortened is there in full."""
        self.elements.append(f"<g><title>{escape(words)}</title>{''.join(elements)}</g>")

    def bar(self, middle: float, share: float, words: str, colour: str, height: float = 18) -> None:
        """A bar in the right column, and what it stands for; `share` of the longest."""
        width = max(BAR_WIDTH * share, 1.5)
        self.box(BAR_X, middle - height / 2, width, height, colour, radius=2)
        self.text(BAR_X + width + 10, middle + 4.5, words)


def fit(words: str, pixels: float, size: int = 13) -> str:
    """Words shortened to the room that they have."""
    return shortened(words, max(8, int(pixels / (CHARACTER * size / 13))))
