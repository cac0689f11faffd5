"""`--plot`: a drawing of a plan as SVG, as a page, or as an image."""

from __future__ import annotations

from collections.abc import Callable
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

    def page() -> str:
        from defer.draw_page import plan_page

        return plan_page(plan)

    def drawing() -> str:
        from defer.draw import plan_svg

        return plan_svg(plan)

    write_drawing(path, drawing, page, force=force)


def write_drawing(
    path: Path, drawing: Callable[[], str], page: Callable[[], str], *, force: bool = False
) -> None:
    """Writes a drawing into a file as an SVG, as a page or as an image; errors as in `write_plot`.

    Args:
        path: The file.
        drawing: Makes the SVG.
        page: Makes the page.
        force: Replace a file that is no such drawing.
    """
    check_plot(path)
    kind = path.suffix.lower()
    mark, name = MARKS[kind]
    if not force and path.is_file() and path.stat().st_size and mark not in path.read_bytes()[:1024]:
        raise OutputExists(
            f"exists and is not {name}", where=str(path), hint="choose another name, or --force"
        )
    if kind == ".png":
        write_bytes(path, _image(drawing()))
    else:
        write_bytes(path, (drawing() if kind == ".svg" else page()).encode())


def _image(svg: str) -> bytes:
    try:
        import resvg_py
    except ImportError as exc:
        raise MissingExtra(
            "a PNG needs the package resvg_py, which is not installed",
            hint="pip install 'defer-edge[png]', or write a .svg or .html file",
        ) from exc
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, zoom=2))
