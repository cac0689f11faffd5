"""`--plot`: a drawing of a plan as SVG, as a page, or as an image."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from defer.documents.files import write_bytes
from defer.documents.plan import Plan
from defer.errors import MissingExtra, OutputExists, UsageError

MARKS: Final = {
    ".svg": (b"<svg", "an SVG"),
    ".html": (b"<!doctype html>", "a page"),
    ".png": (b"\x89PNG", "a PNG"),
}
"""What a file that we may overwrite has in its first bytes, by the end of its name."""


def check_plot(path: Path) -> None:
    """Refuses a name whose kind of drawing is not known.

    Raises:
        UsageError: Not .svg, .html or .png.
    """
    if path.suffix.lower() not in MARKS:
        raise UsageError(
            f"--plot {path.name!r} names no kind of drawing", hint="end it in .svg, .html or .png"
        )


def write_plot(plan: Plan, path: Path, *, force: bool = False) -> None:
    """Draws a plan into a file; the end of its name says how.

    Raises:
        UsageError: The name ends in none of .svg, .html and .png.
        OutputExists: The file exists and is no such drawing.
        MissingExtra: A PNG needs a package that is not installed.
    """
    check_plot(path)
    kind = path.suffix.lower()
    mark, name = MARKS[kind]
    if not force and path.is_file() and path.stat().st_size and mark not in path.read_bytes()[:1024]:
        raise OutputExists(
            f"exists and is not {name}", where=str(path), hint="choose another name, or --force"
        )
    write_bytes(path, _drawn(plan, kind))


def _drawn(plan: Plan, kind: str) -> bytes:
    from defer.draw import plan_svg

    if kind == ".svg":
        return plan_svg(plan).encode()
    if kind == ".html":
        from defer.draw_page import plan_page

        return plan_page(plan).encode()
    try:
        import resvg_py
    except ImportError as exc:
        raise MissingExtra(
            "a PNG needs the package resvg_py, which is not installed",
            hint="pip install 'defer-edge[png]', or write a .svg or .html file",
        ) from exc
    image: bytes = bytes(resvg_py.svg_to_bytes(svg_string=plan_svg(plan), zoom=2))
    return image
