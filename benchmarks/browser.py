"""A headless Chromium that a test or a script drives, and what its console said."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

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
def browser(
    *,
    width: int = 1280,
    height: int = 900,
    dark: bool = False,
    touch: bool = False,
    calm: bool = False,
    sharpness: float = 1,
) -> Iterator[Tab]:
    """A tab of a browser with a profile of its own; both are gone when the block ends.

    Args:
        width: Of the page, in CSS pixels.
        height: Likewise.
        dark: Whether the user prefers dark colours.
        touch: Whether it is a phone.
        calm: Whether the user prefers less motion.
        sharpness: Pixels of a picture for each of CSS.
    """
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory(prefix="defer-browser-") as profile, sync_playwright() as driver:
        context: BrowserContext = driver.chromium.launch_persistent_context(
            profile,
            executable_path=_chromium(),
            headless=True,
            args=list(ARGUMENTS),
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce" if calm else "no-preference",
            has_touch=touch,
            device_scale_factor=sharpness,
        )
        try:
            tab = Tab(context.new_page())
            tab.page.on(
                "console", lambda said: tab.errors.extend([said.text] if said.type == "error" else [])
            )
            tab.page.on("pageerror", lambda error: tab.errors.append(str(error)))
            tab.page.on("request", lambda asked: tab.requests.append(asked.url))
            yield tab
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
