"""A headless Chromium that a test or a script drives, and what its console said."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "chrome")

ARGUMENTS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
"""It talks to nobody but the page under test; without a sandbox because containers have none to give."""


START_S: Final = 120.0


@dataclass(slots=True)
class Tab:
    """A page and what went wrong in it.

    Attributes:
        page: To drive.
        errors: What its console showed as an error, and exceptions that nobody caught.
        requests: Every address that it asked for.
    """

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


def missing() -> str:
    """Why no browser can be driven here; empty where one can."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed"
    return "" if _chromium() else "no Chromium is installed"


def _chromium() -> str:
    return next((path for path in map(shutil.which, NAMES) if path), "")


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser itself, which shows one tab or many; gone when the block ends."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        running = driver.chromium.launch(
            executable_path=_chromium(), headless=True, args=list(ARGUMENTS), timeout=START_S * 1000
        )
        try:
            yield running
        finally:
            running.close()


@contextmanager
def tab(
    running: Browser,
    *,
    width: int = 1280,
    height: int = 900,
    dark: bool = False,
    touch: bool = False,
    calm: bool = False,
) -> Iterator[Tab]:
    """A tab that shares nothing with others, neither storage nor cache; closed when the block ends.

    Args:
        running: The browser.
        width: Of the page, in CSS pixels.
        height: Likewise.
        dark: Whether the user prefers dark colours.
        touch: Whether it is a phone.
        calm: Whether the user prefers less motion.
    """
    context = running.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce" if calm else "no-preference",
        has_touch=touch,
    )
    try:
        made = Tab(context.new_page())
        made.page.on("console", lambda said: made.errors.extend([said.text] if said.type == "error" else []))
        made.page.on("pageerror", lambda error: made.errors.append(str(error)))
        made.page.on("request", lambda asked: made.requests.append(asked.url))
        yield made
    finally:
        context.close()


def wait_for(tab: Tab, what: str, seconds: float = 60.0) -> None:
    """Wait until an expression of the page is true; asked from outside, because the page's policy forbids `eval`.

    Raises:
        TimeoutError: It was not, for so long.
    """
    deadline = time.monotonic() + seconds
    while not tab.page.evaluate(what):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        tab.page.wait_for_timeout(100)
